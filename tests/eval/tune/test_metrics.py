"""Losses of one prompt."""

import pytest

from tokenprune.eval.tune import Prompt
from tokenprune.eval.tune.metrics import METRICS, Pruned, exact_match, loss, normalised, quick_loss
from tokenprune.eval.tune.replies import Reply

PROMPT = Prompt("What colour?", answers=("red", "dark red"))


def lost(metric, full, pruned, of=loss, score=exact_match):
    reply = Reply(full, [1, 2], [], [])
    return of(METRICS[metric], score, PROMPT, reply, pruned)


@pytest.mark.parametrize(
    ("metric", "full", "pruned", "expected"),
    [
        ("answer", "Red", Pruned(0.0, 0.1), 0),
        ("answer", "Red", Pruned(0.5, 3.0, "red."), 0),
        ("answer", "Red", Pruned(0.5, 3.0, "blue"), 1),
        ("tokens", "Red", Pruned(0.5, 3.0), 0.5),
        ("kl", "Red", Pruned(0.5, 0.3), 0.3),
        ("kl", "Red", Pruned(0.5, 3.0), 1),
        ("accuracy", "red", Pruned(0.0, 0.1), 0),
        ("accuracy", "red", Pruned(0.5, 0.1, "Dark  red"), 0),
        ("accuracy", "red", Pruned(0.5, 0.1, "blue"), 1),
        ("accuracy", "blue", Pruned(0.5, 0.1, "green"), 0),
        ("accuracy", "blue", Pruned(0.5, 0.1, "red"), 0),  # a gain makes up for nothing
    ],
)
def test_losses(metric, full, pruned, expected):
    assert lost(metric, full, pruned) == expected
    assert lost(metric, full, pruned, quick_loss) >= expected


def test_a_score_between_0_and_1_loses_what_it_falls_by():
    score = lambda text, answers: {"full": 0.75, "pruned": 0.5}[text]
    assert lost("accuracy", "full", Pruned(0.5, 0.1, "pruned"), score=score) == 0.25


@pytest.mark.parametrize(
    ("one", "other"), [("Yes.", "yes"), ("a  b\n", "A b"), ('"no"', "no"), ("ｆull", "full"), ("3 !", "3")]
)
def test_texts_that_are_the_same(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), [("-5", "5"), (".5", "5"), ("5 %", "5"), ("a b", "ab"), ("c", "c++")])
def test_texts_that_are_not(one, other):
    assert normalised(one) != normalised(other)


def test_metrics_without_text_and_labels_say_so():
    assert {name for name, metric in METRICS.items() if metric.binary} == {"answer", "accuracy"}
    assert {name for name, metric in METRICS.items() if metric.of_labels} == {"accuracy"}
