"""Models on a GPU: the same tokens stay, and the same answers come, as on the host."""

import copy

import pytest
import torch

from tokenprune import pruning, pruning_report

from ..families import FAMILIES, VIDEO_FAMILIES, get_model, ragged_batch
from ..policies_table import DEEP, POLICIES, TOWER

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

TABLE = {**POLICIES, **TOWER, **DEEP}


def run(model, inputs, name, options, **settings):
    """New tokens and what stayed, with a third of the tokens kept."""
    with pruning(model, name, keep=0.3, budget="final", **options):
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, **settings).tolist()
        records = pruning_report(model)
    assert any(r.n_after < r.n_before or r.cuts for r in records)
    return tokens, [(r.indices, r.cuts) for r in records]


def check(family, video, name, options):
    model, inputs = get_model(family), ragged_batch(family, video).inputs
    expected = run(model, inputs, name, options)
    twin = copy.deepcopy(model).cuda()
    assert run(twin, {key: value.cuda() for key, value in inputs.items()}, name, options) == expected


@pytest.mark.parametrize("policy", ["auto", "visionzip"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, policy):
    for video in [False, True][: 1 + (family in VIDEO_FAMILIES)]:
        check(family, video, *TABLE[policy])


@pytest.mark.parametrize("policy", TABLE)
def test_every_policy(policy):
    check("llava", False, *TABLE[policy])


@pytest.mark.parametrize("policy", [name for name in TABLE if name not in TOWER])
def test_every_policy_on_videos(policy):
    check("qwen2_5_vl", True, *TABLE[policy])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_decoding_in_a_cuda_graph(family):
    """With a static cache, transformers compiles the decode step and replays it as a graph."""
    model = copy.deepcopy(get_model(family)).cuda()
    inputs = {key: value.cuda() for key, value in ragged_batch(family).inputs.items()}
    for name in ("divprune", "random"):
        expected = run(model, inputs, *TABLE[name])
        assert run(model, inputs, *TABLE[name], cache_implementation="static") == expected
