"""The tables of the documentation: which architectures are served, and with which policies."""

from __future__ import annotations

from ..policies.registration import make_policy, registry
from .architectures import SERVED, Architecture
from .settings import UnservablePolicyError, check_encoder, refuse


def architectures() -> str:
    """Markdown: the architectures, what they take, and how their tokens are numbered."""
    lines = ["| model | architecture in its config | takes | positions |", "|---|---|---|---|"]
    for name, served in SERVED.items():
        takes = "pictures, videos" if served.videos else "pictures"
        positions = "of the whole input" if served.mrope else "counted anew"
        lines.append(f"| {served.title} | `{name}` | {takes} | {positions} |")
    return "\n".join(lines)


def policies() -> str:
    """Markdown: which policies are served on which models, and why others are not."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for served in SERVED.values():
        cells = tuple(_cell(name, served) for name in registry())
        columns.setdefault(cells, []).append(served.title)
    lines = [
        f"| policy | {' | '.join(', '.join(titles) for titles in columns.values())} |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name, *texts in zip(registry(), *columns, strict=True):
        lines.append(f"| `{name}` | {' | '.join(texts)} |")
    return "\n".join(lines)


def _cell(name: str, served: Architecture) -> str:
    policy = make_policy(name)
    try:
        refuse(policy)
        check_encoder(policy, served.readable, served.pixels)
    except UnservablePolicyError as error:
        return error.short
    return "served, by prompt" if "text" in policy.needs else "served"
