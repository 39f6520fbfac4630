"""Policies keep the tokens that their authors' released code keeps.

`<policy>.json` holds what that code kept of the inputs that `inputs.py` makes, recorded by running it. A set names the
release's function, the paper's setting, and the options that give the release's behaviour here. In a case, `kept` are
the indices that stay, ascending; `sums` tell whether the inputs are those of the recording. For decoder policies,
`cuts` say from which layer on tokens are gone, and who is left. Two sets need options (`library_options`) and one sets
them in its cases (`eadp`), since the default differs on purpose; the policy's docstring says why.

Cases are recorded only if disturbing the inputs by more than rounding left the picks the same.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokenprune import DecoderView, Schedule, TowerView, VisualTokens, pruning, pruning_report
from tokenprune.policies import make_policy

from ..builders import CLIP, IMAGE, LLAVA_SIDE, PATCH, TEXT, spread_weights
from . import inputs

FILES = sorted(Path(__file__).parent.glob("*.json"))
CASES = [
    pytest.param(group, case, id=f"{group['set']}-{i}")
    for path in FILES
    for group in json.loads(path.read_text())["sets"]
    for i, case in enumerate(group["cases"])
]
CLOSE = dict(rtol=0, atol=2e-4)  # merged features are recorded to four places


def policy_of(group, case):
    options = {**group["library_options"], **case["options"]}
    if "parts" in case:
        options["parts"] = case["parts"]
    if "counts" in case:
        depths = make_policy(group["policy"]).schedule.depths
        options["schedule"] = Schedule(depths, tuple(case["counts"]))
    return make_policy(group["policy"], **options)


def made(case):
    """The arrays of a case as tensors."""
    if case["inputs"] is None:
        return {}
    arrays = inputs.make(case["inputs"]["make"], case["inputs"]["args"])
    for name, (total, squares, *first) in case["sums"].items():
        wide = arrays[name].astype(np.float64)
        np.testing.assert_allclose([wide.sum(), (wide**2).sum()], [total, squares], rtol=1e-6, atol=2e-5)
        np.testing.assert_allclose(wide.ravel()[: len(first)], first, rtol=1e-6)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def a_video(a, case):
    args = case["inputs"]["args"]
    grid = (args["frames"], args["rows"], args["columns"])
    return VisualTokens(a["tokens"], grids=(grid,), kind="video", encoder_attention=a["attention"].flatten())


def a_joined(a, case):
    logits = a["query"][0].double() @ a["key"].double().T / a["query"].shape[1] ** 0.5
    tokens = a["tokens"][1:]
    return VisualTokens(
        tokens,
        grids=((1, 24, 24),),
        encoder_features=tokens,
        encoder_attention=logits.softmax(-1)[1:].float(),
        encoder_keys=a["key"][1:],
        project=lambda x: x,
    )


def a_picture(a, case):
    """Where merged features are recorded, they are those before the projector."""
    args, merges = case["inputs"]["args"], "merged_features" in case
    return VisualTokens(
        a["tokens"] if merges else a["projected"],
        grids=((1, args["rows"], args["columns"]),),
        text=a["words"],
        question=a["words"],
        encoder_features=a["tokens"],
        encoder_attention=a["attention"].mean(0),
        encoder_keys=a["keys"].mean(0)[1:],
        project=(lambda x: x) if merges else (lambda x: x @ a["projector"]),
    )


def check_vision(policy, a, case):
    tokens = dict(video=a_video, joined=a_joined, picture=a_picture)[case["inputs"]["make"]](a, case)
    selection = policy.select(tokens, case["n_keep"])
    kept = selection.indices.tolist()
    row = {token: i for i, token in enumerate(kept)}
    if "extra" in case:  # the release puts one more token at the end, which has no index there
        (more,) = set(kept) - set(case["kept"])
        kept.remove(more)
        torch.testing.assert_close(selection.features[row[more], :8], torch.tensor(case["extra"]), **CLOSE)
    assert kept == case["kept"]
    if "merged_features" in case:
        expected = torch.tensor(case["merged_features"])
        merged = selection.features[[row[token] for token in case.get("merged", case["kept"])]]
        torch.testing.assert_close(merged[:, : expected.shape[1]], expected, **CLOSE)


def check_encoder(policy, a, case):
    """All borders of a tower, or one border behind one layer; token 0 is CLS."""
    is_tower = case["inputs"]["make"] == "tower"
    layers = len(a["key"]) if is_tower else 1
    heads = {name: a[name if name in a else "key"] for name in ("query", "key", "value")}
    heads = heads if is_tower else {name: value[None] for name, value in heads.items()}
    m = heads["key"].shape[2]
    hidden, sizes, left = a.get("hidden", torch.zeros(m, 1))[None], torch.ones(1, m), torch.arange(m)
    memory: dict = {}
    for cut in range(layers):
        view = TowerView(
            hidden=hidden,
            **{name: value[cut][None, :, left] for name, value in heads.items()},
            scaling=heads["key"].shape[-1] ** -0.5,
            cls=True,
            sizes=sizes,
            cut=cut,
            n_cuts=layers,
            n_before=m - 1,
            n_keep=case["n_keep"],
            memory=memory,
        )
        answer = policy.encoder_select(view)
        if answer is not None:
            keep = answer.keep[0]
            left = left[keep]
            hidden = hidden[:, keep] if answer.hidden is None else answer.hidden
            sizes = sizes[:, keep] if answer.sizes is None else answer.sizes
        if "left_after_layer" in case:
            assert len(left) - 1 == case["left_after_layer"][cut]
    assert (left[1:] - 1 if is_tower else left).tolist() == case["kept"]
    if "sizes" in case:
        assert sizes[0].round().int().tolist() == case["sizes"]
        every = hidden[0, :: case["features_every"]]
        torch.testing.assert_close(every[:, :3], torch.tensor(case["features"]), **CLOSE)


def check_decoder(policy, a, case):
    """All cuts of a prompt with 12 tokens before the picture, and 30 after it."""
    before, n, after = 12, 576, 30
    arrays = {name: value.numpy() for name, value in a.items()}
    alive, memory, found = np.arange(before + n + after), {}, []
    for layer, cut in zip(policy.decoder_layers(case.get("n_layers", 32), 1), case["cuts"], strict=True):
        # The release of PyramidDrop ranks by the layer above a cut; it is given that attention here.
        heard = layer if cut.get("attention_of") == cut["gone_from"] else layer - 1
        m, left = len(alive), len(alive) - before - after
        keys = a.get(f"key_{heard}")
        view = DecoderView(
            visual=[torch.arange(before, before + left)],
            n_keep=[case["n_keep"]],
            text=torch.arange(before + left, m),
            last=m - 1,
            received=lambda rows, heard=heard, alive=alive: torch.from_numpy(
                inputs.received(arrays, heard, alive, rows.numpy())
            ),
            keys=torch.zeros(m, 1) if keys is None else keys[:, alive].transpose(0, 1).flatten(1),
            hidden=lambda alive=alive: a["hidden"][alive],
            embeds=lambda alive=alive: a["embeds"][alive],
            layer=layer,
            n_layers=case.get("n_layers", 32),
            lowest=1,
            entered=[n],
            memory=memory,
        )
        stays = np.ones(m, dtype=bool)
        masks = policy.decoder_select(view)
        if masks is not None:
            stays[before : before + left] = masks[0].numpy()
        alive = alive[stays]
        visual = alive[(alive >= before) & (alive < before + n)] - before
        found.append({"gone_from": layer, "kept": visual.tolist()})
    assert found == [{name: cut[name] for name in ("gone_from", "kept")} for cut in case["cuts"]]


@pytest.mark.parametrize(("group", "case"), CASES)
def test_picks_are_those_of_the_release(group, case):
    policy, a = policy_of(group, case), made(case)
    if "cuts" in case:
        check_decoder(policy, a, case)
    elif case["inputs"]["make"] in ("tower", "layer"):
        check_encoder(policy, a, case)
    else:
        check_vision(policy, a, case)


@pytest.fixture(scope="module")
def deep_decoder():
    """A LLaVA with as many decoder layers as the papers' 7B model."""
    vision = CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **CLIP)
    text = LlamaConfig(**(TEXT | {"num_hidden_layers": 32}))
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, tie_word_embeddings=False)
    return spread_weights(LlavaForConditionalGeneration(config))


@torch.no_grad()
@pytest.mark.parametrize("name", ["dart", "fastv", "pyramiddrop", "sparsevlm", "vtw"])
def test_tokens_of_a_model_are_gone_from_the_layers_of_the_release(deep_decoder, name):
    """With 36 visual tokens; at the default options."""
    first = next(param.values[1] for param in CASES if param.values[0]["policy"] == name)
    ids = torch.tensor([[1, *[IMAGE] * 36, 5, 6, 7, 8]])
    pixels = torch.randn(1, 3, LLAVA_SIDE, LLAVA_SIDE, generator=torch.Generator().manual_seed(0)).double()
    with pruning(deep_decoder, [name], [4]):  # left after its last cut
        deep_decoder(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
        (record,) = pruning_report(deep_decoder)
    assert [cut.layer for cut in record.cuts] == [cut["gone_from"] for cut in first["cuts"]]
    if "counts" in first:  # of as many times as many tokens
        assert [len(cut.indices) for cut in record.cuts] == [
            round(4 * n / first["counts"][-1]) for n in first["counts"]
        ]
