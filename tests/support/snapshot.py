"""Everything that pruning could leave on a model."""


def snapshot(model):
    """Every attribute and hook of every module."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        name: (
            sorted(vars(m)),
            type(m),
            id(getattr(m, "config", None)),
            [list(vars(m)[h]) for h in (*hooks, "_forward_hooks_always_called")],
        )
        for name, m in model.named_modules()
    }
