"""Families of one's own: registered in a process, or by an installed package."""

import copy
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    GitConfig,
    GitForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    dynamic_module_utils,
)

import tokenprune
from tokenprune import Family, UnsupportedModelError, apply_pruning, pruning, register_family, remove_pruning
from tokenprune.patches.families import registry
from tokenprune.patches.families.refusals import REASONS, image_text_types
from tokenprune.patches.families.tower_layers import feature_layer, layers_below_feature
from tokenprune.plugins import use_builtin_only

from .families import CASES, TEXT, get_model, ragged_batch, small_batch
from .oracles import check_against_oracles

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_family"


class HouseLlavaConfig(LlavaConfig):
    model_type = "house_llava"


class HouseLlava(LlavaForConditionalGeneration):
    config_class = HouseLlavaConfig


@pytest.fixture
def example():
    """The example's module; what is registered meanwhile is gone afterwards."""
    registry.families()
    before = dict(registry._FAMILIES)
    spec = importlib.util.spec_from_file_location("house_llava", EXAMPLE / "house_llava.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    registry._FAMILIES.clear()
    registry._FAMILIES.update(before)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(CASES, "house_llava", CASES["llava"])  # what the oracles ask of a family
    stock = get_model("llava")
    config = HouseLlavaConfig(**{k: v for k, v in stock.config.to_dict().items() if k != "model_type"})
    made = HouseLlava(config).to(torch.float64).eval()
    made.load_state_dict(stock.state_dict())
    made.generation_config = stock.generation_config
    return made


@pytest.mark.parametrize(("policy", "merges"), [("divprune", False), ("fopru", False), ("visionzip", True)])
def test_the_example_is_held_to_the_oracles(example, model, policy, merges):
    assert "house_llava" not in tokenprune.list_supported_models()
    assert register_family(example.FAMILY) is example.FAMILY
    assert "house_llava" in tokenprune.list_supported_models()
    check_against_oracles(model, ragged_batch("llava"), policy, 0.3, "original", merges)


def test_it_chooses_what_the_stock_family_chooses(example, model):
    register_family(example.FAMILY)
    batch = ragged_batch("llava")
    kept = []
    for each in (model, get_model("llava")):
        with pruning(each, "visionzip", 0.3), torch.no_grad():
            each(**batch.inputs)
            kept.append([record.indices for record in tokenprune.pruning_report(each)])
    assert kept[0] == kept[1]


def test_its_reason_is_given_where_a_stage_is_not_possible(example, model):
    register_family(example.FAMILY)
    with pytest.raises(ValueError, match="nobody has tried it"):
        apply_pruning(model, "tome")
    remove_pruning(model)


def test_a_taken_model_type_is_refused_unless_it_is_to_be_replaced(example):
    theirs = Family(model_types=("house_llava", "llava"))
    with pytest.raises(ValueError, match="'llava' has a family already"):
        register_family(theirs)
    assert "house_llava" not in tokenprune.list_supported_models()  # all of it or nothing
    assert register_family(theirs, replace=True) is theirs
    assert registry.family_by_type("llava") is theirs
    with pytest.raises(TypeError, match="takes a Family"):
        register_family(example)


def test_registering_again_is_no_error(example):
    assert register_family(example.FAMILY) == register_family(replace(example.FAMILY))


SCRIPT = """
import tokenprune
assert "house_llava" in tokenprune.list_supported_models()
from tokenprune import cli
cli.main(["models"])
"""


def test_it_is_found_once_it_is_installed(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(EXAMPLE)]
    subprocess.run(pip, check=True)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "house_llava" in run.stdout


def test_a_broken_package_does_not_take_the_others_down(plugins, monkeypatch, caplog):
    class Broken:
        name, value = "broken", "nowhere:FAMILY"

        def load(self):
            raise ImportError("no such module")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Broken()])
    monkeypatch.setattr(registry, "_loaded", False)
    assert "llava" in tokenprune.list_supported_models()
    assert "family 'broken' of nowhere:FAMILY could not be loaded: no such module" in caplog.text


def test_a_package_may_derive_its_family_from_one_of_ours(plugins, example, monkeypatch, caplog):
    class Derived:
        name, value = "derived", "somewhere:FAMILY"

        def load(self):
            return replace(registry.family_by_type("llava"), model_types=("derived_vl",))

    monkeypatch.setattr(registry, "entry_points", lambda group: [Derived()])
    monkeypatch.setattr(registry, "_loaded", False)
    assert "derived_vl" in tokenprune.list_supported_models()
    assert caplog.text == ""
    use_builtin_only()
    assert "derived_vl" not in tokenprune.list_supported_models()


