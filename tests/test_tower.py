"""Tokens that leave inside the vision tower: equal to hiding them there, and to a stock language model behind it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokenprune import TowerCut, TowerView, apply_pruning, pruning, remove_pruning
from tokenprune.patches.families.llava import inner_tower
from tokenprune.patches.families.registry import family_by_type
from tokenprune.policies import FlowCut, ToMe

from .families import CLIP, FAMILIES, IMAGE, LLAVA_SIDE, PATCH, TEXT, get_model, ragged_batch, spread_weights
from .oracles import assert_same, check_against_oracles, deep_masked, generate, keep_mask, prune, upper_masks
from .policies_table import TOWER

TOWER_FAMILIES = [f for f in FAMILIES if (e := family_by_type(f).encoder) is not None and e.layers is not None]


def test_families_with_a_stage_in_the_tower():
    assert {"llava", "llava_next", "deepseek_vl"} <= set(TOWER_FAMILIES) <= {*FAMILIES} - {"vipllava", "qwen2_vl"}


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("label", [label for label in TOWER if "fastv" not in label])
@pytest.mark.parametrize("family", TOWER_FAMILIES)
def test_oracle(family, label, positions):
    policy, options = TOWER[label]
    records = check_against_oracles(
        get_model(family), ragged_batch(family), policy, 0.3, positions, changes_features=True, **options
    )
    for r in records:
        if family == "llava_next":  # a budget for each tile, and of crops, padding is cut off afterwards
            assert 0.15 * r.n_before < r.n_after < 0.45 * r.n_before
            assert not set(r.indices) & set(r.separators)
        elif label == "downsample":  # three rows of four, or of three
            assert r.n_after in (9, 12)
        else:
            assert r.n_after == round(0.3 * r.n_before)


@pytest.mark.parametrize("label", [label for label in TOWER if "fastv" in label])
@pytest.mark.parametrize("family", [f for f in TOWER_FAMILIES if not FAMILIES[f].blocks])
def test_oracle_with_a_stage_in_the_decoder(family, label):
    policy, options = TOWER[label]
    model, batch = get_model(family), ragged_batch(family)
    run, fed, records = prune(model, batch, policy, 0.2, "original", **options)
    assert_same(run, deep_masked(model, batch, keep_mask(batch, records), upper_masks(batch, records), fed=fed))
    if family != "llava_next":
        assert all(len(r.deep_indices) == round(0.2 * r.n_before) for r in records)


@pytest.mark.parametrize("family", TOWER_FAMILIES)
def test_keeping_all_is_the_stock_model_to_the_bit(family):
    model, batch = get_model(family), ragged_batch(family)
    before = generate(model, batch.inputs)
    for policy in ("tome", "flowcut", "downsample"):
        with pruning(model, policy, 1.0):
            assert torch.equal(generate(model, batch.inputs).logits, before.logits)
    with pruning(model, "tome", 0.3):
        assert not torch.equal(generate(model, batch.inputs).logits, before.logits)
    assert torch.equal(generate(model, batch.inputs).logits, before.logits)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in TOWER_FAMILIES])
def test_other_families_say_why_not(family):
    with pytest.raises(ValueError, match=f"'{family}' does not allow: .* before the language model"):
        apply_pruning(get_model(family), "tome", 0.5)


# ---------------------------------------------------------------- a deeper tower


@pytest.fixture(scope="module")
def deep():
    """A LLaVA whose tower has seven layers, six below the projector."""
    vision = CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **(CLIP | dict(num_hidden_layers=7)))
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, tie_word_embeddings=False
    )
    return spread_weights(LlavaForConditionalGeneration(config))


def tower_of(model):
    return inner_tower(model.model.vision_tower)


def pixels(n: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, LLAVA_SIDE, LLAVA_SIDE, generator=generator, dtype=torch.float64)


def features(model, images) -> torch.Tensor:
    out = model.model.get_image_features(images)
    return torch.stack(list(getattr(out, "pooler_output", out)))


def record_cuts(model, images, policy, keep):
    """Features of a pruned tower, and what was left before each of its layers, CLS first."""
    layers, left = tower_of(model).encoder.layers, []
    stage = apply_pruning(model, policy, keep).model._tokenprune.encoder
    choose = stage._choose

    def watch(call, cut, hidden):
        chosen = choose(call, cut, hidden)
        n = hidden.shape[1] - 1
        now = left[-1] if left else torch.arange(n + 1).expand(len(hidden), -1)
        left.append(now if chosen is None else now.gather(1, chosen.keep))
        return chosen

    stage._choose = watch
    try:
        return features(model, images), left, layers
    finally:
        remove_pruning(model)


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 2, 3])
def test_flowcut_equals_hiding_tokens_in_the_tower(deep, every):
    images = pixels()
    got, left, layers = record_cuts(deep, images, FlowCut(every=every), 0.25)
    assert [x.shape[1] for x in left] == sorted((x.shape[1] for x in left), reverse=True)
    assert left[-1].shape[1] == 1 + 9 and len({x.shape[1] for x in left}) == {1: 5, 2: 3, 3: 3}[every]

    def hide(i):
        hidden = torch.full((len(images), 1, 1, 37), -torch.inf, dtype=torch.float64)
        hidden[:, 0, 0].scatter_(1, left[i], 0.0)
        return lambda module, args, kwargs: ((args[0], hidden.expand(-1, -1, 37, -1), *args[2:]), kwargs)

    handles = [layer.register_forward_pre_hook(hide(i), with_kwargs=True) for i, layer in enumerate(layers[1:6])]
    try:
        expected = features(deep, images)
    finally:
        for handle in handles:
            handle.remove()
    kept = left[-1][:, 1:] - 1
    index = kept[..., None].expand(-1, -1, expected.shape[2])
    torch.testing.assert_close(got.gather(1, index), expected.gather(1, index), rtol=0, atol=1e-9)
    assert (got == 0).all(-1).sum(1).tolist() == [36 - 9] * 3


@torch.no_grad()
def test_pictures_do_not_depend_on_their_neighbours(deep):
    images = pixels()
    for policy in ("tome", "flowcut"):
        with pruning(deep, policy, 0.2):
            together = features(deep, images)
            for i in range(len(images)):
                torch.testing.assert_close(features(deep, images[i : i + 1])[0], together[i], rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_merging_equal_tokens_loses_nothing(deep, implementation):
    """Without places, patches of one colour are alike: merged, and as loud as they were, they say the same."""
    model = copy.deepcopy(deep)
    tower_of(model).embeddings.position_embedding.weight.zero_()
    model.set_attn_implementation({"vision_config": implementation})
    images = torch.ones(1, 3, LLAVA_SIDE, LLAVA_SIDE, dtype=torch.float64)
    images[..., LLAVA_SIDE // 3 :] = -0.5  # two colours: tokens of two kinds
    whole = features(model, images)[0]
    with pruning(model, "tome", 18):
        merged = features(model, images)[0]
    kept = (merged != 0).any(-1)
    assert int(kept.sum()) == 18
    atol = 1e-6 if implementation == "eager" else 1e-9  # whose softmax is float32
    torch.testing.assert_close(merged[kept], whole[kept], rtol=0, atol=atol)
    with pruning(model, "tome", 18, proportional_attention=False):
        assert (features(model, images)[0][kept] - whole[kept]).abs().max() > 1e-3


@torch.no_grad()
def test_the_tower_gets_cheaper(deep):
    def flops():
        with FlopCounterMode(display=False) as counter:
            features(deep, pixels(1))
        return counter.get_total_flops()

    full = flops()
    for policy in ("tome", "flowcut", "downsample"):
        with pruning(deep, policy, 0.1):
            assert flops() < 0.8 * full


@torch.no_grad()
def test_downsampling_is_the_stock_model_on_a_smaller_picture(deep):
    images = pixels()
    small = F.interpolate(images, (3 * PATCH, 3 * PATCH), mode="bicubic", antialias=True)
    tower, embeddings = deep.model.vision_tower, tower_of(deep).embeddings
    handle = embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "interpolate_pos_encoding": True}), with_kwargs=True
    )
    expected = deep.model.multi_modal_projector(tower(small, output_hidden_states=True).hidden_states[-2][:, 1:])
    handle.remove()
    with pruning(deep, "downsample", 9):
        got = features(deep, images)
    places = [y * 6 + x for y in (0, 2, 4) for x in (0, 2, 4)]  # the first of the two in the middle
    torch.testing.assert_close(got[:, places], expected, rtol=0, atol=1e-12)
    assert (got == 0).all(-1).sum(1).tolist() == [27] * 3


# ---------------------------------------------------------------- the policies


def view(hidden, keys, n_keep, cls=False, cut=0, n_cuts=1, sizes=None, **more) -> TowerView:
    """One picture, one head."""
    heads = {name: more.get(name, keys)[None, None] for name in ("query", "value")}
    return TowerView(
        hidden=hidden[None], key=keys[None, None], **heads, scaling=1.0, cls=cls, n_cuts=n_cuts, cut=cut,
        sizes=torch.ones(1, len(hidden)) if sizes is None else torch.tensor([sizes]),
        n_before=len(hidden), n_keep=n_keep, memory=more.get("memory", {}),
    )  # fmt: skip


def test_tome_by_hand():
    """Tokens 0 and 2 propose to 1 and 3; 2 is most like 3 and joins it, weighted by its two patches."""
    keys = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1.0], [0.1, 1.0]])
    hidden = torch.tensor([[1.0], [2], [3], [6]])
    cut = ToMe().tower_select(view(hidden, keys, 3, sizes=[1.0, 1, 2, 1]))
    assert cut.keep.tolist() == [[0, 1, 3]] and cut.sizes.tolist() == [[1, 1, 3]]
    torch.testing.assert_close(cut.hidden[0, :, 0], torch.tensor([1.0, 2, 4]))
    both = ToMe().tower_select(view(hidden, keys, 2))
    assert both.keep.tolist() == [[1, 3]] and both.hidden[0, :, 0].tolist() == [1.5, 4.5]
    one = ToMe().tower_select(view(hidden, keys, 1))  # a second round: 1 joins 3
    assert one.keep.tolist() == [[3]] and one.hidden.item() == 3 and one.sizes.item() == 4
    assert ToMe().tower_select(view(hidden, keys, 4)) is None


def test_tome_never_merges_cls():
    keys, hidden = torch.ones(5, 2), torch.arange(5.0)[:, None]
    for n_keep in (1, 2, 3):
        cut = ToMe().tower_select(view(hidden, keys, n_keep, cls=True))
        assert cut.keep[0, 0] == 0 and cut.hidden[0, 0] == 0 and cut.sizes[0, 0] == 1
        assert cut.keep.shape[1] == n_keep + 1 and cut.sizes.sum() == 5


def test_tome_shares_the_surplus_out_over_the_borders():
    keys, hidden = torch.randn(11, 3), torch.randn(11, 3)
    assert ToMe().tower_select(view(hidden, keys, 4, n_cuts=3)).keep.shape[1] == 11 - 3
    assert ToMe().tower_select(view(hidden, keys, 4, n_cuts=3, cut=2)).keep.shape[1] == 4


def test_flowcut_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 7, 4, generator=generator).double()
    memory = {"score": torch.rand(1, 6).double()}
    before = memory["score"].clone()
    cut = FlowCut(every=1, momentum=0.25).tower_select(
        view(v, k, 2, cls=True, query=q, value=v, n_cuts=3, cut=1, memory=memory)
    )
    paid = (q[0] @ k.T).softmax(-1)[1:]
    score = (paid / paid.sum() + (v[1:] @ v[0] / 2).softmax(0)) * v[1:].abs().sum(1)
    score = 0.25 * before[0] + 0.75 * score
    leaving = int(4 / 2**0.5)  # four too many, this step and one more
    kept = score.topk(6 - leaving).indices.sort().values
    assert cut.keep[0].tolist() == [0, *(kept + 1).tolist()]
    torch.testing.assert_close(memory["score"][0], score[kept])


def test_flowcut_steps_end_at_the_last_border():
    hidden = F.normalize(torch.randn(9, 4), dim=-1)
    acts = [FlowCut(every=2).tower_select(view(hidden, hidden, 2, n_cuts=5, cut=cut)) is not None for cut in range(5)]
    assert acts == [True, False, True, False, True]


@pytest.mark.parametrize("options", [{"every": 0}, {"every": True}, {"momentum": 1.0}])
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FlowCut(**options)


def test_downsampling_needs_a_place_for_every_token():
    vision = CLIPVisionConfig(image_size=LLAVA_SIDE, patch_size=PATCH, **CLIP)
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    with pytest.raises(ValueError, match="cannot place the CLS token"):
        apply_pruning(LlavaForConditionalGeneration(config), "downsample", 0.5)


def test_what_cannot_be_is_said_at_once(deep, monkeypatch):
    monkeypatch.setattr(deep.config.vision_config, "_attn_implementation_internal", "flash_attention_2")
    for layer in tower_of(deep).encoder.layers:
        monkeypatch.setattr(layer.self_attn.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"flash_attention_2 does not take; use proportional_attention=False"):
        apply_pruning(deep, "tome", 0.5)
    apply_pruning(deep, "flowcut", 0.5)
    remove_pruning(deep)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="one policy can act at the encoder stage"):
        apply_pruning(deep, ["tome", "flowcut"], 0.5)


def test_features_from_before_are_refused(deep):
    batch = ragged_batch("llava")
    encoded = deep.model.get_image_features(batch.inputs["pixel_values"])
    if isinstance(encoded, (list, torch.Tensor)):
        pytest.skip("this transformers takes no features")
    inputs = {k: v for k, v in batch.inputs.items() if k != "pixel_values"} | {"mm_encoder_outputs": {"image": encoded}}
    with pruning(deep, "tome", 0.5), pytest.raises(ValueError, match="acts inside the vision tower"):
        deep(**inputs)


def test_a_policy_that_misses_its_budget_is_told(deep):
    class Deaf(FlowCut):
        def tower_select(self, view):
            return None if view.cut else TowerCut(torch.arange(view.hidden.shape[1] - 1).expand(len(view.hidden), -1))

    with (
        pruning(deep, Deaf(), 0.25),
        pytest.raises(ValueError, match=r"left 35 tokens .*, asked for 9"),
    ):
        features(deep, pixels(1))
