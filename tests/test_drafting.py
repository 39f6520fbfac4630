"""Assisted decoding with a pruned draft: the text is the model's own, and the draft sees the pictures."""

import contextlib
import os

import pytest
import torch

from tokenprune import draft, pruning, pruning_report, pruning_status, remove_pruning
from tokenprune.eval import minivlm
from tokenprune.eval.answers import encode, held_out

from .builders import IMAGE, VIDEO
from .families import ENCODES_FIRST, FAMILIES, Picture, get_model, make_batch

pytestmark = pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers hands no features to an assistant")

FULL = os.environ.get("FULL") == "1"
RANDOM = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl")
#: Prompts for each model, with one draft each.
PROMPTS = 500 if FULL else 2
POLICIES = (("divprune", 0.3), ("grid", 0.1), ("fastv@final", 0.2), ("random", 2), ("cdpruner", 0.5), ("grid", 1.0))
STEPS = 12


def generate(model, inputs, assistant=None, steps=STEPS, **more):
    with_draft = {} if assistant is None else {"assistant_model": assistant}
    how = dict(do_sample=False, max_new_tokens=steps, min_new_tokens=steps, suppress_tokens=[IMAGE, VIDEO])
    return model.generate(**inputs, **with_draft, **{**how, **more})


def prompt(family, seed):
    """A prompt with one picture or two, of random size."""
    sizes = FAMILIES[family].sizes
    pictures = [Picture(sizes[(seed + i) % len(sizes)]) for i in range(1 + seed % 2)]
    return make_batch(family, [[part for i, picture in enumerate(pictures) for part in (1 + i, picture)] + [4]], seed)


@contextlib.contextmanager
def counting(model):
    """Lengths of what the model's head is fed, call by call."""
    lengths: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda m, args, out: lengths.append(args[0].shape[1]))
    try:
        yield lengths
    finally:
        handle.remove()


@pytest.mark.parametrize("family", RANDOM)
def test_the_text_is_the_models_own(family):
    model = get_model(family)
    no_cuts = family == "gemma3"
    policies = [each for each in POLICIES if not (no_cuts and each[0].startswith("fastv"))]
    for i in range(PROMPTS):
        inputs = prompt(family, i).inputs
        policy, keep = policies[(i + RANDOM.index(family)) % len(policies)]  # every one has its turn
        assistant = draft(model, policy, keep)
        assert generate(model, inputs, assistant).tolist() == generate(model, inputs).tolist(), (i, policy)
        assert pruning_report(assistant), "the draft has seen no picture"


@pytest.mark.parametrize("name", minivlm.NAMES)
def test_the_text_is_the_models_own_on_embedded_models(name):
    model, processor = minivlm.load(name)
    for i, sample in enumerate(held_out(PROMPTS)):
        inputs = encode(processor, [sample], [sample.images])
        alone = model.generate(**inputs, do_sample=False, max_new_tokens=8)
        policy, keep = POLICIES[i % len(POLICIES)]
        assistant = draft(model, policy, keep)
        drafted = model.generate(**inputs, do_sample=False, max_new_tokens=8, assistant_model=assistant)
        assert drafted.tolist() == alone.tolist(), (i, policy)
        assert pruning_report(assistant)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_later_turns_of_a_talk(family):
    """The talk is fed from its beginning; on the KV cache of earlier turns transformers would feed it a second time."""
    model = get_model(family)
    size = Picture(FAMILIES[family].sizes[0])
    first = make_batch(family, [[3, size, 4]]).inputs
    answer = generate(model, first, return_dict_in_generate=True)
    whole = make_batch(family, [[3, size, 4 + STEPS + 3]]).inputs  # the first turn, its answer, and a turn of text
    turn = {**whole, "input_ids": torch.cat([answer.sequences, whole["input_ids"][:, -3:]], 1)}
    for assistant in (draft(model, "grid", 0.5), draft(model, "grid", 0.5, pixels=first)):
        assert generate(model, turn, assistant).tolist() == generate(model, turn).tolist()
        assert pruning_report(assistant)
    held = first["input_ids"].shape[1] + STEPS - 1
    with pytest.raises(ValueError, match=rf"the {held} tokens that it holds a second time.*feed the whole talk"):
        generate(model, turn, draft(model, "grid", 0.5), past_key_values=answer.past_key_values)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_draft_that_sees_all_is_always_right(family):
    """The model is run once: it agrees with all eleven tokens, and adds the twelfth."""
    model, inputs = get_model(family), prompt(family, 1).inputs
    assistant = draft(model, "grid", 1.0)
    assistant.generation_config.assistant_confidence_threshold = 0.0
    with counting(model) as calls:
        generate(model, inputs, assistant)
    assert calls == [STEPS]