@pytest.mark.parametrize(("index", "layer"), [(-1, 4), (-2, 3), (1, 0), (5, 4), ([1, -2], 3), ((3,), 2)])
def test_the_feature_layer_is_the_one_whose_output_is_that_hidden_state(index, layer):
    assert feature_layer(range(5), index) == layer


@pytest.mark.parametrize(("index", "count"), [(-1, 5), (-2, 4), (1, 1), (5, 5), ([1, -2], 0)])
def test_layers_below_a_feature_end_with_its_layer(index, count):
    assert list(layers_below_feature(range(5), index)) == list(range(count))


def test_a_class_that_derives_from_a_supported_one_has_its_family(model):
    """Under its model type, or under one of its own."""

    class Renamed(LlavaForConditionalGeneration):
        pass

    stock = get_model("llava")
    same = Renamed(stock.config).to(torch.float64).eval()
    same.load_state_dict(stock.state_dict())
    same.generation_config = stock.generation_config
    for each in (same, model, peft_of(model)):
        assert registry.family_of(each) == registry.family_by_type("llava")
    for each in (same, model):
        check_against_oracles(each, small_batch("llava"), "visionzip", 0.3, "original", True, steps=2)
    alone = model.model
    assert registry.family_of(alone) == registry.family_by_type("llava")


def peft_of(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"]))


REMOTE = """
from transformers import {name}Config, {name}ForConditionalGeneration

class Mine({name}ForConditionalGeneration):
    config_class = {name}Config
"""


def remote(folder, name, monkeypatch):
    """A class as a checkpoint brings it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
    (folder / "modeling_mine.py").write_text(REMOTE.format(name=name))
    return dynamic_module_utils.get_class_from_dynamic_module("modeling_mine.Mine", folder)


def test_code_of_a_checkpoint_is_refused_unless_a_family_is_registered_for_it(example, tmp_path, monkeypatch):
    made = remote(tmp_path, "Llava", monkeypatch)
    assert made.__module__.startswith("transformers_modules.")
    model = made(get_model("llava").config)
    for each in (model, peft_of(model)):
        with pytest.raises(UnsupportedModelError, match=r"'llava' is not supported: .*remote code.*replace=True"):
            apply_pruning(each, "divprune")
    config = HouseLlavaConfig(**{k: v for k, v in model.config.to_dict().items() if k != "model_type"})
    renamed = made(config)
    with pytest.raises(UnsupportedModelError, match=r"'house_llava' is not supported: .*remote code"):
        apply_pruning(renamed, "divprune")
    register_family(example.FAMILY)
    remove_pruning(apply_pruning(renamed, "divprune"))
    register_family(replace(registry.family_by_type("llava"), no_encoder_stage="theirs"), replace=True)
    remove_pruning(apply_pruning(model, "divprune"))


def test_every_image_text_type_of_transformers_is_supported_or_refused_by_name():
    known, too_old = set(registry.families()), set(registry.refused_by_version())
    assert set(image_text_types()) <= known | too_old | set(REASONS)
    assert not known & (too_old | set(REASONS))
    assert set(registry.refused_types()) == too_old | set(REASONS)


@pytest.mark.parametrize(("first", "taken"), [("5.0", True), ("5.24", True), ("5.24.1", False), ("6", False)])
def test_a_family_may_need_a_version_of_transformers(example, monkeypatch, first, taken):
    monkeypatch.setattr(registry, "version", lambda name: "5.24.0")
    monkeypatch.setattr(registry, "_TOO_OLD", {})
    config = HouseLlavaConfig(vision_config=get_model("llava").config.vision_config, text_config=LlamaConfig(**TEXT))
    registry.register_since(first, "its masks are its own", example.FAMILY, "house-llava")
    assert ("house_llava" in registry.families()) is taken
    assert set(registry.refused_by_version()) == (set() if taken else {"house_llava", "house-llava"})
    assert ("house_llava" in registry.refused_types()) is not taken
    model = HouseLlava(config)
    if taken:
        apply_pruning(model, "divprune")
        return
    why = f"'house_llava' is not supported: before transformers {first}, its masks are its own; 5.24.0 is installed;"
    with pytest.raises(UnsupportedModelError, match=why):
        apply_pruning(model, "divprune")


def test_a_refused_type_is_told_why():
    config = GitConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    config.vision_config.update({"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16})
    with pytest.raises(UnsupportedModelError, match=r"'git' is not supported: it puts pictures before the text.*llava"):
        apply_pruning(GitForCausalLM(config), "divprune")
