"""What is raised where a KV cache that was filled under pruning cannot be used."""


class PrunedCacheError(RuntimeError):
    """A cache that was filled under pruning is used in a way it cannot support."""
