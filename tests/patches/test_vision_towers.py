"""The facts about a vision tower go by the tower's own type, not by the family's."""

import functools

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    DeiTConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PixtralVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from tokenprune import apply_pruning, list_policies, pruning, pruning_report, remove_pruning
from tokenprune.patches.families.registry import family_of
from tokenprune.policies import make_policy

from ..builders import IMAGE, PATCH, TEXT, spread_weights
from ..families import Batch
from ..oracles import check_against_oracles, check_decoder_stage, generate
from ..policies_table import CHANGES_FEATURES, DEEP, POLICIES
from .test_encoder_maps import check_map

SIZES = ((24, 32), (16, 24), (32, 16))  # pixels
BREAK = 7


@pytest.fixture(scope="module")
def with_pixtral():
    """As Pixtral 12B is ported: model type `llava`, pictures of any size, a break token after every row."""
    torch.manual_seed(0)
    tower = PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=64,
        patch_size=PATCH, head_dim=8,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip
    return spread_weights(LlavaForConditionalGeneration(config))


def prompt(rows, seed=0):
    """A left-padded batch of rows of sizes and numbers of text tokens."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [part for row in rows for part in row if isinstance(part, tuple)]
    height, width = (max(size[i] for size in sizes) for i in (0, 1))
    ids, visuals = [], []
    for row, parts in enumerate(rows):
        sequence = [1]
        for part in parts:
            if isinstance(part, int):
                sequence += torch.randint(8, 89, (part,), generator=generator).tolist()
                continue
            columns = []
            for _ in range(part[0] // PATCH):
                columns += range(len(sequence), len(sequence) + part[1] // PATCH)
                sequence += [IMAGE] * (part[1] // PATCH) + [BREAK]
            visuals.append((row, columns, "image"))
        ids.append(sequence)
    length = max(map(len, ids))
    inputs = dict(
        input_ids=torch.tensor([[0] * (length - len(s)) + s for s in ids]),
        attention_mask=torch.tensor([[0] * (length - len(s)) + [1] * len(s) for s in ids]),
        pixel_values=torch.randn(len(sizes), 3, height, width, generator=generator, dtype=torch.float64),
        image_sizes=torch.tensor(sizes),
    )
    return Batch(inputs, [(r, [length - len(ids[r]) + c for c in columns], kind) for r, columns, kind in visuals])


def ragged():
    return prompt([[3, SIZES[0], 5], [2, SIZES[1], 3, SIZES[2], 4], [9, SIZES[2], 6]])


@pytest.mark.parametrize("label", POLICIES)
def test_pixtral_under_llava(with_pixtral, label):
    name, options = POLICIES[label]
    records = check_against_oracles(with_pixtral, ragged(), name, 0.3, "original", name in CHANGES_FEATURES, **options)
    assert [r.grid for r in records] == [(1, 6, 8), (1, 4, 6), (1, 8, 4), (1, 8, 4)]


def test_pixtral_under_llava_before_the_tower(with_pixtral):
    policies = ["grid@pixels", "visionzip"]  # the second reads attention and features of what is left
    records = check_against_oracles(with_pixtral, ragged(), policies, 0.3, "original", changes_features=True)
    assert all(set(r.indices) <= set(r.kept_after["pixels"]) < set(range(r.n_before)) for r in records)


def test_pixtral_under_llava_inside_the_tower(with_pixtral):
    """Where a token is one patch; behind tokens that left before the tower, and before a policy that reads it."""
    policies = ["grid@pixels", "flowcut", "visionzip"]
    records = check_against_oracles(with_pixtral, ragged(), policies, 0.2, "original", changes_features=True)
    for r in records:
        assert set(r.indices) <= set(r.kept_after["encoder"]) < set(r.kept_after["pixels"]) < set(range(r.n_before))


@pytest.mark.parametrize("label", ["fastv", "divprune+fastv", "auto"])
def test_pixtral_under_llava_in_the_decoder(with_pixtral, label):
    policies, options = DEEP[label]
    check_decoder_stage(with_pixtral, ragged(), policies, **options)


@pytest.mark.parametrize("policy", ["fopru", "visionzip", "vispruner", "todre"])
def test_pictures_of_a_packed_tower_are_told_apart(with_pixtral, policy):
    """What is heard of each picture is what is heard of it alone."""
    if policy == "todre":
        policy = make_policy("todre", removal=False)
    batch = ragged()
    with pruning(with_pixtral, policy, 0.3, budget="final"):
        generate(with_pixtral, batch.inputs, steps=1)
        together = [r.indices for r in pruning_report(with_pixtral)]
        for i, size in enumerate([SIZES[0], SIZES[1], SIZES[2], SIZES[2]]):
            alone = prompt([[3, size, 5]])
            alone.inputs["pixel_values"] = batch.inputs["pixel_values"][i : i + 1]
            generate(with_pixtral, alone.inputs, steps=1)
            assert pruning_report(with_pixtral)[0].indices == together[i]


def test_one_picture_without_its_size(with_pixtral):
    inputs = prompt([[3, (24, 24), 5]]).inputs
    del inputs["image_sizes"]
    for policy in ("divprune", "fopru", "visionzip"):
        with pruning(with_pixtral, policy, 0.3, budget="final"):
            generate(with_pixtral, inputs, steps=2)
            assert pruning_report(with_pixtral)[0].n_after == 11


def test_stages_that_a_tower_does_not_allow_are_refused(with_pixtral):
    for policy in ("tome", "downsample"):
        with pytest.raises(ValueError, match="Pixtral tower takes all pictures as one sequence"):
            apply_pruning(with_pixtral, policy)


def square(model, rows):
    """As `prompt`, of square pictures without breaks, each of as many tokens as the model makes of it."""
    tokens = [[part for part in row if isinstance(part, int)] for row in rows]
    given = prompt(rows).inputs["pixel_values"]
    with torch.no_grad():
        features = model.model.get_image_features(pixel_values=given)
    each = len(getattr(features, "pooler_output", features)[0])
    generator, ids, visuals = torch.Generator().manual_seed(0), [], []
    for row, (before, *rest) in enumerate(tokens):
        sequence = [1, *torch.randint(8, 89, (before,), generator=generator).tolist()]
        for after in rest:
            visuals.append((row, list(range(len(sequence), len(sequence) + each)), "image"))
            sequence += [IMAGE] * each + torch.randint(8, 89, (after,), generator=generator).tolist()
        ids.append(sequence)
    length = max(map(len, ids))
    inputs = dict(
        input_ids=torch.tensor([[0] * (length - len(row)) + row for row in ids]),
        attention_mask=torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids]),
        pixel_values=given,
    )
    return Batch(inputs, [(row, [length - len(ids[row]) + c for c in columns], kind) for row, columns, kind in visuals])


_SMALL = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=24, patch_size=PATCH)
_DEEP = dict(intermediate_size=24)
#: Towers beside CLIP and SigLIP, and whether they have a CLS token.
OTHERS = {
    "aimv2_vision_model": (_DEEP, False),
    "chinese_clip_vision_model": (_DEEP, True),
    "dinov2": (dict(mlp_ratio=2), True),
    "dinov2_with_registers": (dict(mlp_ratio=2, num_register_tokens=2), True),
    "dinov3_vit": (_DEEP, True),
    "ijepa": (_DEEP, False),
    "mlcd": (_DEEP, True),
    "vit": (_DEEP, True),
}


def with_tower(kind, config=LlavaConfig, model=LlavaForConditionalGeneration):
    options, has_cls = OTHERS[kind]
    vision = AutoConfig.for_model(kind, **_SMALL, **options)
    made = config(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, tie_word_embeddings=False
    )
    if config is LlavaConfig:
        made.vision_feature_select_strategy = "default" if has_cls else "full"
    torch.manual_seed(0)
    return spread_weights(model(made))


TWO_ROWS = [[3, (24, 24), 5], [2, (24, 24), 3, (24, 24), 4]]


@pytest.mark.parametrize("kind", OTHERS)
def test_other_towers_are_read(kind):
    """Policies that read the encoder read that of its own type; none acts between its layers."""
    if kind not in CONFIG_MAPPING or kind not in MODEL_MAPPING_NAMES:
        pytest.skip("this transformers has no such tower")
    model = with_tower(kind)
    batch = square(model, TWO_ROWS)
    for policy in ("fopru-rank", "recoverable"):
        name, options = POLICIES[policy]
        options = dict(options, changes_features=name in CHANGES_FEATURES, steps=2)
        records = check_against_oracles(model, batch, name, 0.3, "original", **options)
        assert all((r.grid == (1, 6, 6)) is (r.n_before == 36) for r in records)
        assert all(r.n_before == 36 + 2 * ("registers" in kind) for r in records)
    with pytest.raises(ValueError, match=f"its vision tower is of type '{kind}"):
        apply_pruning(model, "flowcut")
    images = {name: value for name, value in batch.inputs.items() if name != "attention_mask"}
    check_map(model, family_of(model), images, "image")


def test_vipllava_with_another_tower():
    layers = "vision_feature_layers" if hasattr(VipLlavaConfig(), "vision_feature_layers") else "vision_feature_layer"
    several = functools.partial(VipLlavaConfig, **{layers: [-2, -3, 1]})
    model = with_tower("dinov2", several, VipLlavaForConditionalGeneration)
    for policy in ("fopru", "visionzip"):
        check_against_oracles(model, square(model, TWO_ROWS), policy, 0.3, "original", policy == "visionzip", 2)
    with pytest.raises(ValueError, match="'dinov2'"):
        apply_pruning(model, "tome")


def test_a_tower_that_nothing_is_known_about():
    """Policies that look at projected tokens alone prune it; those that read the encoder name it."""
    vision = DeiTConfig(**_SMALL, intermediate_size=24)
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = spread_weights(LlavaForConditionalGeneration(config))
    batch = square(model, TWO_ROWS)
    for policy in list_policies():
        made = make_policy(policy)
        if made.encoder_spec() is None and made.stages == ("vision",):
            options = {"depths": ()} if policy == "auto" else {}
            changed = policy in CHANGES_FEATURES
            check_against_oracles(model, batch, policy, 0.3, "original", changed, **options)
        elif made.stages != ("decoder",):
            with pytest.raises(ValueError, match="before the vision tower" if made.stages == ("pixels",) else "deit"):
                apply_pruning(model, policy)
    remove_pruning(model)