def test_a_draft_shares_weights_and_leaves_the_model_alone():
    model = get_model("llava")
    assistant = draft(model, "divprune", 0.25)
    assert all(a is b for a, b in zip(model.parameters(), assistant.parameters(), strict=True))
    assert pruning_status(model) is None
    assert "prepare_inputs_for_generation" not in vars(model)
    with pruning(model, "visionzip", 0.5):
        second = draft(model, "divprune", 0.25)
        assert pruning_status(second).stages[0].policy.name == "divprune"
        inputs = prompt("llava", 0).inputs
        assert generate(model, inputs, second).tolist() == generate(model, inputs).tolist()
        assert [r.n_after for r in pruning_report(model)] == [18]
        assert [r.n_after for r in pruning_report(second)] == [9]


def test_a_draft_with_pictures_of_its_own():
    """A smaller model, and a policy that reads the vision encoder: both encode for themselves."""
    model, inputs = get_model("llava"), prompt("llava", 0).inputs
    alone = generate(model, inputs)
    assistant = draft(model, "visionzip", 0.25, pixels=inputs)
    assert generate(model, inputs, assistant).tolist() == alone.tolist()
    assert [r.n_after for r in pruning_report(assistant)] == [9]

    small_config = type(model.config).from_dict(model.config.to_dict())
    text = small_config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = text.hidden_size * 2, 32, 1
    small = type(model)(small_config).eval()
    with pytest.raises(ValueError, match=r"of another model, and this draft's are .*pixels=inputs"):
        generate(model, inputs, draft(small, "divprune", 0.25))
    assistant = draft(small, "divprune", 0.25, pixels=inputs)
    assert generate(model, inputs, assistant).tolist() == alone.tolist()
    assert [r.n_after for r in pruning_report(assistant)] == [9]


@pytest.mark.parametrize("policy", ["visionzip", "tome", "scope"])
def test_policies_that_need_pictures_of_their_own(policy):
    with pytest.raises(ValueError, match=rf"policy '{policy}' reads the vision encoder.*pixels=inputs"):
        draft(get_model("llava"), policy, 0.25)
    assert not pruning_status(get_model("llava"))


@pytest.mark.parametrize("policy", ["pixelprune", "divprune@pixels"])
def test_policies_before_the_tower_need_pictures_of_their_own(policy):
    with pytest.raises(ValueError, match=r"acts before or in it.*pixels=inputs"):
        draft(get_model("qwen2_5_vl"), policy, 0.25)


def test_a_draft_of_a_draft_has_no_pictures_of_the_first():
    model = get_model("llava")
    first = draft(model, "visionzip", 0.25, pixels={"pixel_values": torch.zeros(1, 3, 32, 32)})
    second = draft(first, "divprune", 0.25)
    left = [name for each in (remove_pruning(first), second) for name in vars(each) if "tokenprune_pixels" in name]
    assert left == []
    for wrong in (torch.ones(1), {"input_ids": torch.ones(1)}):
        with pytest.raises(ValueError, match="pixels must be a mapping with pixel_values"):
            draft(model, "divprune", 0.25, pixels=wrong)


def test_what_cannot_draft():
    with pytest.raises(ValueError, match=r"LlavaModel has no generate\(\)"):
        draft(get_model("llava").model, "divprune", 0.25)
