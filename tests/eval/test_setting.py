"""One setting of a measurement: policies, keep ratio, positions, options; or the full model."""

import pytest

from tokenprune import UnknownPolicyError
from tokenprune.eval.setting import FULL, PruningSetting, label, settings_grid
from tokenprune.policies import DivPrune, FastV, Random

from ..families import get_model


def test_names_are_joined_and_parsed():
    setting = PruningSetting("divprune+fastv", 0.25)
    assert [type(policy) for policy in setting.policies] == [DivPrune, FastV]
    assert setting.name == "divprune+fastv" and str(setting) == "divprune+fastv 0.25" == label("divprune+fastv", 0.25)
    assert PruningSetting((DivPrune(), FastV()), 0.25).policies == setting.policies


def test_options_go_to_a_single_policy():
    assert PruningSetting("random", 0.5, options={"seed": 3}).policies == (Random(seed=3),)
    with pytest.raises(ValueError, match="seed: options go with a single policy"):
        PruningSetting("random+fastv", 0.5, options={"seed": 3})


def test_the_full_model_keeps_everything():
    full = PruningSetting()
    assert full.is_full and full.name == FULL and full.keep == 1.0 and full.policies == ()
    for wrong in ({"keep": 0.5}, {"positions": "compact"}, {"options": {"seed": 1}}):
        with pytest.raises(ValueError, match="the full model takes no"):
            PruningSetting(**wrong)


@pytest.mark.parametrize("wrong", [{"policy": "nope"}, {"policy": "random", "keep": 0.0}, {"policy": ()}])
def test_errors_come_at_once(wrong):
    with pytest.raises((UnknownPolicyError, ValueError)):
        PruningSetting(**wrong)
    with pytest.raises(ValueError, match="positions='sideways' is none of original, compact"):
        PruningSetting("random", positions="sideways")


def test_a_model_is_pruned_for_a_block():
    model = get_model("llava")
    with PruningSetting("divprune", 0.5).context(model):
        assert hasattr(model.model, "_tokenprune")
    assert not hasattr(model.model, "_tokenprune")
    with PruningSetting().context(model) as same:
        assert same is model and not hasattr(model.model, "_tokenprune")


def test_an_identity_tells_options_apart():
    plain, seeded = PruningSetting("random", 0.5), PruningSetting("random", 0.5, options={"seed": 1})
    assert plain.identity() != seeded.identity()
    assert seeded.identity() == {"policy": "Random(seed=1)", "keep": 0.5, "positions": "original"}


def test_a_grid_has_the_full_model_first():
    grid = settings_grid(["divprune", "fastv"], [0.5, 8], "compact", True)
    assert str(grid[0]) == str(PruningSetting())
    assert [(s.name, s.keep, s.positions) for s in grid[1:]] == [
        ("divprune", 0.5, "compact"),
        ("divprune", 8, "compact"),
        ("fastv", 0.5, "compact"),
        ("fastv", 8, "compact"),
    ]
