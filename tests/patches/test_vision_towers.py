"""The facts about a vision tower go by the tower's own type, not by the family's."""

import pytest
import torch
from transformers import Dinov2Config, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig

from tokenprune import apply_pruning, list_policies, pruning, pruning_report, remove_pruning
from tokenprune.policies import make_policy

from ..builders import IMAGE, PATCH, TEXT, spread_weights
from ..families import Batch
from ..oracles import check_against_oracles, check_decoder_stage, generate
from ..policies_table import CHANGES_FEATURES, DEEP, POLICIES

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
    for policy in ("tome", "flowcut", "downsample"):
        with pytest.raises(ValueError, match="Pixtral tower takes all pictures as one sequence"):
            apply_pruning(with_pixtral, policy)


def test_a_tower_that_nothing_is_known_about():
    """Policies that look at projected tokens alone prune it; those that read the encoder name it."""
    vision = Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=24, patch_size=PATCH, mlp_ratio=2
    )
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = spread_weights(LlavaForConditionalGeneration(config))
    rows = prompt([[3, (24, 24), 5], [2, (24, 24), 3, (24, 24), 4]])
    ids = [[t for t in row.tolist() if t != BREAK] for row in rows.inputs["input_ids"]]
    length = max(map(len, ids))
    inputs = dict(
        input_ids=torch.tensor([[0] * (length - len(s)) + s for s in ids]),
        pixel_values=rows.inputs["pixel_values"],
    )
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    runs = [(row, (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0].split(36)) for row in (0, 1)]
    batch = Batch(inputs, [(row, part.tolist(), "image") for row, parts in runs for part in parts])
    for policy in list_policies():
        made = make_policy(policy)
        if made.encoder_spec() is None and made.stages == ("vision",):
            options = {"depths": ()} if policy == "auto" else {}
            changed = policy in CHANGES_FEATURES
            check_against_oracles(model, batch, policy, 0.3, "original", changed, **options)
        elif made.stages != ("decoder",):
            with pytest.raises(ValueError, match="before the vision tower" if made.stages == ("pixels",) else "dinov2"):
                apply_pruning(model, policy)
    remove_pruning(model)
