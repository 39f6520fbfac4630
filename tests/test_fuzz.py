"""Random batches on random settings, held against the oracles.

500 cases by default, always the same; `make fuzz` runs 10,000 others (CASES and SEED choose).
"""

import os

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from .families import ANYRES, FAMILIES, PLAIN_FAMILIES, TOWER_FAMILIES, Picture, get_model, make_batch
from .oracles import check_against_oracles, check_decoder_stage
from .policies_table import CHANGES_FEATURES, DEEP, POLICIES, TOWER

DEEP_LABELS = [f"deep {label}" for label in DEEP]
TOWER_LABELS = [f"tower {label}" for label in TOWER if "fastv" not in label]
CASES, SHARDS = int(os.environ.get("CASES", 500)), 20
SEED = int(os.environ.get("SEED", 0))


def _sizes(family):
    """(height, width) of a picture: in patches for Qwen, in pixels elsewhere."""
    if family.startswith("qwen"):
        return st.tuples(*[st.integers(1, 4).map(lambda n: 2 * n)] * 2)
    if family == "mistral3":
        eighths = st.integers(2, 6).map(lambda n: 8 * n)  # stock Mistral 3 fails on a picture of one token
        return st.tuples(eighths, eighths)
    if family in ANYRES:
        return st.tuples(*[st.integers(4, 96)] * 2)
    return st.just((24, 24))


@st.composite
def batches(draw, family):
    """Rows of text and pictures, one picture at least; a row ends with text, as prompts do."""
    pictures = st.builds(Picture, _sizes(family))
    if FAMILIES[family].video:
        frames = st.integers(1, 3)
        clips = st.builds(Picture, _sizes(family), frames)
        if not family.startswith("qwen"):  # their processors give all videos of a batch one shape
            clips = st.just(draw(clips))
        pictures = st.one_of(pictures, clips)
    parts = st.one_of(st.integers(1, 12), pictures)
    rows = draw(st.lists(st.lists(parts, max_size=4), min_size=1, max_size=4))
    rows[draw(st.integers(0, len(rows) - 1))].append(draw(pictures))
    return [[*row, draw(st.integers(1, 12))] for row in rows]


def _labels(family):
    deep = DEEP_LABELS if family in PLAIN_FAMILIES else []
    return [*POLICIES, *deep, *(TOWER_LABELS if family in TOWER_FAMILIES else [])]


@st.composite
def cases(draw):
    family = draw(st.sampled_from(list(FAMILIES)))
    return {
        "family": family,
        "rows": draw(batches(family)),
        "policy": draw(st.sampled_from(_labels(family))),
        "keep": draw(st.one_of(st.floats(0.01, 1), st.integers(1, 40))),
        "positions": draw(st.sampled_from(["original", "compact"])),
    }


def hold(family, rows, policy, keep, positions):
    batch = make_batch(family, rows)
    if policy.startswith("deep "):
        policies, options = DEEP[policy.removeprefix("deep ")]
        check_decoder_stage(get_model(family), batch, policies, keep, positions, **options)
    elif policy.startswith("tower "):
        policies, options = TOWER[policy.removeprefix("tower ")]
        check_against_oracles(get_model(family), batch, policies, keep, positions, True, **options)
    else:
        name, options = POLICIES[policy]
        check_against_oracles(get_model(family), batch, name, keep, positions, name in CHANGES_FEATURES, **options)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_any_batch_on_any_setting(shard):
    @seed(1_000_003 * SEED + shard)
    @settings(
        max_examples=CASES // SHARDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(cases())
    def run(case):
        hold(**case)

    run()
