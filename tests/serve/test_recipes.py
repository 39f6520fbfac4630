"""A recipe in an engine's environment."""

import warnings
from types import SimpleNamespace

import pytest

from tokenprune import Recipe, RecipeWarning
from tokenprune.policies import make_policy
from tokenprune.recipe import versions
from tokenprune.serve.settings import KEEP, OPTIONS, PER_FRAME, POLICY, RECIPE, Settings, UnservablePolicyError

LLAVA, QWEN = (SimpleNamespace(model_type=name) for name in ("llava", "qwen2_5_vl"))


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """Writes a recipe and names it in the environment."""
    for name in (POLICY, KEEP, OPTIONS, PER_FRAME):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(RECIPE, str(tmp_path / "recipe.json"))

    def write(*policies, keep=0.4, positions="compact", model_type="llava", told=None):
        model = {"type": model_type, "fingerprint": "0", "name": "mine"}
        Recipe(policies, keep, "mean", positions, model, told or versions()).write(tmp_path / "recipe.json")

    return write


@pytest.mark.parametrize("keep", [0.4, 64])
def test_a_recipe_is_served_without_a_word_where_it_was_measured_as_it_is_served(recipe, keep):
    recipe(make_policy("random", seed=3), keep=keep)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Settings.of(LLAVA)
    assert (found.name, found.policy.seed, found.keep) == ("random", 3, keep)
    assert type(found.keep) is type(keep)


@pytest.mark.parametrize(
    ("policy", "given", "config", "told"),
    [
        ("divprune", {}, QWEN, "measured on model type 'llava', and this is 'qwen2_5_vl'"),
        ("divprune", {"positions": "original"}, LLAVA, "with original positions, and the engine has compact ones"),
        ("divprune", {"model_type": "qwen2_5_vl"}, QWEN, "with compact positions, and the engine has original ones"),
        ("auto", {}, LLAVA, "goes on in the decoder, which an engine does not allow"),
        ("divprune", {"told": {"torch": "1.0"}}, LLAVA, "measured with torch 1.0"),
    ],
)
def test_it_warns_where_the_engine_does_something_else(recipe, policy, given, config, told):
    recipe(make_policy(policy), **given)
    with pytest.warns(RecipeWarning, match=told):
        Settings.of(config)


def test_what_an_engine_cannot_follow_is_refused(recipe, monkeypatch):
    recipe(make_policy("divprune"), make_policy("fastv"))
    with pytest.raises(ValueError, match=f"^{RECIPE}=.* has policies divprune\\+fastv, and an engine takes one"):
        Settings.of(LLAVA)
    recipe(make_policy("prumerge"), keep=None)
    with pytest.raises(ValueError, match="has no keep"):
        Settings.of(LLAVA)
    recipe(make_policy("divprune"), keep="coverage:0.95")
    with pytest.raises(ValueError, match=f"^{RECIPE}=.* has keep 'coverage:0.95', which is found from the tokens"):
        Settings.of(LLAVA)
    recipe(make_policy("divprune@pixels"))
    with pytest.raises(ValueError, match="has policy 'divprune@pixels', which reads patch embeddings"):
        Settings.of(LLAVA)
    recipe(make_policy("fastv"))
    with pytest.raises(UnservablePolicyError, match="decoder"):
        Settings.of(LLAVA)
    recipe(make_policy("divprune"))
    monkeypatch.setenv(KEEP, "0.5")
    with pytest.raises(ValueError, match=f"brings its own {KEEP}; set one or the other"):
        Settings.of(LLAVA)


def test_a_recipe_without_a_budget_of_a_policy_that_chooses_by_pixels(recipe):
    recipe(make_policy("pixelprune", tau=0.5), keep=None, positions="original", model_type="qwen2_5_vl")
    found = Settings.of(QWEN)
    assert (found.name, found.policy.tau, found.keep) == ("pixelprune", 0.5, None)
