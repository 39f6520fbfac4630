"""Recipes: written, read, applied, and what is said where they do not fit."""

import dataclasses
import json
import warnings

import pytest
import torch

from tokenprune import Recipe, RecipeWarning, apply_pruning, pruning, pruning_status, remove_pruning
from tokenprune.eval import minivlm
from tokenprune.policies import make_policy, registry
from tokenprune.recipe import fingerprint, versions


@pytest.fixture(scope="module")
def model():
    return minivlm.load()[0]


def recipe(model_, /, *policies, keep=0.5, **changes):
    told = {"type": model_.config.model_type, "fingerprint": fingerprint(model_), "name": "mine"}
    made = Recipe(policies or (make_policy("divprune"),), keep, "mean", "original", told, versions(), {"made": "now"})
    return dataclasses.replace(made, **changes)


def applied(model, what):
    """The status under what is applied, with warnings as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pruning(model, what):
            return pruning_status(model)


def test_every_policy_survives_a_file_with_all_its_options(model, tmp_path):
    for name, cls in registry().items():
        for policy in (cls(), *(make_policy(f"{name}@{preset}") for preset in cls.presets)):
            recipe(model, policy).write(tmp_path / "recipe.json")
            assert Recipe.read(tmp_path / "recipe.json") == recipe(model, policy)
    before_the_tower = recipe(model, make_policy("grid@pixels"))
    before_the_tower.write(tmp_path / "recipe.json")
    assert Recipe.read(tmp_path / "recipe.json") == before_the_tower


@pytest.mark.parametrize("how", ["path", "text", "object"])
def test_a_recipe_is_applied_like_what_it_says(model, tmp_path, how):
    made = recipe(model, make_policy("divprune"), make_policy("fastv", layer=3), keep=0.75, positions="compact")
    made.write(tmp_path / "recipe.json")
    given = {"path": tmp_path / "recipe.json", "text": str(tmp_path / "recipe.json"), "object": made}[how]
    status = applied(model, given)
    with pruning(model, list(made.policies), 0.75, positions="compact"):
        assert [*map(str, pruning_status(model).stages)] == [*map(str, status.stages)]
    assert status.positions == "compact"
    assert pruning_status(model) is None


def test_a_budget_that_counts_what_is_left_stays_one(model):
    made = recipe(model, make_policy("fastv"), keep=0.2, budget="final")
    assert "0.2 of the tokens" in str(applied(model, made))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"model": {"type": "qwen2_5_vl", "fingerprint": "0", "name": "other"}},
            "model type 'qwen2_5_vl'.* is 'llava'",
        ),
        ({"model": {"type": "llava", "fingerprint": "0", "name": "other"}}, "measured on other.*other weights"),
        ({"versions": {"transformers": "1.2"}}, "with transformers 1.2, and .* is installed"),
    ],
)
def test_another_model_or_version_is_warned_of(model, change, told):
    with pytest.warns(RecipeWarning, match=told) as caught:
        apply_pruning(model, recipe(model, **change))
    assert caught[0].filename == __file__
    remove_pruning(model)


@pytest.mark.parametrize("beside", [{"keep": 0.5}, {"budget": "mean"}, {"positions": "original"}, {"layer": 3}])
def test_nothing_goes_beside_a_recipe(model, beside):
    with pytest.raises(ValueError, match=f"a recipe brings its own {next(iter(beside))}"):
        apply_pruning(model, recipe(model), **beside)
    assert pruning_status(model) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content.pop("recipe"), "marks them with the key recipe"),
        (lambda content: content.update(recipe=2), "it has format 2, and this version of tokenprune reads 1"),
        (lambda content: content.pop("keep"), "'keep' is missing"),
        (lambda content: content.update(budget="most"), "budget='most' is unknown; accepted: 'mean', 'final'"),
        (lambda content: content.update(positions="new"), "positions='new' is unknown"),
        (lambda content: content["policies"][0].update(name="no"), "unknown policy 'no'"),
        (lambda content: content["policies"][0].update(options={"no": 1}), "unknown option 'no'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(model, tmp_path, change, told):
    path = tmp_path / "recipe.json"
    recipe(model).write(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{path.name} is no recipe that can be applied: .*{told}"):
        apply_pruning(model, str(path))
    path.write_text("{")
    with pytest.raises(ValueError, match="it is no JSON"):
        apply_pruning(model, path)
    with pytest.raises(FileNotFoundError):
        apply_pruning(model, "none.json")


def test_a_fingerprint_is_that_of_weights_and_config(model):
    same = fingerprint(model)
    assert fingerprint(minivlm.load()[0]) == same
    half = minivlm.load()[0].to(torch.bfloat16)
    assert fingerprint(half) == same
    half.lm_head.weight.data += 0.5
    assert fingerprint(half) != same
    half = minivlm.load()[0]
    half.config.text_config.rms_norm_eps *= 2
    assert fingerprint(half) != same
    if "easy-vqa" in minivlm.NAMES:
        assert fingerprint(minivlm.load("easy-vqa")[0]) != same
    with pruning(model, "fastv", 0.6):
        assert fingerprint(model) == same
