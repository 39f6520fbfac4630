"""A keep ratio counts the mean over decoder layers: the solver, and what models hold."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tokenprune import Schedule, apply_pruning, pruning, pruning_report, pruning_status, remove_pruning
from tokenprune.budget import Budget
from tokenprune.mean_budget import DecoderCuts, MeanBudget, MeanBudgetBefore
from tokenprune.policies import make_policy
from tokenprune.policies.cuts import planned_cuts

from .families import get_model, ragged_batch
from .oracles import generate

POLICIES = st.sampled_from(
    [
        make_policy("fastv"),
        make_policy("dart", layer=5),
        make_policy("pyramiddrop"),
        make_policy("pyramiddrop", schedule=Schedule((0.3, 0.6), (3.0, 1.5))),
        make_policy("sparsevlm"),
        make_policy("vtw", depth=0.3),
        make_policy("auto").decoder_follow_up(),
        make_policy("auto", depths=(0.3, 0.6), least=0.02).decoder_follow_up(),
    ]
)


@st.composite
def budgets(draw) -> MeanBudget:
    policy, n_layers = draw(POLICIES), draw(st.integers(6, 40))
    keep = draw(st.one_of(st.integers(1, 700), st.floats(0.001, 1.0, exclude_max=True)))
    exponent = draw(st.sampled_from([0.0, 0.25, 0.5, 0.9]))
    return MeanBudget(Budget(keep), planned_cuts(policy, n_layers, 1), exponent)


def planned(budget: MeanBudget, n: int) -> tuple[int, tuple[int, ...], float]:
    """Tokens that enter the decoder, those after each cut, and their mean over the layers."""
    entered = MeanBudgetBefore(budget, budget.exponent).count(n)
    left = budget.left(n, entered)
    return entered, left, budget.cuts.mean(entered, left)


@settings(max_examples=150)
@given(budgets(), st.integers(1, 600))
def test_the_mean_is_the_budget(budget, n):
    entered, left, mean = planned(budget, n)
    wanted = budget.budget.count(n)
    assert list(left) == sorted(left, reverse=True)
    assert 0 < entered <= n
    assert 0 <= left[0] <= entered
    assert budget.count(n) == left[-1]
    if wanted >= n:
        assert mean == n
    elif mean < wanted - 1:  # only where nothing more can be held: all enter, and none may leave but what must
        assert entered == n
        assert mean >= max(budget.cuts.mean(n, budget.cuts.left(n, n)) - 1, 0)
    elif mean > wanted + 1:
        assert mean == pytest.approx(budget.least(n), abs=1)


@settings(max_examples=100)
@given(budgets(), st.integers(2, 600), st.data())
def test_the_mean_grows_with_the_budget(budget, n, data):
    more = data.draw(st.floats(0.001, 1.0))
    other = MeanBudget(Budget(more), budget.cuts, budget.exponent)
    low, high = sorted((budget, other), key=lambda each: each.budget.count(n))
    assume(high.budget.count(n) < n)
    assert planned(low, n)[2] <= planned(high, n)[2] + 1e-9


@settings(max_examples=60)
@given(budgets(), st.integers(2, 600), st.data())
def test_another_number_that_enters_is_made_up_for(budget, n, data):
    """As after a policy that keeps whole rows."""
    entered = data.draw(st.integers(1, n))
    mean = budget.cuts.mean(entered, budget.left(n, entered))
    lowest = budget.cuts.mean(entered, budget.cuts.left(entered, 1))
    highest = budget.cuts.mean(entered, budget.cuts.left(entered, entered))
    wanted = budget.budget.count(n)
    if wanted < n:
        assert abs(mean - min(max(wanted, lowest), highest)) < 1


@pytest.mark.parametrize("policy", ["auto", "fastv", "pyramiddrop", "dart", "sparsevlm", ["divprune", "fastv"]])
@pytest.mark.parametrize(("family", "keep"), [("llava", 0.8), ("llava", 30), ("qwen2_5_vl", 0.6)])
def test_models_hold_the_mean(family, policy, keep):
    model, batch = get_model(family), ragged_batch(family)
    options = {"layer": 1} if policy in ("fastv", "dart") else {}
    with pruning(model, policy, keep, **options):
        generate(model, batch.inputs, steps=2)
        report = pruning_report(model)
    for record in report:
        wanted = Budget(keep).count(record.n_before)
        assert abs(record.mean - wanted) <= 1
        assert record.mean == sum(record.tokens_per_layer) / len(record.tokens_per_layer)
    assert any(record.n_last < record.n_before for record in report)


def test_a_policy_says_how_many_enter_the_decoder():
    """Up to a tenth of the tokens nothing leaves in the decoder; beyond it a quarter is left after the last cut."""
    later = make_policy("auto").decoder_follow_up()
    cuts = DecoderCuts(32, (24,), lambda n, n_keep: [n_keep], later.decoder_entry)
    for keep, entered, left in ((0.05, 50, 50), (0.1, 100, 100), (0.25, 285, 145), (0.5, 592, 224)):
        assert planned(MeanBudget(Budget(keep), cuts, 0.5), 1000) == (entered, (left,), 1000 * keep)
    # of two stages before the decoder the first goes half of the way, in ratios
    assert MeanBudgetBefore(MeanBudget(Budget(0.25), cuts, 0.5), 0.25).count(1000) == round(1000 * 0.2846**0.5)


def test_a_policy_that_acts_before_the_decoder_keeps_just_as_many():
    model, batch = get_model("llava"), ragged_batch("llava")
    for policy in ("divprune", "todre"):
        with pruning(model, policy, 0.2):
            generate(model, batch.inputs, steps=1)
            assert {r.n_after for r in pruning_report(model)} == {7}


def test_the_former_meaning():
    """What is left after the last cut, by `budget` and by the preset of any policy."""
    model, batch = get_model("llava"), ragged_batch("llava")
    for arguments in (("fastv", 0.25, {"budget": "final"}), ("fastv@final", 0.25, {})):
        with pruning(model, *arguments[:2], **arguments[2]):
            generate(model, batch.inputs, steps=1)
            assert {r.n_last for r in pruning_report(model)} == {9}
    with pruning(model, "fastv@final", 0.8, budget="mean", layer=1):
        generate(model, batch.inputs, steps=1)
        assert all(abs(r.mean - 0.8 * r.n_before) <= 1 for r in pruning_report(model))
    with pytest.raises(ValueError, match="budget='last' is unknown; accepted: 'mean', 'final'"):
        apply_pruning(model, "fastv", 0.25, budget="last")


def test_a_mean_that_cannot_be_reached_is_refused():
    model, batch = get_model("llava"), ragged_batch("llava")
    with pytest.raises(ValueError, match=r"keep=0\.1 is a mean.*'fastv' holds 0\.667 of the tokens at least.*accepted"):
        apply_pruning(model, "fastv", 0.1)
    with pruning(model, ["divprune", "fastv"], 0.1):
        generate(model, batch.inputs, steps=1)
        assert all(abs(r.mean - Budget(0.1).count(r.n_before)) <= 1 for r in pruning_report(model))
    apply_pruning(model, "fastv", 4)  # how many tokens an input has is known on the call
    try:
        with pytest.raises(
            ValueError, match=r"keep=4 is a mean.*'fastv' holds 24\.3 of 36 tokens at least.*keep >= 25"
        ):
            generate(model, batch.inputs, steps=1)
    finally:
        remove_pruning(model)
    expected = generate(model, batch.inputs, steps=1)
    assert torch.isfinite(expected.logits).all()  # nothing is left behind


def test_vtw_finds_its_layer():
    model, batch = get_model("llava"), ragged_batch("llava")
    n_layers = model.config.text_config.num_hidden_layers
    for keep, layer in (
        (1 / n_layers, 1),
        (0.5, n_layers // 2),
        (1 - 1 / n_layers, n_layers - 1),
        (0.95, n_layers - 1),
    ):
        with pruning(model, "vtw", keep):
            generate(model, batch.inputs, steps=1)
            assert all(r.mean == pytest.approx(layer / n_layers * r.n_before) for r in pruning_report(model))
    for given_depth in (pruning(model, "vtw"), pruning(model, "vtw", 0.7, depth=0.5), pruning(model, "vtw", 30)):
        with given_depth:
            generate(model, batch.inputs, steps=1)
            assert all([cut.layer for cut in r.cuts] == [n_layers // 2] for r in pruning_report(model))


def test_the_status_tells_the_meaning():
    model = get_model("llava")
    with pruning(model, ["divprune", "fastv"], 0.25):
        text = str(pruning_status(model))
    n_layers = model.config.text_config.num_hidden_layers
    assert f"FastV(layer=2) keeps 0.25 of the tokens in the mean over {n_layers} layers" in text
    assert "DivPrune() keeps a number of tokens on the way to 0.25" in text
