"""What a prompt loses when the model is pruned: a number in [0, 1]."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .prompts import Prompt
    from .replies import Reply

_QUOTES, _PUNCTUATION = " \"'`*", ".,;:!?"

#: Scores an answer against right ones: 1 for right, 0 for wrong, or between.
Score = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Metric:
    """A loss.

    Attributes:
        name: of it.
        what: is lost, as tables say it.
        binary: whether it is always 0 or 1.
        of_text: whether it needs the pruned model's answer where that is not the full model's.
        of_labels: whether it needs right answers.
    """

    name: str
    what: str
    binary: bool
    of_text: bool = False
    of_labels: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("answer", "answers that change", True, of_text=True),
        Metric("tokens", "tokens of the full model's answers that change", False),
        Metric("kl", "divergence of the next token, in nats, at most 1", False),
        Metric("accuracy", "right answers that are lost", True, of_text=True, of_labels=True),
    )
}


def loss(metric: Metric, score: Score, prompt: Prompt, reply: Reply, taken: Pruned) -> float:
    """What a prompt loses.

    Args:
        metric: of `METRICS`.
        score: of answers, for `accuracy`.
        prompt: what was asked.
        reply: what the full model answered.
        taken: what became of it under pruning.
    """
    if metric.name == "tokens":
        return taken.differ
    if metric.name == "kl":
        return min(1.0, taken.kl)
    if taken.differ == 0:  # the pruned model answers the same
        return 0.0
    assert taken.text is not None
    if metric.name == "answer":
        return float(normalised(taken.text) != normalised(reply.text))
    return max(0.0, score(reply.text, prompt.answers) - score(taken.text, prompt.answers))


def quick_loss(metric: Metric, score: Score, prompt: Prompt, reply: Reply, taken: Pruned) -> float:
    """A loss that is at least `loss`, and needs no text of the pruned model."""
    if not metric.of_text:
        return loss(metric, score, prompt, reply, taken)
    changed = float(taken.differ > 0)
    return changed * score(reply.text, prompt.answers) if metric.of_labels else changed


@dataclass(frozen=True)
class Pruned:
    """What became of a reply under pruning.

    Attributes:
        differ: share of its tokens in whose place another one would be chosen.
        kl: divergence of the next token, a mean over its tokens, nats.
        text: the pruned model's own answer; None if it is the same, or was not generated.
    """

    differ: float
    kl: float
    text: str | None = None


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 if a text is one of the answers, up to what `normalised` removes."""
    return float(normalised(text) in {normalised(answer) for answer in answers})


def normalised(text: str) -> str:
    """A text in small letters, with single spaces, without quotes around it and without punctuation at its end."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold())
    return text.strip(_QUOTES).rstrip(_PUNCTUATION + _QUOTES)
