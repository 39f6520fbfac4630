"""A pruned model on the full model's answers, against what it generates by itself."""

import math

import pytest
import torch

from tokenprune.eval import minivlm
from tokenprune.eval.conversations import encode_conversations
from tokenprune.eval.setting import PruningSetting
from tokenprune.eval.tune import Prompt
from tokenprune.eval.tune.replies import full_replies, pruned_texts, take

SETTINGS = [("divprune", 0.5), ("auto", 0.1), ("fastv", 0.6), ("sparsevlm@final", 0.2), ("divprune+fastv", 0.4)]
NEW_TOKENS = 6


@pytest.fixture(scope="module", params=["llava", "qwen"])
def answered(request, prompts):
    """Model, processor, a batch of prompts with one and two pictures, its inputs and the full model's replies."""
    model, processor = minivlm.load(request.param)
    batch = list(prompts(3, request.param))
    batch.append(Prompt("Where is the shape?", (*batch[0].images, *batch[1].images)))
    inputs = encode_conversations(processor, [prompt.conversation() for prompt in batch])
    return model, processor, inputs, full_replies(model, processor, inputs, NEW_TOKENS)


def test_the_full_model_agrees_with_itself(answered):
    model, _, inputs, replies = answered
    taken = take(model, inputs, replies, PruningSetting())
    assert [each.differ for each in taken] == [0] * len(replies)
    assert max(each.kl for each in taken) < 1e-3
    counts = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert [set(each.layers) for each in taken] == [{count} for count in counts]


@pytest.mark.parametrize(("policy", "keep"), SETTINGS)
def test_a_reply_is_taken_whole_exactly_if_the_pruned_model_gives_it(answered, policy, keep):
    model, processor, inputs, replies = answered
    setting = PruningSetting(policy, keep)
    taken = take(model, inputs, replies, setting)
    texts = pruned_texts(model, processor, inputs, setting, NEW_TOKENS)
    same = [text == reply.text for text, reply in zip(texts, replies, strict=True)]
    assert [each.differ == 0 for each in taken] == same
    assert all(each.layers[0] < max(inputs["input_ids"].shape) for each in taken)


@pytest.mark.parametrize(("policy", "keep"), SETTINGS[1:3])
def test_differences_are_those_of_logits_while_the_reply_is_generated(answered, policy, keep):
    """The reference forces the reply token by token in `generate`."""
    model, _, inputs, replies = answered
    setting = PruningSetting(policy, keep)
    longest = max(len(reply.tokens) for reply in replies)
    told = torch.tensor([[*reply.tokens, *[0] * (longest - len(reply.tokens))] for reply in replies])
    start = inputs["input_ids"].shape[1]

    def force(ids, scores):
        forced = torch.full_like(scores, -math.inf)
        return forced.scatter(1, told[:, ids.shape[1] - start, None], 0.0)

    with setting.context(model), torch.inference_mode():
        out = model.generate(
            **inputs,
            max_new_tokens=longest,
            eos_token_id=None,
            do_sample=False,
            logits_processor=[force],
            output_logits=True,
            return_dict_in_generate=True,
        )
    logs, full = torch.stack(out.logits, 1).log_softmax(-1), full_logs(model, inputs, told)
    for i, (reply, taken) in enumerate(zip(replies, take(model, inputs, replies, setting), strict=True)):
        length = len(reply.tokens)
        differ = (logs[i, :length].argmax(-1) != told[i, :length]).float().mean()
        assert taken.differ == pytest.approx(float(differ))
        divergence = (full[i, :length].exp() * (full[i, :length] - logs[i, :length])).sum(-1).mean()
        assert taken.kl == pytest.approx(float(divergence), abs=2e-3, rel=0.02)


def full_logs(model, inputs, told):
    """Log-probabilities of the full model in the places of replies, in one call on prompt and reply."""
    ids = torch.cat([inputs["input_ids"], told[:, :-1]], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(told[:, 1:])], 1)
    extended = {**inputs, "input_ids": ids, "attention_mask": mask}
    if "mm_token_type_ids" in inputs:
        extended["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], told[:, 1:] * 0], 1)
    with torch.inference_mode():
        logits = model(**extended).logits
    return logits[:, inputs["input_ids"].shape[1] - 1 :].log_softmax(-1)


def test_settings_of_the_checkpoint_that_change_probabilities_do_not_count(answered):
    model, processor, inputs, replies = answered
    before = model.generation_config.repetition_penalty
    model.generation_config.repetition_penalty = 50.0
    try:
        again = full_replies(model, processor, inputs, NEW_TOKENS)
        assert model.generation_config.repetition_penalty == 50.0
    finally:
        model.generation_config.repetition_penalty = before
    assert [reply.tokens for reply in again] == [reply.tokens for reply in replies]


def test_no_hook_is_left(answered):
    model, _, inputs, replies = answered
    before = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    take(model, inputs, replies, PruningSetting("divprune", 0.5))
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == before
