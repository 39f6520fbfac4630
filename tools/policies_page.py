"""Makes docs/api-policies.md, which has the docstring of every built-in policy."""

from __future__ import annotations

from tokenprune import policies
from tokenprune.policies import Policy, registry

HEAD = """\
# Policies in Python

The classes of the built-in policies. Their fields are the options that `apply_pruning(model, "name", option=...)` and
`--policy name:option=...` take. [Policies](policies.md) has them in one table.
"""


def built_in() -> dict[str, type[Policy]]:
    """Policies by name, without those of installed packages."""
    return {name: cls for name, cls in registry().items() if cls.__module__.startswith(policies.__name__)}


def page() -> str:
    """The page: a section for each policy."""
    lines = [HEAD.rstrip()]
    for name, cls in built_in().items():
        lines += ["", f"## `{name}`", "", f"::: tokenprune.policies.{cls.__name__}"]
    return "\n".join(lines) + "\n"
