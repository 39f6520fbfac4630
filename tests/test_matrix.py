"""The compatibility matrix: one table of features; each is a test on every family named, and a line of the docs.

`python -m tests.test_matrix` writes docs/compatibility.md.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from torch._dynamo.testing import CompileCounter

from tokenprune import apply_pruning, list_policies, pruning, pruning_report, remove_pruning
from tokenprune.patches.cache import cache_among
from tokenprune.policies import make_policy

from . import test_calls, test_sequence, test_traps
from .families import (
    ENCODES_FIRST,
    FAMILIES,
    IMAGE,
    TEXT,
    Picture,
    get_model,
    make_batch,
    ragged_batch,
    spread_weights,
    text_of,
)
from .markers import place, put
from .oracles import assert_same, generate, keep_mask, masked

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "compatibility.md"
BOTH = ("llava", "qwen2_5_vl")  # 1-D positions, and coordinates


@dataclass(frozen=True)
class Cell:
    area: str
    feature: str
    says: str
    families: tuple[str, ...]
    check: Callable


CELLS: list[Cell] = []


def cell(area: str, feature: str, says: str = "as the masked original", families: tuple[str, ...] = BOTH) -> Callable:
    """A line of the matrix: what is tried, and what holds."""

    def add(check: Callable) -> Callable:
        CELLS.append(Cell(area, feature, says, families, check))
        return check

    return add


@contextlib.contextmanager
def hidden(model, keep):
    """The stock model, with dropped columns masked in attention whatever `generate` does meanwhile."""

    def hide(module, args, kwargs):
        tokens = kwargs.get("inputs_embeds")
        tokens = kwargs["input_ids"] if tokens is None else tokens
        cache = cache_among(kwargs)
        past = cache.get_seq_length() if cache is not None else 0
        total = past + tokens.shape[1]
        kept = keep.repeat_interleave(len(tokens) // len(keep), 0)
        kept = torch.nn.functional.pad(kept, (0, max(0, total - kept.shape[1])), value=True)[:, :total]
        mask = kwargs.get("attention_mask")
        return args, {**kwargs, "attention_mask": kept if mask is None else kept & mask[:, :total].bool()}

    handle = text_of(model).register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def alike(family, batch=None, keep=0.3, seed=0, build=lambda: {}, **options):
    """`generate` gives the same with pruning as with masking. `build` makes arguments that hold state."""
    model, batch = get_model(family), batch or ragged_batch(family)
    common = dict(max_new_tokens=6, return_dict_in_generate=True, output_logits=True)
    torch.manual_seed(seed)
    with pruning(model, "divprune", keep, positions="original"):
        run = model.generate(**batch.inputs, **common, **options, **build())
        kept = keep_mask(batch, _first_of_each(pruning_report(model), batch))
    torch.manual_seed(seed)
    with hidden(model, kept):
        oracle = model.generate(**batch.inputs, **common, **options, **build())
    assert torch.equal(run.sequences, oracle.sequences)
    assert not kept.all()
    return run, oracle


def _first_of_each(records, batch):
    """One report per sample, of those of its beams or copies."""
    copies = len(records) // len(batch.visuals)
    rows = len(batch.inputs["input_ids"])
    assert all(r.sample < rows * copies for r in records)
    chosen = [r for r in records if r.sample % copies == 0]
    return [dataclasses.replace(r, sample=r.sample // copies) for r in chosen]


def rows_to_copy(family):
    """Older transformers hand copies of a row with two pictures the wrong ones, with pruning or without."""
    picture = Picture(FAMILIES[family].sizes[0])
    return ragged_batch(family) if ENCODES_FIRST else make_batch(family, [[3, picture, 5], [9, picture, 2], [4]])


def one_row(family, text=5):
    return make_batch(family, [[3, Picture(FAMILIES[family].sizes[0]), text]])


# ---------------------------------------------------------------- decoding


@cell("Decoding", "greedy")
def greedy(family):
    run, oracle = alike(family, do_sample=False)
    for a, b in zip(run.logits, oracle.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@cell("Decoding", "sampling, temperature, `top_k`, `top_p`", "same seed, same text as the masked original")
def sampling(family):
    first, _ = alike(family, do_sample=True, temperature=1.5, top_k=30, top_p=0.95)
    other, _ = alike(family, seed=1, do_sample=True, temperature=1.5, top_k=30, top_p=0.95)
    assert not torch.equal(first.sequences, other.sequences)


@cell("Decoding", "beam search, `num_return_sequences`")
def beams(family):
    alike(family, rows_to_copy(family), do_sample=False, num_beams=3, num_return_sequences=2)


@cell("Decoding", "sampled `num_return_sequences`")
def several(family):
    alike(family, rows_to_copy(family), do_sample=True, num_return_sequences=3)


@cell("Decoding", "repetition penalty, own `logits_processor`, own `stopping_criteria`")
def processors(family):
    forbid = lambda ids, scores: scores.index_fill(1, torch.tensor([7, 8]), -torch.inf)
    stop = lambda ids, scores, **kwargs: torch.full((len(ids),), ids.shape[1] >= 40 and int(ids[0, -1]) % 2 == 0)
    alike(family, do_sample=False, repetition_penalty=1.4, logits_processor=[forbid], stopping_criteria=[stop])


@cell("Decoding", "streaming")
def streaming(family):
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


@cell("Decoding", "prompt lookup")
def prompt_lookup(family):
    alike(family, one_row(family, 20), do_sample=False, prompt_lookup_num_tokens=3, eos_token_id=2)


@cell("Decoding", "assisted generation", families=("llava",))
def assisted(family):
    if not ENCODES_FIRST:
        pytest.skip("older transformers hand pictures to the assistant, with pruning or without")
    torch.manual_seed(5)
    assistant = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).double().eval()
    assistant.generation_config.eos_token_id = None
    alike(family, one_row(family, 20), do_sample=False, build=lambda: {"assistant_model": assistant})


@cell(
    "Decoding",
    "no KV cache (`use_cache=False`)",
    "prunes at every step, with the same choice: the question is that of the prompt (but under transformers 5.17 and "
    "older, which encode at every step, policies that read text or act in the decoder see the answer so far as well)",
)
def without_cache(family):
    alike(family, do_sample=False, use_cache=False)
    model, batch = get_model(family), ragged_batch(family)
    for policy in list_policies() if ENCODES_FIRST else ("divprune", "grid", "fopru"):
        if family == "qwen2_5_vl" and "encoder" in make_policy(policy).stage:
            continue
        with pruning(model, policy, 0.3):
            chosen = []
            note = lambda *args, chosen=chosen: chosen.append([(r.indices, r.cuts) for r in pruning_report(model)])
            handle = text_of(model).register_forward_hook(note)
            model.generate(**batch.inputs, max_new_tokens=3, do_sample=False, use_cache=False)
            handle.remove()
        assert len(chosen) == 3
        assert all(step == chosen[0] for step in chosen)


@cell(
    "Decoding",
    "prefill in chunks (`prefill_chunk_size`)",
    "refused with pictures, if any of them may leave",
    ("llava",),
)
def chunks(family):
    if not ENCODES_FIRST:
        pytest.skip("older transformers feed no pictures in chunks")
    test_sequence.test_prefill_in_chunks_is_refused("divprune")


@cell(
    "Decoding",
    "`logits_to_keep`",
    "an int: as many of the last so many as are left; places: those of the prompt, or an error if they are gone",
    ("llava",),
)
def places_of_logits(family):
    test_sequence.test_logits_to_keep_names_places_of_the_prompt(["grid", "fastv"])
    test_sequence.test_places_that_differ_from_row_to_row_are_refused()


@cell(
    "Decoding",
    "`output_hidden_states`, `output_attentions`, `output_scores`",
    "given, as long as the pruned sequence",
)
def outputs(family):
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


# ---------------------------------------------------------------- training


@cell("Training", "`labels`, gradients", "loss and gradients of the masked original")
def gradients(family):
    model, batch = copy.deepcopy(get_model(family)), one_row(family)
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["input_ids"] == IMAGE, -100)
    found = []
    for pruned in (True, False):
        model.zero_grad()
        if pruned:
            with pruning(model, "divprune", 0.3, positions="original"):
                loss = model(**batch.inputs, labels=labels, use_cache=False).loss
                kept = keep_mask(batch, pruning_report(model))
        else:
            # The last kept column before a gap predicts nothing in either.
            hide = labels.masked_fill(~kept, -100)
            with hidden(model, kept):
                logits = model(**batch.inputs, use_cache=False).logits
            short, targets = logits[:, kept[0]], hide[:, kept[0]].clone()
            targets[:, 0] = -100
            loss = torch.nn.functional.cross_entropy(short[0, :-1], targets[0, 1:])
        loss.backward()
        weight = text_of(model).layers[0].mlp.down_proj.weight
        found.append((float(loss), weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-6)


@cell(
    "Training",
    "gradient checkpointing",
    "same loss and gradients as without; policies of the decoder and encoder stage are refused under transformers 5.17 "
    "and older",
)
def checkpointing(family):
    model, batch = copy.deepcopy(get_model(family)).train(), one_row(family)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for policy in ("fastv", "tome", ["divprune", "fastv"]) if family == "llava" else ("fastv",):
        with pruning(model, policy, 0.4):
            refused = not ENCODES_FIRST and type(text_of(model).layers[0]).__call__ is not torch.nn.Module.__call__
            message = "gradient checkpointing under transformers"
            with pytest.raises(ValueError, match=message) if refused else contextlib.nullcontext():
                model(**batch.inputs, labels=batch.inputs["input_ids"], use_cache=False).loss.backward()
    same_gradients(family)


def same_gradients(family):
    model, batch = copy.deepcopy(get_model(family)).train(), one_row(family)
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["input_ids"] == IMAGE, -100)
    found = []
    apply_pruning(model, "divprune", 0.3)
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        loss = model(**batch.inputs, labels=labels, use_cache=False).loss
        loss.backward()
        found.append((float(loss), text_of(model).layers[0].mlp.down_proj.weight.grad.clone()))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])


@cell("Training", "`labels` by position, through PEFT", "as by keyword, wrapped, unwrapped and merged", ("llava",))
def labels_through_peft(family):
    test_sequence.test_labels_shrink_however_they_are_given()


@cell(
    "Training",
    "a loss outside the model (`compute_loss_func`, distillation)",
    "as inside, with `prune_labels(model, labels)`; without it torch complains of sizes, and a warning says why",
)
def loss_outside(family):
    test_sequence.test_a_loss_outside_the_model_equals_the_one_inside(family, "grid")


@cell("Training", "left-padded prompts, right-padded completions (trl)", "each row's logits as of it alone")
def completions(family):
    test_sequence.test_completions_padded_on_the_right_keep_their_places(family, "divprune")


@cell("Training", "samples packed into one row (`position_ids` that start again, `cu_seq_lens_q`)", "refused")
def packed(family):
    test_sequence.test_packed_rows_are_refused(family, "grid")


@cell("Training", "heads that classify or rate (`...ForSequenceClassification`)", "refused", ("gemma3",))
def classifiers(family):
    test_sequence.test_heads_that_read_one_place_of_a_row_are_refused()


# ---------------------------------------------------------------- caches


@cell("Caches", "static")
def static_cache(family):
    model, batch = get_model(family), ragged_batch(family)
    with pruning(model, "divprune", 0.3):
        expected = generate(model, batch.inputs)
        assert_same(generate(model, batch.inputs, cache_implementation="static"), expected)


@cell("Caches", "static, under linear attention", "as a shorter prompt", families=("qwen3_5",))
def static_hybrid(family):
    if family not in FAMILIES:
        pytest.skip("newer than this transformers")
    test_sequence.test_a_static_cache_under_linear_attention(family)


@cell(
    "Caches",
    "static, where pictures attend to themselves both ways",
    "refused, unless everything stays or there is no picture",
    ("gemma3",),
)
def static_blocks(family):
    test_sequence.test_a_static_cache_passes_where_nothing_leaves(family)
    test_traps.test_static_cache_where_the_base_builds_masks(family)


@cell("Caches", "a pruned cache on a copy of the model that is not pruned", "refused", ("llava",))
def foreign_cache(family):
    test_calls.test_a_cache_is_refused_by_a_copy_that_is_not_pruned("divprune")


@cell("Caches", "deep copies of a cache", "go on as the original does")
def copied_cache(family):
    model, batch = get_model(family), ragged_batch(family)
    inputs = batch.inputs
    with torch.no_grad(), pruning(model, "divprune", 0.3, positions="original"):
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        cache = copy.deepcopy(out.past_key_values)
        ids = torch.cat([out.sequences, torch.full((4, 2), 9)], 1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 5), value=1)
        more = dict(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
        a, b = (model.generate(**more, past_key_values=c) for c in (out.past_key_values, cache))
    assert torch.equal(a, b)


@cell("Caches", "a second turn with new text, on the cache of the first", families=("llava",))
def second_turn(family):
    for positions in ("original", "compact"):
        test_traps.test_second_turn_remembers_decoded_columns(positions)


@cell("Caches", "a second turn with a new image, on the cache of the first", families=("llava",))
def second_picture(family):
    if not ENCODES_FIRST:
        pytest.skip("this transformers drops the pixels of a second turn")
    for positions in ("original", "compact"):
        test_traps.test_second_turn_with_a_new_image(positions)


@cell("Caches", "cropping a cache", "after the pictures; else an error that says so", families=("llava",))
def cropped(family):
    test_traps.test_cropping_a_cache()


@cell("Caches", "quantised (quanto), offloaded by layer", "runs; quantised keys are no longer comparable to the digit")
def quantised_cache(family):
    pytest.importorskip("optimum.quanto")
    model, batch = copy.deepcopy(get_model(family)).float(), ragged_batch(family)
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in batch.inputs.items()}
    with pruning(model, "divprune", 0.3):
        expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        config = {"backend": "quanto", "nbits": 4, "q_group_size": 8, "residual_length": 64}
        run = model.generate(
            **inputs, max_new_tokens=6, do_sample=False, cache_implementation="quantized", cache_config=config
        )
    # nothing is quantised before the residual is full but the prompt, at its end
    assert run.shape == expected.shape
    assert torch.equal(run[:, : inputs["input_ids"].shape[1] + 1], expected[:, : inputs["input_ids"].shape[1] + 1])


@cell(
    "Caches", "sliding windows shorter than the prompt", "a shorter prompt's: windows count what is left", ("gemma3",)
)
def windows(family):
    test_traps.test_gemma_windows_count_what_is_left()


@cell("Caches", "eight threads at once on one model", "each as alone", families=("llava",))
def threads(family):
    if transformers.__version__.startswith("5.0"):
        pytest.skip("transformers 5.0 mixes up threads, with pruning or without")
    test_traps.test_threads_do_not_mix(family, "fopru")


# Qwen-VL keeps the offset of its positions on the model: an own loop over two talks mixes them up unpruned, too.
@cell("Caches", "two conversations in turns on one model", "neither sees the other's", families=("llava",))
def in_turns(family):
    model = get_model(family)
    talks = [one_row(family, 5), one_row(family, 8)]
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        alone = [generate(model, talk.inputs) for talk in talks]
        outs = [model(**talk.inputs, use_cache=True) for talk in talks]
        tokens = [[], []]
        for _ in range(9):
            for i in (0, 1):
                tokens[i].append(outs[i].logits[:, -1].argmax(-1))
                done = talks[i].inputs["input_ids"].shape[1] + len(tokens[i])
                outs[i] = model(
                    input_ids=tokens[i][-1][:, None],
                    attention_mask=torch.ones(1, done, dtype=torch.int64),
                    past_key_values=outs[i].past_key_values,
                )
    for i in (0, 1):
        assert torch.equal(torch.stack(tokens[i], 1), alone[i].tokens)


# ---------------------------------------------------------------- inputs


@cell("Inputs", "no image at all", "the stock model, to the bit")
def no_image(family):
    model, batch = get_model(family), make_batch(family, [[7], [4]])
    before = generate(model, batch.inputs)
    with pruning(model, "divprune", 0.3):
        assert torch.equal(generate(model, batch.inputs).logits, before.logits)


@cell("Inputs", "32 images in a row")
def many_images(family):
    picture = Picture(FAMILIES[family].sizes[0])
    alike(family, make_batch(family, [[1, picture] * 32 + [3]]), do_sample=False)


@cell("Inputs", "an image of one token", "it stays", families=("qwen2_5_vl", "qwen3_vl"))
def one_token(family):
    batch = make_batch(family, [[3, Picture((2, 2)), 5], [2, Picture((4, 6)), 3]])
    with pruning(get_model(family), "divprune", 0.1):
        generate(get_model(family), batch.inputs, steps=2)
        assert [(r.n_before, r.n_after) for r in pruning_report(get_model(family))] == [(1, 1), (6, 1)]
    alike(family, batch, do_sample=False)


@cell("Inputs", "images of extreme aspect ratio", families=("llava_next", "qwen2_5_vl"))
def narrow_images(family):
    thin, flat = ((2, 44), (40, 2)) if family.startswith("qwen") else ((6, 48), (48, 4))
    alike(family, make_batch(family, [[3, Picture(thin), 5], [2, Picture(flat), 3]]), do_sample=False)


@cell("Inputs", "`inputs_embeds` instead of `input_ids` (`forward`)", "same logits", families=("llava", "llava_next"))
def embeds_given(family):
    model, batch = get_model(family), ragged_batch(family)
    inputs = dict(batch.inputs)
    ids = inputs.pop("input_ids")
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        expected = model(input_ids=ids, **inputs).logits
        assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids), **inputs).logits, expected)
        assert expected.shape[1] < ids.shape[1]


@cell(
    "Inputs", "precomputed `mm_encoder_outputs`", "same answer; policies that read the encoder want it computed pruned"
)
def features_given(family):
    model, batch = get_model(family), ragged_batch(family)
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers takes none")
    pictures = {k: v for k, v in batch.inputs.items() if k.startswith(("pixel_values", "image_"))}
    rest = {k: v for k, v in batch.inputs.items() if k not in pictures}
    grids = {k: v for k, v in pictures.items() if k.startswith("image_")}  # Qwen numbers its positions by them
    stock = model.model.get_image_features(**pictures)
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        expected = model(**batch.inputs).logits
        assert torch.equal(model(**rest, **grids, mm_encoder_outputs={"image": stock}).logits, expected)
    with torch.no_grad(), pruning(model, "fopru", 0.3):
        heard = model.model.get_image_features(**pictures)
        expected = model(**batch.inputs).logits
        assert torch.equal(model(**rest, **grids, mm_encoder_outputs={"image": heard}).logits, expected)
        with pytest.raises(ValueError, match="compute the features with pruning applied"):
            model(**rest, **grids, mm_encoder_outputs={"image": stock})
        moved = type(heard)(**heard)  # as generate and accelerate copy features to the model's device
        assert torch.equal(model(**rest, **grids, mm_encoder_outputs={"image": moved}).logits, expected)


@cell("Inputs", "a budget above the number of tokens", "everything stays")
def big_budget(family):
    model, batch = get_model(family), ragged_batch(family)
    before = generate(model, batch.inputs)
    with pruning(model, "divprune", 10_000):
        assert torch.equal(generate(model, batch.inputs).logits, before.logits)


@cell("Inputs", "videos of 1 and of 64 frames", families=("llava_onevision", "qwen2_5_vl"))
def videos(family):
    for frames in (1, 64):
        alike(family, make_batch(family, [[2, Picture((4, 4), frames), 5]]), do_sample=False)


@cell("Inputs", "no attention mask", "as with one of ones")
def no_mask(family):
    model, batch = get_model(family), one_row(family)
    with pruning(model, "divprune", 0.3):
        expected = generate(model, batch.inputs)
        assert_same(generate(model, {k: v for k, v in batch.inputs.items() if k != "attention_mask"}), expected)


@cell("Inputs", "right padding (`forward`)", "stays where it is; logits of each row as with left padding")
def right_padding(family):
    model, batch = get_model(family), ragged_batch(family)
    mask = batch.inputs["attention_mask"]
    order = torch.argsort(mask, dim=1, descending=True, stable=True)  # padding goes to the right
    flipped = {k: v.gather(1, order) for k, v in batch.inputs.items() if v.shape == mask.shape}
    with torch.no_grad(), pruning(model, "divprune", 0.3, positions="original"):
        right = model(**{**batch.inputs, **flipped}).logits
        left = model(**batch.inputs).logits
        records = pruning_report(model)
    for row, n in enumerate(mask.sum(1).tolist()):
        end = right.shape[1] - (mask.shape[1] - n)
        n -= sum(r.n_before - r.n_after for r in records if r.sample == row)
        torch.testing.assert_close(right[row, end - n : end], left[row, -n:], rtol=0, atol=1e-5)


@cell(
    "Inputs",
    "visual tokens that the attention mask hides",
    "neither counted nor offered nor reported",
    ("llava", "llava_next", "internvl"),
)
def hidden_tokens(family):
    test_sequence.test_placeholders_that_the_mask_hides_are_no_candidates(family, "auto")


@cell("Inputs", "NaN or infinite features", "an error that says so, or a choice within range; never a hang")
def broken_features(family):
    model, batch = get_model(family), one_row(family)
    for value in (float("nan"), float("inf")):
        pixels = {k: torch.full_like(v, value) for k, v in batch.inputs.items() if k.startswith("pixel")}
        for policy in ("divprune", "fopru", "todre", "random", "grid"):
            with torch.no_grad(), pruning(model, policy, 0.3), contextlib.suppress(ValueError):
                model(**{**batch.inputs, **pixels})
                record = pruning_report(model)[0]
                assert record.indices == sorted(set(record.indices))
                assert set(record.indices) <= set(range(record.n_before))
    model(**batch.inputs)


# ---------------------------------------------------------------- around the model


@cell("Around the model", "bfloat16, float16", "runs; keeping all is the stock model to the bit")
def half_precision(family):
    for dtype in (torch.bfloat16, torch.float16):
        model, batch = copy.deepcopy(get_model(family)).to(dtype), ragged_batch(family)
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        before = generate(model, inputs)
        with pruning(model, "divprune", 1.0):
            assert torch.equal(generate(model, inputs).logits, before.logits)
        with pruning(model, "divprune", 0.3):
            assert generate(model, inputs).logits.isfinite().all()


@cell("Around the model", "`model.to()` while pruned", "keeps pruning")
def moved(family):
    model, batch = copy.deepcopy(get_model(family)), ragged_batch(family)
    with pruning(model, "divprune", 0.3):
        expected = generate(model, batch.inputs)
        model.float().double()
        assert all(r.n_after < r.n_before for r in pruning_report(model))
        assert torch.equal(generate(model, batch.inputs).tokens, expected.tokens)


@cell("Around the model", "peft LoRA, before and after", "wraps a pruned model, and is pruned itself")
def lora(family):
    peft = pytest.importorskip("peft")
    batch = ragged_batch(family)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(copy.deepcopy(get_model(family)), config).double().eval()
    apply_pruning(wrapped, "divprune", 0.3, positions="original")
    run = generate(wrapped, batch.inputs)
    kept = keep_mask(batch, pruning_report(wrapped))
    remove_pruning(wrapped)
    assert_same(run, masked(wrapped.get_base_model(), batch, kept))
    assert not torch.equal(run.logits, generate(get_model(family), batch.inputs).logits)
    inner = copy.deepcopy(get_model(family))
    apply_pruning(inner, "divprune", 0.3, positions="original")
    torch.manual_seed(0)
    outer = peft.get_peft_model(inner, config).double().eval()
    assert_same(generate(outer, batch.inputs), run)


@cell("Around the model", "8-bit and 4-bit weights (quanto)", "as its own masked original")
def quantised(family):
    quanto = pytest.importorskip("optimum.quanto")
    for weights in (quanto.qint8, quanto.qint4):
        model, batch = copy.deepcopy(get_model(family)).float(), ragged_batch(family)
        quanto.quantize(text_of(model), weights=weights)
        quanto.freeze(text_of(model))
        assert any(type(m).__name__ == "QLinear" for m in text_of(model).modules())
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in batch.inputs.items()}
        batch = type(batch)(inputs, batch.visuals)
        with pruning(model, "divprune", 0.3, positions="original"):
            run = generate(model, inputs)
            kept = keep_mask(batch, pruning_report(model))
        assert_same(run, masked(model, batch, kept), atol=1e-3)


@cell("Around the model", "accelerate: weights offloaded to CPU or disk, before and after", "as without")
def offloaded(family):
    accelerate = pytest.importorskip("accelerate")
    batch, here = ragged_batch(family), torch.device("cpu")
    with pruning(get_model(family), "divprune", 0.3):
        expected = generate(get_model(family), batch.inputs)
    with tempfile.TemporaryDirectory() as folder:
        for pruned_first, disk in itertools.product((True, False), (True, False)):
            model = copy.deepcopy(get_model(family))
            if pruned_first:
                apply_pruning(model, "divprune", 0.3)
            if disk:
                accelerate.disk_offload(model, f"{folder}/{pruned_first}", execution_device=here)
                assert all(p.is_meta for p in model.parameters())
            else:
                accelerate.cpu_offload(model, execution_device=here)
            if not pruned_first:
                apply_pruning(model, "divprune", 0.3)
            assert_same(generate(model, batch.inputs), expected)
            remove_pruning(model)


@cell("Around the model", "accelerate: over two devices (`device_map`), emulated", "as on one")
def two_devices(family):
    test = f"tests/elsewhere/test_away.py::test_over_two_devices[{family}-"  # in a process of its own
    halves = [f"{test}tower-visionzip]", f"{test}upper layers-auto]"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *halves]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@cell("Around the model", "`save_pretrained`, `copy.deepcopy`", "saves the stock model; a copy prunes for itself")
def saved(family):
    model, batch = copy.deepcopy(get_model(family)), ragged_batch(family)
    before = generate(model, batch.inputs)
    apply_pruning(model, "divprune", 0.3)
    pruned = generate(model, batch.inputs)
    twin = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder, dtype=torch.float64).eval()
    loaded.generation_config.eos_token_id = None
    assert_same(generate(loaded, batch.inputs), before)  # rotary frequencies are computed anew
    remove_pruning(model)
    assert torch.equal(generate(model, batch.inputs).logits, before.logits)
    assert torch.equal(generate(twin, batch.inputs).logits, pruned.logits)


@cell("Around the model", "`torch.export`", "an error that says: remove pruning first", families=("llava",))
def exported(family):
    model, batch = copy.deepcopy(get_model(family)), ragged_batch(family)
    for part in (model, model.model):
        with pruning(model, "divprune", 0.3), pytest.raises(Exception, match="call remove_pruning\\(model\\) first"):
            torch.export.export(part, (), {**batch.inputs, "use_cache": False}, strict=False)


@cell("Around the model", "`torch.compile(model)`, run before it is pruned", "pruned from then on", families=("llava",))
def compiled_before(family):
    test_calls.test_what_was_compiled_before_is_pruned_from_then_on()


@cell("Around the model", "pickle, `torch.save`, spawn, Ray", "an error that says: remove pruning first", ("llava",))
def pickled(family):
    test_calls.test_what_is_pruned_cannot_be_pickled_and_says_so()


@cell("Around the model", "`nn.DataParallel`", "an error that names what to use instead", families=("llava",))
def replicas(family):
    test_calls.test_replicas_are_refused()


@cell(
    "Around the model",
    "pruning changed while the model runs, `pruning()` blocks that do not nest",
    "an error; between two steps of `generate` it may change",
    ("llava",),
)
def changed_meanwhile(family):
    for where in ("same thread", "another thread"):
        test_calls.test_pruning_cannot_change_while_the_model_runs(where)
    test_calls.test_policies_may_change_between_the_steps_of_a_generation()
    test_calls.test_blocks_that_do_not_nest_raise()


@cell("Around the model", '`pipeline("image-text-to-text")`', "prunes", families=("embedded",))
def pipeline(family):
    from tokenprune.eval.asking import held_out
    from tokenprune.eval.minivlm import load

    model, processor = load()
    samples = [held_out(12)[i] for i in (0, 7)]
    ask = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    picture = lambda s: {"type": "image", "image": Image.fromarray(s.scene.image)}
    words = lambda s: {"type": "text", "text": s.question.text}
    chats = [[{"role": "user", "content": [picture(s), words(s)]}] for s in samples]
    apply_pruning(model, "divprune", 0.5, positions="original")
    answers = ask(text=chats, max_new_tokens=4, return_full_text=False, batch_size=1)
    assert [a[0]["generated_text"].strip() for a in answers] == [s.question.answer for s in samples]
    assert pruning_report(model)[0].n_after == 72


@cell("Around the model", "`torch.compile` of the decoder layers", "one graph, no break, same logits")
def compiled(family):
    # A new one: transformers leaves hooks of its own on a model that was asked for attentions.
    model, batch = spread_weights(FAMILIES[family].build()), one_row(family)
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        expected = model(**batch.inputs, use_cache=False).logits
        torch._dynamo.reset()
        counter = CompileCounter()
        for layer in text_of(model).layers:
            layer.compile(backend=counter, fullgraph=True)
        logits = model(**batch.inputs, use_cache=False).logits
    torch.testing.assert_close(logits, expected)
    assert counter.frame_count == 1  # the layers share their code


@cell("Around the model", "1,000 calls", "memory stays where it was; nothing hangs on the model", families=("llava",))
def flat_memory(family):
    import gc

    # A new one: after an error, transformers 5.0 leaves wrappers on a stock model that go on collecting.
    model, batch = spread_weights(FAMILIES[family].build()), one_row(family)

    def tensors():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    with torch.no_grad(), pruning(model, ["divprune", "fastv"], 0.3):
        model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
        before = tensors()
        for _ in range(1000):
            model(**batch.inputs, use_cache=True)
        assert tensors() <= before + 5


@cell(
    "Around the model",
    "an error, out of memory or Ctrl-C in the policy, the encoder or a layer",
    "the model stays usable",
)
def faults(family):
    model, batch = get_model(family), ragged_batch(family)
    base = model.model
    tower = base.visual if hasattr(base, "visual") else base.vision_tower
    with pruning(model, "divprune", 0.3):
        expected = generate(model, batch.inputs)
        for error in (KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError):
            for module in (tower, text_of(model), text_of(model).layers[1], model.lm_head):

                def fail(*args, error=error):
                    raise error("on purpose")

                handle = module.register_forward_pre_hook(fail)
                with pytest.raises(error):
                    generate(model, batch.inputs)
                handle.remove()
                assert_same(generate(model, batch.inputs), expected, atol=0)


PAIRS = [(one, family) for one in CELLS for family in one.families]


@pytest.mark.parametrize(("one", "family"), PAIRS, ids=[f"{c.check.__name__}-{f}" for c, f in PAIRS])
def test_cell(one, family):
    one.check(family)


def page() -> str:
    lines = [
        "# What works with pruning",
        "",
        "Every line is a test, on the families named, through the stock `generate` or `forward`:",
        "`tests/test_matrix.py` is both the tests and this page. The masked original is the stock model with the",
        "dropped tokens masked in attention. Oracles over all families and policies are in `tests/test_oracle.py`,",
        "random batches on random settings in `tests/test_fuzz.py`: 500 in every run of the tests; `make fuzz` runs",
        "10,000. The last long run: 10,000 cases, SEED=58, transformers 5.24.0, no failure.",
        "",
        "Random conversations of one to four turns are in `tests/test_conversations.py`, held turn by turn against the",
        "stock model under the same calls, with what was dropped hidden layer by layer: 200 in every run of the tests,",
        "3,000 by `make fuzz`. The last long run: 3,000 conversations, SEED=102, transformers 5.24.0, no failure.",
    ]
    for area in dict.fromkeys(one.area for one in CELLS):
        lines += ["", f"## {area}", "", "| | what holds | tested on |", "|---|---|---|"]
        for one in CELLS:
            if one.area == area:
                families = ", ".join(f"`{f}`" for f in one.families)
                lines.append(f"| {one.feature} | {one.says} | {families} |")
    return "\n".join(lines) + "\n"


def test_the_page_is_of_this_table():
    assert DOCS.read_text() == page(), "run: python -m tests.test_matrix"


README = Path(__file__).parents[1] / "README.md"


def readme() -> str:
    """The README with the matrix in short: what is tested, by area."""
    rows = ["| | tested against the masked original, or to fail clearly |", "|---|---|"]
    for area in dict.fromkeys(one.area for one in CELLS):
        features = "; ".join(one.feature for one in CELLS if one.area == area)
        rows.append(f"| **{area}** | {features} |")
    return put(README.read_text(), "matrix", "\n".join(rows))


def test_the_readmes_matrix_is_of_this_table():
    text = README.read_text()
    assert text == readme(), "run: python -m tests.test_matrix"
    assert CELLS[0].feature in place("matrix").search(text)[0]


if __name__ == "__main__":
    DOCS.write_text(page())
    README.write_text(readme())
