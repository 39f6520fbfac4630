"""Parts of the page in HTML: messages, the two answers, the table of numbers, and notes about policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ...policies import Policy
from ..policy_names import format_value, option_defaults, stages_of
from .measure import Outcome
from .session import Comparison


def message(text: str) -> str:
    """A sentence about what is wrong, which screen readers read at once."""
    return f'<p class="message" role="alert">{escape(text)}</p>'


def answers(found: Comparison) -> str:
    """Both answers side by side, marked right or wrong where the right answer is known."""
    cards = [
        _card("Full model", found.full.answer, found.right),
        _card(f"Pruned: {found.setting}", found.pruned.answer, found.right),
    ]
    same = found.full.answer == found.pruned.answer
    verdict = "Both answers are the same." if same else "The answers differ."
    right = "" if found.right is None else f" The right one is <b>{escape(found.right)}</b>."
    return f'<div class="answers">{"".join(cards)}</div><p class="verdict" role="status">{verdict}{right}</p>'


def _card(title: str, answer: str, right: str | None) -> str:
    mark = ""
    if right is not None:
        mark = '<span class="right">✓ right</span>' if answer == right else '<span class="wrong">✗ wrong</span>'
    text = escape(answer) or "<i>(no answer)</i>"
    return f"<section><h3>{escape(title)}</h3><p>{text}</p>{mark}</section>"


def numbers(found: Comparison) -> str:
    """A table of tokens, times and KV cache, full and pruned."""
    full, pruned = found.full, found.pruned
    rows = [
        _row("Visual tokens at entry", found.tokens, found.entering, "d"),
        _row("Visual tokens, mean of layers", found.tokens, found.mean, ".1f"),
        _row("KV cache, KiB", full.kv_cache_bytes / 1024, pruned.kv_cache_bytes / 1024, ".0f"),
        _row("Vision encoder, ms", full.vision_ms, pruned.vision_ms, ".1f"),
        _row("Prefill, ms", full.prefill_ms, pruned.prefill_ms, ".1f"),
        _row("of it selection, ms", None, pruned.select_ms, ".1f"),
        _row("Whole answer, ms", full.total_ms, pruned.total_ms, ".1f"),
        _row("Answer tokens", full.answer_tokens, pruned.answer_tokens, "d"),
    ]
    head = "".join(f'<th scope="col">{title}</th>' for title in ("Full", "Pruned", "Change"))
    return (
        '<div class="numbers"><table><caption>What both answers cost</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "<p>Visual tokens at entry are those that enter the language model. The mean is over its layers. The KV cache "
        f"is that after the prefill. {_rounds(full, pruned)}</p></div>"
    )


def _row(name: str, full: float | None, pruned: float, form: str) -> str:
    """A row of the table; without a value of the full model there is no change."""
    change = round(100 * (pruned / full - 1)) if full else None
    shown = "" if change is None else f"{change:+d} %".replace("-", "−") if change else "0 %"
    cells = ("" if full is None else format(full, form), format(pruned, form), shown)
    kind = ' class="part"' if full is None else ""
    return f'<tr{kind}><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _rounds(full: Outcome, pruned: Outcome) -> str:
    """How times were taken."""
    if full.rounds == pruned.rounds:
        of = "a single run of each" if full.rounds == 1 else f"medians of {full.rounds} runs of each, in turns"
    else:
        of = f"medians of {full.rounds} runs (full) and {pruned.rounds} runs (pruned), one after the other"
    return f"Times are {of}."


def chosen(policies: Sequence[Policy]) -> str:
    """What the chosen policies keep, and their options with defaults."""
    lines = []
    for policy in policies:
        of_policy = option_defaults(type(policy))
        listed = ", ".join(
            f"<code>{escape(f'{name}={format_value(value)}')}</code>" for name, value in of_policy.items()
        )
        lines.append(
            f"<li><b>{escape(policy.name)}</b> keeps {escape(policy.keeps)}. Options: {listed or 'none'}.</li>"
        )
    return f'<ul class="chosen">{"".join(lines)}</ul>'


def refused(reasons: Mapping[str, str]) -> str:
    """The policies that cannot act on the model, and why."""
    lines = "".join(f"<li><b>{escape(name)}</b>: {escape(reason)}</li>" for name, reason in reasons.items())
    return f'<ul class="refused">{lines}</ul>'


def choices(policies: Mapping[str, Policy]) -> list[tuple[str, str]]:
    """Labels and names in the list of policies; a label says at which stages the policy acts."""
    return [(f"{name} ({', '.join(stages_of(policy))})", name) for name, policy in policies.items()]
