"""The public face: what it accepts, and what it refuses and how."""

import re
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from tokenprune import UnsupportedModelError, apply_pruning, list_supported_models, pruning, pruning_report
from tokenprune.patches.families.registry import refused_by_version
from tokenprune.policies import Random

from .families import CASES, FAMILIES, NEWER, PLAIN_FAMILIES, get_model, ragged_batch
from .oracles import generate


def test_unsupported_model_lists_the_supported():
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(UnsupportedModelError, match=r"'bert'.*llava, llava_next.*qwen3_vl"):
        apply_pruning(bert, "divprune")
    with pytest.raises(UnsupportedModelError, match="str object"):
        apply_pruning("llava", "divprune")


def test_unknown_options_and_wrong_types():
    model = get_model("llava")
    with pytest.raises(ValueError, match=r"'sede' for policy 'random'; it takes: seed"):
        apply_pruning(model, "random", sede=1)
    with pytest.raises(ValueError, match="it takes none"):
        apply_pruning(model, "divprune", alpha=1)
    with pytest.raises(ValueError, match="into the policy instance"):
        apply_pruning(model, Random(), seed=1)
    with pytest.raises(TypeError, match="not the class"):
        apply_pruning(model, Random)
    with pytest.raises(ValueError, match="one policy"):
        apply_pruning(model, ["divprune", "random"])
    with pytest.raises(ValueError, match=r"positions='packed'.*'original', 'compact'"):
        apply_pruning(model, "divprune", positions="packed")
    with pytest.raises(ValueError, match="no pruning"):
        pruning_report(model)


def test_embeddings_instead_of_ids():
    model, batch = get_model("llava"), ragged_batch("llava")
    ids = batch.inputs["input_ids"]
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        expected = model(**batch.inputs).logits
        embeds = model.get_input_embeddings()(ids)
        inputs = {k: v for k, v in batch.inputs.items() if k != "input_ids"}
        assert torch.equal(model(inputs_embeds=embeds, **inputs).logits, expected)
        assert torch.equal(model(ids, batch.inputs["pixel_values"], batch.inputs["attention_mask"]).logits, expected)


def test_supported_models_are_the_ones_we_test_and_name():
    known = {
        case.model_type or name for name, case in (CASES | NEWER).items()
    }  # the file of a newer family is there anyway
    refused = set(refused_by_version())
    assert set(list_supported_models()) == known - refused
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    table = readme[readme.index("| model type |") :].partition("\n\n")[0]
    types = "".join(line.split("|")[1] for line in table.splitlines())
    assert set(re.findall(r"`(\w+)`", types)) == known


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in PLAIN_FAMILIES])
def test_no_decoder_stage_where_layers_cannot_follow(family):
    for policy in ("fastv", "todre", ["divprune", "fastv"]):
        with pytest.raises(ValueError, match=rf"'{family}' does not allow.*removal=False"):
            apply_pruning(get_model(family), policy)
    model = get_model(family)
    with pruning(model, "auto", 0.2):  # does without
        generate(model, ragged_batch(family).inputs, steps=2)
        assert all((r.n_after, r.cuts) == (max(1, round(0.2 * r.n_before)), ()) for r in pruning_report(model))
