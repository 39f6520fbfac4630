"""How many tokens stay: ratios, counts, defaults of families, budgets of stages."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import apply_pruning, list_policies, pruning, pruning_report, remove_pruning
from tokenprune.budget import Budget, apportion
from tokenprune.policies import make_policy

from .families import get_model, ragged_batch
from .oracles import generate
from .support.snapshot import snapshot


@pytest.mark.parametrize(
    "keep", [0, -1, 0.0, -0.1, 1.5, math.nan, math.inf, True, False, "0.5", [0.5], 1j, np.float32(2), np.int64(0)]
)
def test_bad_budgets(keep):
    model = get_model("llava")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"keep=.*accepted: a float in \(0, 1\]"):
        apply_pruning(model, "divprune", keep)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("keep", "n", "count"),
    [(0.1, 576, 58), (0.098, 576, 56), (0.001, 100, 1), (1.0, 7, 7), (1, 7, 1), (64, 576, 64), (64, 10, 10)]
    + [(0.5, 5, 2), (0.5, 7, 4), (np.float32(0.5), 8, 4), (np.int64(3), 8, 3), (Fraction(1, 4), 8, 2)],
)
def test_budgets(keep, n, count):
    assert Budget(keep).count(n) == count


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.data())
def test_apportion(sizes, data):
    total = data.draw(st.integers(0, sum(sizes)))
    if sum(sizes) == 0:
        return
    shares = apportion(total, sizes)
    assert sum(shares) == total
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    with pytest.raises(ValueError, match="cannot share"):
        apportion(sum(sizes) + 1, sizes)


@pytest.mark.parametrize(("family", "n_after"), [("llava", 9), ("qwen2_vl", 3)])
def test_default_budget_of_the_family(family, n_after):
    model = get_model(family)
    with pruning(model, "divprune"):
        assert pruning_report(model) == []
        generate(model, ragged_batch(family).inputs, steps=1)
        record = pruning_report(model)[0]
    assert record.n_after == n_after
    assert len(record.indices) == n_after
    assert record.select_ms > 0


def test_a_count_above_the_image_keeps_all_of_it():
    model = get_model("llava")
    with pruning(model, "divprune", 1000):
        generate(model, ragged_batch("llava").inputs, steps=1)
        assert all(r.n_after == r.n_before for r in pruning_report(model))


def test_budgets_of_stages():
    model, batch = get_model("llava"), ragged_batch("llava")
    for policy, keep in ((["divprune", "pyramiddrop"], [0.5, 0.1]), (["pyramiddrop", "divprune"], (0.1, 0.5))):
        with pruning(model, policy, keep):
            generate(model, batch.inputs, steps=2)
            assert all((r.n_after, len(r.deep_indices)) == (18, 4) for r in pruning_report(model))
    for policy, left in (("auto", (16, 7)), (["auto"], (16, 7)), (["auto", "fastv"], (16, 7))):
        with pruning(model, policy, 0.2, budget="final"):
            generate(model, batch.inputs, steps=2)
            assert all((r.n_after, len(r.deep_indices)) == left for r in pruning_report(model))
    for alone in (pruning(model, ["auto"], [0.2]), pruning(model, "auto", 0.2, depths=())):
        with alone:
            generate(model, batch.inputs, steps=2)
            assert all((r.n_after, r.cuts) == (7, ()) for r in pruning_report(model))
    with pytest.raises(ValueError, match="one budget for each of 2 policies"):
        apply_pruning(model, ["divprune", "fastv"], [0.5])
    with pytest.raises(ValueError, match=r"keep=2\.0.*accepted"):
        apply_pruning(model, ["divprune", "fastv"], [0.5, 2.0])


def test_budgets_that_grow_are_refused():
    model = get_model("llava")
    for policies, keep in ((["divprune", "fastv"], [0.1, 0.5]), (["fastv", "divprune"], [20, 10])):
        with pytest.raises(ValueError, match="grows: 'fastv' acts after 'divprune'"):
            apply_pruning(model, policies, keep)
    for keep in ([0.5, 4], [None, None], [0.5, None]):  # not to be compared
        with pruning(model, ["divprune", "fastv"], keep):
            pass


@pytest.mark.parametrize("keep", [1.0, 10**9])
@pytest.mark.parametrize("policy", list_policies())
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_budget_of_everything_is_the_stock_model(family, policy, keep):
    """To the bit, whatever a policy does otherwise."""
    model, batch = get_model(family), ragged_batch(family)
    refused = {"qwen2_5_vl": {"tome", "downsample", "flowcut"}, "gemma3": {"tome", "downsample", "flowcut"}}
    in_decoder = "decoder" in type(make_policy(policy)).stage.split(", ")
    if policy in refused.get(family, ()) or (family == "gemma3" and in_decoder):
        # This small Qwen has its only layer of full attention at the top.
        with pytest.raises(ValueError, match=r"does not allow|full attention below the last"):
            apply_pruning(model, policy, keep)
        return
    apply_pruning(model, policy, keep)
    run, records = generate(model, batch.inputs, steps=4), pruning_report(model)
    remove_pruning(model)
    expected = generate(model, batch.inputs, steps=4)
    assert torch.equal(run.logits, expected.logits)
    assert all(r.n_after == r.n_before and not r.cuts for r in records)
