"""Random conversations on random settings, held against the stock model under the same calls.

200 by default, always the same; `make fuzz` holds 3,000 others (TALKS and SEED choose). What once failed comes first.
"""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tokenprune import History, Policy

from .families import ENCODES_FIRST, FAMILIES, Picture
from .support import conversations
from .support.conversations import hold
from .support.hiding import Hiding
from .support.talks import SHRINK_HISTORY, Setting, Turn, talks

pytestmark = pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers drops the pixels of a second turn")

TALKS, SHARDS = int(os.environ.get("TALKS", 200)), 10
SEED = int(os.environ.get("SEED", 0))
A, B = Picture((24, 24)), Picture((4, 4))


def hold_random(families, number, count, **options):
    """Hold so many random talks; the number is that of the series."""

    @seed(1_000_003 * SEED + number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(talks(families, **options))
    def run(case):
        hold(**case)

    run()


@pytest.mark.parametrize("shard", range(SHARDS))
def test_any_conversation(shard):
    hold_random(list(FAMILIES)[shard::SHARDS], shard, TALKS // SHARDS)


@pytest.mark.parametrize("shard", range(4))
def test_any_conversation_whose_earlier_pictures_shrink(shard):
    families = [family for family in SHRINK_HISTORY if family in FAMILIES][shard::4]
    hold_random(families, SHARDS + shard, TALKS // 40, history=True)


def grid(rows, keep=0.5, positions="original", **options):
    """A turn under the plainest policy."""
    return Turn(rows, setting=Setting("grid", keep, positions), **options)


REMEMBERED = [
    # positions switched between turns; crops into a later turn's text
    ("llava", [grid([[A, 1]], positions="compact"), grid([[A, 1]])]),
    ("qwen2_5_vl", [grid([[Picture((8, 8)), 1]], positions="compact"), grid([[B, 1]])]),
    ("llava", [grid([[A, 1]]), Turn([[A, 1]], steps=1, setting=Setting("deep fastv", 0.5)), Turn([[1]], crop=1)]),
    # token types of a text turn, as the processor gives them
    ("gemma3", [grid([[A, 1]]), Turn([[1]])]),
    # what the mask hides, within pictures and at the end
    ("llava", [grid([[3, A, 4]], hidden=[(0, 6, 5)])]),
    ("qwen2_5_vl", [grid([[3, Picture((8, 8)), 4]], hidden=[(0, 6, 5)])]),
    ("llava", [grid([[3, A, 4], [2]], how="forward", right=True), Turn([[3], [2]])]),
    # keep=1.0 is the stock model
    ("llava", [Turn([[A, 4]], setting=Setting("deep vtw", 1.0))]),
    ("gemma3", [grid([[A, 1]], keep=1.0)], "static"),
    ("aya_vision", [grid([[A, 1]], keep=1.0)], "static"),
    ("qwen3_5", [grid([[B, 1]])], "static"),
    # masks that `generate` has made: of padding that is gone, of a past that was not pruned, with new holes
    ("llava", [grid([[A, 1]], hidden=[(0, 3, 1)])], "static"),
    ("qwen2_5_vl", [grid([[B, B, 8, 1], [B, Picture((6, 2)), 8, 1]], steps=5)], "static"),
    ("llava", [grid([[4], [1]]), Turn([[1], [A, 1]])], "static"),
    ("llava", [grid([[A, 4]]), Turn([[4]], hidden=[(0, 1, 1)])], "static"),
    ("llava", [grid([[A, 4]]), Turn([[A, 4]], hidden=[(0, 2, 3)])], "static"),
]


@pytest.mark.parametrize("talk", REMEMBERED, ids=[f"{i}-{talk[0]}" for i, talk in enumerate(REMEMBERED)])
def test_what_once_failed(talk):
    if talk[0] in FAMILIES:
        hold(*talk)


# ---------------------------------------------------------------- the oracle can fail


class _OneTooFew(Hiding):
    """Shows the stock model one column that some layer has lost."""

    def __enter__(self):
        places = (~self.seen.layers).nonzero()
        if len(places):
            layer, row, column = places[-1].tolist()
            self.seen.layers[layer, row, column] = True
        return super().__enter__()


class _OneOff(Hiding):
    """Leaves one row's positions one too high from this turn on."""

    def __enter__(self):
        self.seen.shift[0] += bool(self.lost.any())
        return super().__enter__()


class _OthersFeatures(Hiding):
    """Swaps the features of two columns that stay."""

    def __enter__(self):
        if self.lost.any():
            self.fed[0][:, [2, 3]] = self.fed[0][:, [3, 2]]
        return super().__enter__()


PICTURE = Turn([[3, A, 4]], setting=Setting("divprune", 0.3))
CUT = Turn([[3, A, 4]], setting=Setting("deep fastv", 0.3))
MERGED = Turn([[3, A, 4]], setting=Setting("visionzip", 0.3))
NEXT, MORE = Turn([[2]], how="forward"), Turn([[A, 2]])


@pytest.mark.parametrize(
    ("wrong", "turns"),
    [
        (_OneTooFew, [PICTURE]),
        (_OneTooFew, [PICTURE, NEXT]),
        (_OneTooFew, [NEXT.but(setting=PICTURE.setting), MORE]),
        (_OneTooFew, [CUT]),
        (_OneTooFew, [CUT.but(how="forward"), NEXT]),
        (_OneOff, [PICTURE]),
        (_OneOff, [PICTURE, MORE]),
        (_OthersFeatures, [MERGED]),
    ],
)
def test_the_oracle_can_fail(monkeypatch, wrong, turns):
    assert hold("llava", turns) == []
    monkeypatch.setattr(conversations, "Hiding", wrong)
    with pytest.raises(AssertionError, match=r"hold\('llava', \[Turn\("):
        hold("llava", turns)


def test_other_errors_are_failures(monkeypatch):
    """Only what is documented passes for a refusal, and only where it may come."""

    def refuse(text):
        def select(self, tokens, n_keep):
            raise ValueError(text)

        return select

    for text in (
        "out of the blue",
        "pruning cannot follow ready-made attention masks; use the default (dynamic) cache",
    ):
        for policy in Policy.__subclasses__():
            if policy.name == "grid":
                monkeypatch.setattr(policy, "select", refuse(text))
        with pytest.raises(AssertionError, match=text[:10]):
            hold("llava", [PICTURE.but(setting=Setting("grid", 0.3))])


def test_a_failure_prints_the_call_that_repeats_it():
    turns = [PICTURE.but(hidden=[(0, 1, 2)], crop=3), Turn([[Picture((8, 4), 2), 1]], how="sample", fork=True)]
    assert (
        repr(turns[0])
        == "Turn([[3, Picture((24, 24)), 4]], setting=Setting('divprune', 0.3), crop=3, hidden=[(0, 1, 2)])"
    )
    assert eval(repr(turns)) == turns
    shrinks = Setting("grid", 0.5, history=History(0.1, "grid"))
    assert eval(repr(shrinks)) == shrinks
