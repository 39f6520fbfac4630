"""Settings of papers by name: they can be made, and hold the mean that they state."""

import pytest

from tokenprune import pruning, pruning_report, pruning_status
from tokenprune.policies import Preset, make_policy, registry
from tokenprune.policies.cuts import planned_cuts

from ..families import get_model, ragged_batch
from ..oracles import generate

PRESETS = [(name, preset) for name, cls in registry().items() for preset in cls.presets]


def test_there_are_presets():
    assert len({name for name, _ in PRESETS}) >= 17


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_the_mean_is_as_stated(name, preset):
    setting = registry()[name].presets[preset]
    policy = make_policy(f"{name}@{preset}")
    assert all(getattr(policy, option) == value for option, value in setting.options.items())
    assert setting.table and setting.model
    if setting.mean is None:
        return
    layers, tokens = (int(part.split()[0]) for part in (setting.model + ", 28 layers, 1296 tokens").split(", ")[1:3])
    n_keep = round(setting.keep * tokens) if isinstance(setting.keep, float) else setting.keep or 0
    if "decoder" in policy.stages and name != "todre":  # what todre drops in the decoder depends on the question
        cuts = planned_cuts(policy, layers, 1)
        assert cuts.mean(tokens, cuts.left(tokens, n_keep)) == pytest.approx(setting.mean, abs=0.06)
    else:
        assert n_keep == setting.mean


def test_a_preset_brings_budget_and_positions():
    model, batch = get_model("llava"), ragged_batch("llava")
    with pruning(model, "divprune@paper"):
        assert pruning_status(model).positions == "compact"
        generate(model, batch.inputs, steps=1)
        assert {record.n_after for record in pruning_report(model)} == {round(0.098 * 36)}
    with pruning(model, "divprune@paper", 0.5, positions="original"):
        assert pruning_status(model).positions == "original"
        generate(model, batch.inputs, steps=1)
        assert {record.n_after for record in pruning_report(model)} == {18}
    with pruning(model, "sparsevlm@v1-64"):
        generate(model, batch.inputs, steps=1)
        assert {record.n_last for record in pruning_report(model)} == {17}
    with pruning(model, ["grid@final", "fastv@paper"], 0.5):
        generate(model, batch.inputs, steps=1)
        assert {record.n_last for record in pruning_report(model)} == {18}


def test_presets_that_do_not_fit():
    model = get_model("llava")
    with pytest.raises(
        ValueError, match=r"policy 'divprune' has no preset 'x'; accepted: divprune@paper, divprune@final"
    ):
        pruning(model, "divprune@x").__enter__()
    with pytest.raises(ValueError, match="presets with budgets of their own: give keep"):
        pruning(model, ["divprune@paper", "fastv@paper"]).__enter__()
    assert Preset(0.5) == Preset(0.5)
