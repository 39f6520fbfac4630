"""What a policy of the vision stage is asked about."""

from tokenprune import VisualTokens


def seen_tokens(policy) -> list[VisualTokens]:
    """The tokens that `policy.select` is called with from now on, in a list that grows."""
    seen, select = [], policy.select

    def watched(tokens, n_keep):
        seen.append(tokens)
        return select(tokens, n_keep)

    policy.select = watched
    return seen
