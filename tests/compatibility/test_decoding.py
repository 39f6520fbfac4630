"""Ways to decode: greedy, sampled, beams, streams, without a cache."""

from __future__ import annotations

import pytest
import torch
import transformers

from tokenprune import draft, list_policies, pruning, pruning_report
from tokenprune.policies import make_policy

from ..builders import TEXT
from ..families import ENCODES_FIRST, get_model, one_row, ragged_batch, text_of
from ..patches import test_logits
from .cells import alike, area, rows_to_copy

AREA = "Decoding"
cell = area(AREA)


@cell("greedy")
def test_greedy(family):
    run, oracle = alike(family, do_sample=False)
    for a, b in zip(run.logits, oracle.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@cell("sampling, temperature, `top_k`, `top_p`", "same seed, same text as the masked original")
def test_sampling(family):
    first, _ = alike(family, do_sample=True, temperature=1.5, top_k=30, top_p=0.95)
    other, _ = alike(family, seed=1, do_sample=True, temperature=1.5, top_k=30, top_p=0.95)
    assert not torch.equal(first.sequences, other.sequences)


@cell("beam search, `num_return_sequences`")
def test_beams(family):
    alike(family, rows_to_copy(family), do_sample=False, num_beams=3, num_return_sequences=2)


@cell("sampled `num_return_sequences`")
def test_several(family):
    alike(family, rows_to_copy(family), do_sample=True, num_return_sequences=3)


@cell("repetition penalty, own `logits_processor`, own `stopping_criteria`")
def test_processors(family):
    forbid = lambda ids, scores: scores.index_fill(1, torch.tensor([7, 8]), -torch.inf)
    stop = lambda ids, scores, **kwargs: torch.full((len(ids),), ids.shape[1] >= 40 and int(ids[0, -1]) % 2 == 0)
    alike(family, do_sample=False, repetition_penalty=1.4, logits_processor=[forbid], stopping_criteria=[stop])


@cell("streaming")
def test_streaming(family):
    class Streamer:
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen += value.flatten().tolist()

        def end(self):
            self.seen.append("end")

    streamer = Streamer()
    batch = one_row(family)
    run, _ = alike(family, batch, do_sample=False, build=lambda: {"streamer": Streamer()})
    with pruning(get_model(family), "divprune", 0.3, positions="original"):
        get_model(family).generate(**batch.inputs, max_new_tokens=6, do_sample=False, streamer=streamer)
    assert streamer.seen == [*run.sequences[0].tolist(), "end"]


@cell("prompt lookup")
def test_prompt_lookup(family):
    alike(family, one_row(family, 20), do_sample=False, prompt_lookup_num_tokens=3, eos_token_id=2)


@cell("assisted generation", families=("llava",))
def test_assisted(family):
    if not ENCODES_FIRST:
        pytest.skip("older transformers hand pictures to the assistant, with pruning or without")
    torch.manual_seed(5)
    assistant = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).double().eval()
    assistant.generation_config.eos_token_id = None
    alike(family, one_row(family, 20), do_sample=False, build=lambda: {"assistant_model": assistant})


@cell("a pruned draft for assisted generation (`tokenprune.draft`)", "the text of the model alone")
def test_draft(family):
    if not ENCODES_FIRST:
        pytest.skip("this transformers hands no features to an assistant")
    model, inputs = get_model(family), one_row(family, 20).inputs
    how = dict(do_sample=False, max_new_tokens=6, min_new_tokens=6)
    assistant = draft(model, "divprune", 0.25)
    drafted = model.generate(**inputs, **how, assistant_model=assistant)
    assert drafted.tolist() == model.generate(**inputs, **how).tolist()
    assert pruning_report(assistant)


@cell(
    "no KV cache (`use_cache=False`)",
    "prunes at every step, with the same choice: the question is that of the prompt (but under transformers 5.17 and "
    "older, which encode at every step, policies that read text or act in the decoder see the answer so far as well)",
)
def test_without_cache(family):
    alike(family, do_sample=False, use_cache=False)
    model, batch = get_model(family), ragged_batch(family)
    for policy in list_policies() if ENCODES_FIRST else ("divprune", "grid", "fopru"):
        if family == "qwen2_5_vl" and "encoder" in make_policy(policy).stages:
            continue
        with pruning(model, policy, 0.3, budget="final"):
            chosen = []
            note = lambda *args, chosen=chosen: chosen.append([(r.indices, r.cuts) for r in pruning_report(model)])
            handle = text_of(model).register_forward_hook(note)
            model.generate(**batch.inputs, max_new_tokens=3, do_sample=False, use_cache=False)
            handle.remove()
        assert len(chosen) == 3
        assert all(step == chosen[0] for step in chosen)


@cell(
    "prefill in chunks (`prefill_chunk_size`)",
    "refused with pictures, if any of them may leave",
    ("llava",),
)
def test_chunks(family):
    if not ENCODES_FIRST:
        pytest.skip("older transformers feed no pictures in chunks")
    test_logits.test_prefill_in_chunks_is_refused("divprune")


@cell(
    "`logits_to_keep`",
    "an int: as many of the last so many as are left; places: those of the prompt, or an error if they are gone",
    ("llava",),
)
def test_places_of_logits(family):
    test_logits.test_logits_to_keep_names_places_of_the_prompt(family, ["grid", "fastv"])
    test_logits.test_places_that_differ_from_row_to_row_are_refused()


@cell(
    "`output_hidden_states`, `output_attentions`, `output_scores`",
    "given, as long as the pruned sequence",
)
def test_outputs(family):
    model, batch = get_model(family), one_row(family)
    before = text_of(model).config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with pruning(model, "divprune", 0.3):
            out = model.generate(
                **batch.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True,
                output_hidden_states=True, output_attentions=True, output_scores=True,
            )  # fmt: skip
            record = pruning_report(model)[0]
    finally:
        model.set_attn_implementation(before)
    n = batch.inputs["input_ids"].shape[1] - record.n_before + record.n_after
    assert {h.shape[1] for h in out.hidden_states[0]} == {n}
    assert {a.shape[2:] for a in out.attentions[0]} == {(n, n)}
    assert out.attentions[2][0].shape[-1] == n + 2
    assert len(out.scores) == 3
