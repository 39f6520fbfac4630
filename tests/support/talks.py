"""Descriptions of conversations, which print as they are written, and random ones."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tokenprune import History
from tokenprune.policies import Policy, make_policy

from ..families import ANYRES, FAMILIES, PLAIN_FAMILIES, TOWER_FAMILIES, Picture
from ..policies_table import CHANGES_FEATURES, DEEP, POLICIES, TOWER

EXPANDED = {"beams": 3, "copies": 2}  # rows that a way of generating makes of one


class _Brief:
    """Prints what differs from the defaults, so that a description can be pasted and read."""

    def __repr__(self) -> str:
        shown = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                shown.append(repr(value))
            elif value != (f.default if f.default_factory is dataclasses.MISSING else f.default_factory()):
                shown.append(f"{f.name}={value!r}")
        text = f"{type(self).__name__}({', '.join(shown)})"
        text = re.sub(r"Picture\(size=(\(\d+, \d+\)), frames=0\)", r"Picture(\1)", text)
        return re.sub(r"Picture\(size=(\(\d+, \d+\)), frames=(\d+)\)", r"Picture(\1, \2)", text)


@dataclass(frozen=True, repr=False)
class Setting(_Brief):
    """What pruning is applied. `policy` is a label: see `stages`."""

    policy: str
    keep: Any
    positions: str = "original"
    history: Any = None


@dataclass(frozen=True, repr=False)
class Turn(_Brief):
    """One call on the cache of those before it.

    Attributes:
        rows: per row of the batch what is new, as `make_batch` takes it.
        how: "greedy", "sample", "copies", "beams" or "lookup", by `generate`; or "forward".
        steps: tokens to generate.
        setting: pruning to apply before the turn; None: what was applied stays.
        crop: columns to take off the cache before the turn.
        fork: take the turn on a deep copy of the cache as well, and go on with that.
        hidden: (row, first, count) of new columns that the mask hides; the last column stays visible.
        forgotten: (row, first, count) of columns of earlier turns that it hides from now on; pictures stay.
        right: pad the new columns on the right ("forward" only).
        numbered: pass position ids ("forward" only); Qwen always does after the first turn.
        types: pass token types in turns of text ("gemma3", "paligemma").
    """

    rows: list
    how: str = "greedy"
    steps: int = 3
    setting: Setting | None = None
    crop: int = 0
    fork: bool = False
    hidden: list = field(default_factory=list)
    forgotten: list = field(default_factory=list)
    right: bool = False
    numbered: bool = False
    types: bool = True

    def but(self, **changes: Any) -> Turn:
        return dataclasses.replace(self, **changes)

    @property
    def pictures(self) -> bool:
        return any(isinstance(part, Picture) for row in self.rows for part in row)


def stages(label: str) -> tuple[list[Policy], bool]:
    """The policies of a label, and whether they change features.

    A label names an entry of POLICIES, or with "deep " or "tower " before it one of the other tables; several are
    joined by " & ".
    """
    made: list[Policy] = []
    for part in label.split(" & "):
        kind, _, name = part.rpartition(" ")
        names, options = {"": POLICIES, "deep": DEEP, "tower": TOWER}[kind][name]
        made += [make_policy(n, **options) for n in ([names] if isinstance(names, str) else names)]
    changes = any(policy.name in CHANGES_FEATURES or policy.stages == ("encoder",) for policy in made)
    return made, changes


def labels(family: str) -> list[str]:
    """All labels of the tables that fit a family."""
    deep = [f"deep {name}" for name in DEEP] if family in PLAIN_FAMILIES else []
    tower = [name for name in TOWER if "fastv" not in name or deep] if family in TOWER_FAMILIES else []
    return [*POLICIES, *deep, *(f"tower {name}" for name in tower)]


_FIRST, _LAST = (
    ("tower tome", "tower flowcut", "tower downsample"),
    ("deep fastv", "deep vtw", "deep dart", "deep sparsevlm"),
)
_WHOLE = ("auto", "deep auto", "todre", "todre-k-center")  # brings a decoder stage, or an option beside the name


def _settings(draw, family: str) -> Setting:
    label = draw(st.sampled_from(labels(family)))
    if draw(st.integers(0, 4)) == 0:  # several stages
        vision = draw(st.sampled_from([name for name in POLICIES if name not in _WHOLE]))
        first = [draw(st.sampled_from(_FIRST))] if family in TOWER_FAMILIES and draw(st.booleans()) else []
        last = [draw(st.sampled_from(_LAST))] if family in PLAIN_FAMILIES and draw(st.booleans()) else []
        label = " & ".join([*first, vision, *last])
    keep = draw(_KEEP)
    several = len(stages(label)[0])
    if several > 1 and draw(st.booleans()):
        keep = sorted(draw(st.lists(st.floats(0.1, 1), min_size=several, max_size=several)), reverse=True)
    return Setting(label, keep, draw(st.sampled_from(["original", "compact"])))


_KEEP = st.one_of(st.floats(0.02, 0.95), st.integers(1, 24), st.just(1.0))


def _sizes(family: str):
    """(height, width) of a picture: in patches for Qwen, in pixels elsewhere."""
    if family.startswith("qwen"):
        return st.tuples(*[st.integers(1, 4).map(lambda n: 2 * n)] * 2)
    if family == "mistral3":
        eighths = st.integers(2, 5).map(lambda n: 8 * n)
        return st.tuples(eighths, eighths)
    if family in ANYRES:
        return st.tuples(*[st.integers(4, 60)] * 2)
    return st.just((24, 24))


def _parts(draw, family: str):
    pictures = st.builds(Picture, _sizes(family))
    if FAMILIES[family].video:
        clips = st.builds(Picture, _sizes(family), st.integers(1, 2))
        if not family.startswith("qwen"):  # their processors give all videos of a call one shape
            clips = st.just(draw(clips))
        pictures = st.one_of(pictures, pictures, clips)
    return st.one_of(st.integers(1, 8), pictures)


def _rows(draw, family: str, n: int, pictures: bool) -> list:
    parts = _parts(draw, family) if pictures else st.integers(1, 8)
    rows = [draw(st.lists(parts, max_size=3 if pictures else 1)) for _ in range(n)]
    return [[*row, draw(st.integers(1, 6))] for row in rows]


def _spans(draw, n: int, reach: int) -> list:
    first = st.one_of(st.integers(0, 6), st.integers(0, reach))
    span = st.tuples(st.integers(0, n - 1), first, st.integers(1, 9))
    return draw(st.lists(span, min_size=1, max_size=3))


def _chance(draw, one_in: int) -> bool:
    return draw(st.integers(1, one_in)) == one_in


def _later(draw, family: str, before: Setting) -> Setting | None:
    """What is applied before a later turn: mostly nothing, or the same again, or with other numbers."""
    kind = draw(st.sampled_from(["stays", "stays", "again", "numbers", "numbers", "other"]))
    if kind == "stays":
        return None
    if kind == "again":
        return before
    if kind == "other":
        return _settings(draw, family)
    positions = draw(st.sampled_from(["original", "compact"]))
    history = before.history if before.history is None or draw(st.booleans()) else draw(_HISTORY)
    return Setting(before.policy, draw(_KEEP), positions, history)


_LEFT = st.one_of(st.just(0), st.floats(0.02, 0.6), st.integers(1, 8))
_HISTORY = st.one_of(_LEFT, st.builds(History, _LEFT, st.sampled_from(["divprune", "grid"])))
#: Families whose layers have no sliding window.
SHRINK_HISTORY = ("llava", "llava_next", "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3")


@st.composite
def talks(draw, families: list[str], history: bool = False) -> dict:
    """Arguments of `hold`.

    Args:
        families: of which one is drawn.
        history: whether pictures of earlier turns shrink in every talk, which then has two turns or more; the families
            are some of `SHRINK_HISTORY`.
    """
    family = draw(st.sampled_from(families))
    hybrid = FAMILIES[family].hybrid
    cache = "dynamic" if history else draw(st.sampled_from(["dynamic"] * 5 + ["static"] * 2 + ["none"]))
    n = draw(st.sampled_from([1, 1, 2, 2, 3]))
    several = 1 if hybrid or cache == "none" else draw(st.sampled_from([2, 3, 4] if history else [1, 2, 2, 3, 3, 4]))
    turns: list[Turn] = []
    setting = _settings(draw, family)
    if history or (several > 1 and cache == "dynamic" and family in SHRINK_HISTORY and _chance(draw, 4)):
        setting = dataclasses.replace(setting, history=draw(_HISTORY))
    for i in range(several):
        last = i == several - 1
        pictures = (i == 0 and not _chance(draw, 6)) or (i > 0 and draw(st.booleans()))
        ways = ["greedy", "sample"] + ([] if hybrid or cache == "none" else ["forward", "forward"])
        ways += ["beams", "copies"] if several == 1 and not hybrid and cache != "static" else []
        ways += (
            ["lookup"] if n == 1 and not i and not hybrid and cache == "dynamic" else []
        )  # stock feeds a cache all again
        how = "greedy" if hybrid else draw(st.sampled_from(ways))
        now = setting if i == 0 else _later(draw, family, setting)
        setting = now or setting
        turns.append(
            Turn(
                _rows(draw, family, n, pictures),
                how=how,
                steps=draw(st.integers(3 if last else 1, 5)),
                setting=now,
                crop=draw(st.one_of(st.integers(1, 8), st.integers(1, 40))) if i and _chance(draw, 3) else 0,
                fork=bool(i) and _chance(draw, 4),
                hidden=_spans(draw, n, 40) if not hybrid and _chance(draw, 3) else [],
                forgotten=_spans(draw, n, 60) if i and _chance(draw, 5) else [],
                right=how == "forward" and draw(st.booleans()),
                numbered=how == "forward" and draw(st.booleans()),
                types=not _chance(draw, 3),
            )
        )
    return dict(family=family, turns=turns, cache=cache, seed=draw(st.integers(0, 99)))
