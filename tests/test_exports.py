"""Every name that users can hold on to. A change here is a change for them: deprecate first, see CONTRIBUTING.md."""

from __future__ import annotations

import argparse
import inspect
from importlib.metadata import distribution

import pytest

import tokenprune
from tokenprune import cli, ops, policies
from tokenprune.serve import settings

PUBLIC = {
    "AdaptiveBudget",
    "CoverageBudget",
    "EnergyBudget",
    "DecoderView",
    "EncoderFacts",
    "EncoderSpec",
    "EncoderValues",
    "Family",
    "History",
    "InputFacts",
    "Keep",
    "Policy",
    "BudgetMeaning",
    "Positions",
    "Prompt",
    "PrunedCacheError",
    "PrunedSequence",
    "PruningReport",
    "PruningStatus",
    "Recipe",
    "RecipeWarning",
    "Record",
    "Schedule",
    "Selection",
    "TowerCut",
    "TowerView",
    "UnknownPolicyError",
    "UnreachableBudgetError",
    "UnsupportedModelError",
    "VisualShape",
    "VisualTokens",
    "__version__",
    "apply_pruning",
    "draft",
    "expand_logits",
    "list_policies",
    "list_supported_models",
    "prune_labels",
    "pruning",
    "pruning_report",
    "pruning_status",
    "register",
    "register_family",
    "remove_pruning",
    "tune",
}
OPS = {
    "TokenCover",
    "attention_received",
    "coverage_select",
    "dpp_select",
    "implementation",
    "max_min_select",
    "max_sum_select",
    "token_coverage_select",
    "topk_gather",
    "topk_select",
}
POLICIES = {
    "AtPixels",
    "Auto",
    "BatchedPolicy",
    "CDPruner",
    "CoverPruner",
    "DART",
    "DivPrune",
    "Downsample",
    "EADP",
    "EVS",
    "IPCV",
    "Erase",
    "FastV",
    "FastVID",
    "FlashVID",
    "FlowCut",
    "FoPru",
    "Grid",
    "HoliTom",
    "HoloV",
    "MMTok",
    "PixelPrune",
    "Policy",
    "Preset",
    "PriorTR",
    "PruMerge",
    "PruMergePlus",
    "PyramidDrop",
    "RLT",
    "Random",
    "Recoverable",
    "ScheduledPolicy",
    "Scope",
    "Sieve",
    "SparseVLM",
    "Stage",
    "ToDRE",
    "ToMe",
    "TokenFlex",
    "UnknownPolicyError",
    "VTW",
    "VidCom2",
    "VisPruner",
    "VisionZip",
    "make_policy",
    "register",
    "registry",
}
#: What a policy declares or overrides.
POLICY_MEMBERS = {
    "adaptive",
    "budget_weight",
    "decoder_counts",
    "by_tile",
    "chooses_groups",
    "chooser",
    "decoder_follow_up",
    "decoder_layers",
    "decoder_select",
    "decoder_select_many",
    "deviates",
    "encoder_select",
    "encoder_spec",
    "exact",
    "keeps",
    "label",
    "name",
    "needs",
    "paper",
    "per_frame",
    "pixel_features",
    "presets",
    "proportional",
    "resized_shape",
    "restoration",
    "select",
    "select_many",
    "source_indices",
    "stage",
    "stages",
    "with_mean",
}
#: Former names of these, which work with a warning.
FORMER_MEMBERS = {
    "deep_layers",
    "deep_select",
    "deep_select_many",
    "deeper",
    "encoder",
    "places",
    "resized",
    "tower_select",
    "way",
}
PATCHES = {"Family", "Pruner", "Record", "UnsupportedModelError", "family_of", "register_family"}
COMMANDS = {
    "demo": "policy keep positions samples out json",
    "bench": "model policy keep positions tasks samples split against flops out json",
    "tune": "model data question samples tolerance confidence metric policy keep positions cost minutes batch-size "
    "new-tokens frames dtype attn device device-map work plot out",
    "show": "image model policy keep positions question new-tokens device out json",
    "profile": "model config layers vision-layers policy keep batch image-size images frames new-tokens rounds dtype "
    "attn device engine concurrency requests batched-tokens clock json plot",
    "eval": "model policy keep positions tasks include-path backend model-args gen-kwargs limit batch-size device "
    "no-full out compare",
    "play": "model policy keep positions new-tokens device dtype host port share no-browser",
    "policies": "stage needs json markdown",
    "models": "all json",
    "completion": "",
    "report": "bench eval profile tune no-gallery model image question policy keep positions new-tokens device title "
    "out",
}
OF_ALL_COMMANDS = {"-h", "--help", "-v", "--verbose", "-q", "--quiet"}
VARIABLES = {
    "TOKENPRUNE_POLICY",
    "TOKENPRUNE_KEEP",
    "TOKENPRUNE_OPTIONS",
    "TOKENPRUNE_PER_FRAME",
    "TOKENPRUNE_RECIPE",
}
ENTRY_POINTS = {
    ("console_scripts", "tokenprune", "tokenprune.cli:main"),
    ("lmms_eval.models", "tokenprune", "tokenprune.eval.lmms.manifests:manifests"),
    ("vllm.general_plugins", "tokenprune", "tokenprune.serve:register"),
}


@pytest.mark.parametrize(("module", "names"), [(tokenprune, PUBLIC), (ops, OPS), (policies, POLICIES)])
def test_a_public_module_exports_exactly_these_names(module, names):
    assert set(module.__all__) == names
    assert all(hasattr(module, name) for name in names)


def test_names_that_patches_of_others_use_are_there():
    from tokenprune import patches

    assert set(patches.__all__) >= PATCHES
    assert all(hasattr(patches, name) for name in patches.__all__)


def test_members_of_a_policy_are_there():
    assert {name for name in POLICY_MEMBERS if not hasattr(tokenprune.Policy, name)} == set()


@pytest.mark.parametrize("name", sorted(FORMER_MEMBERS))
def test_former_members_of_a_policy_are_there(name):
    with pytest.warns(DeprecationWarning, match=name):
        assert hasattr(tokenprune.Policy, name)


@pytest.mark.parametrize("name", ["DecoderView", "TowerCut", "VisualTokens"])
def test_the_former_place_of_types_still_has_them(name):
    from tokenprune import visual

    with pytest.warns(DeprecationWarning, match=f"import {name} from tokenprune"):
        assert getattr(visual, name) is getattr(tokenprune, name)


def test_public_functions_take_these_arguments():
    def arguments(function):
        return list(inspect.signature(function).parameters)

    assert arguments(tokenprune.apply_pruning) == [
        "model",
        "policy",
        "keep",
        "budget",
        "positions",
        "history",
        "options",
    ]
    assert arguments(tokenprune.pruning) == ["model", "policy", "keep", "budget", "positions", "history", "options"]
    assert arguments(tokenprune.draft) == ["model", "policy", "keep", "positions", "pixels", "options"]
    assert arguments(tokenprune.remove_pruning) == ["model"]
    assert arguments(tokenprune.pruning_report) == ["model"]
    assert arguments(tokenprune.prune_labels) == ["model", "labels"]
    assert arguments(tokenprune.expand_logits) == ["model", "logits", "fill"]


def test_commands_take_these_options():
    (commands,) = [a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    taken = {
        name: {option for action in command._actions for option in action.option_strings}
        for name, command in commands.choices.items()
    }
    assert taken == {
        name: OF_ALL_COMMANDS | {f"--{option}" for option in options.split()} for name, options in COMMANDS.items()
    }


def test_an_engine_reads_these_variables():
    names = settings.POLICY, settings.KEEP, settings.OPTIONS, settings.PER_FRAME, settings.RECIPE
    assert set(names) == VARIABLES


def test_entry_points_name_what_is_there():
    ours = distribution("tokenprune-vlm").entry_points
    assert {(entry.group, entry.name, entry.value) for entry in ours} == ENTRY_POINTS
    loaded = {entry.group: entry.load() for entry in ours}
    assert loaded["console_scripts"] is cli.main
    assert all(callable(each) for each in loaded.values())


def test_the_version_is_that_of_the_distribution():
    assert tokenprune.__version__ == distribution("tokenprune-vlm").version
