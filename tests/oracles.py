"""What pruned generation must equal, computed with the stock model alone.

Both oracles feed the stock text model by hand with the embeddings and positions the stock model
computes itself; only the kept columns are taken from the run under test.

* masked: the full sequence, dropped columns masked in attention;
* native-short: each row on its own, without padding, mask or dropped columns. It holds where masking
  is no equivalent (sliding windows, hybrids), and defines what is right.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from tokenprune import pruning, pruning_report
from tokenprune.patches.cache import cache_among

from .builders import IMAGE, VIDEO
from .families import case_of, text_of

STEPS = 9  # prefill, then eight decode steps


@dataclass
class Run:
    tokens: torch.Tensor  # (B, steps)
    logits: torch.Tensor  # (steps, B, V)


@torch.no_grad()
def generate(model, inputs: dict[str, Any], steps: int = STEPS, **kwargs) -> Run:
    out = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, return_dict_in_generate=True, output_logits=True, **kwargs
    )
    return Run(out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits))


@torch.no_grad()
def text_inputs(model, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the stock model hands its text model at prefill: embeddings, positions, deepstack planes."""
    seen: dict[str, Any] = {}

    def look(module, args, kwargs):
        seen.update(kwargs)

    handle = text_of(model).register_forward_pre_hook(look, with_kwargs=True)
    try:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    finally:
        handle.remove()
    embeds, mask = seen["inputs_embeds"], inputs["attention_mask"]
    positions = seen.get("position_ids")
    if positions is None:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
    positions = positions.expand(*positions.shape[:-2], *embeds.shape[:2]).clone()
    planes = {k: seen[k] for k in ("visual_pos_masks", "deepstack_visual_embeds") if seen.get(k) is not None}
    aligned = {k: seen[k] for k in case_of(model).aligned if seen.get(k) is not None}
    return dict(embeds=embeds, positions=positions, mask=mask.bool(), planes=planes, aligned=aligned)


def keep_mask(batch, records) -> torch.Tensor:
    """(B, L) bool from a pruning report and the batch's own account of its placeholders."""
    keep = torch.ones_like(batch.inputs["input_ids"], dtype=torch.bool)
    order = sorted(batch.visuals, key=lambda v: (v[0], v[1][0]))
    assert len(records) == len(order)
    for record, (row, columns, kind) in zip(records, order, strict=True):
        assert (record.sample, record.kind, record.n_before) == (row, kind, len(columns))
        assert record.n_after == len(record.indices)
        assert record.indices == sorted(set(record.indices))
        keep[row, columns] = False
        keep[row, torch.tensor(columns)[record.indices]] = True
    return keep


def renumber(text: dict[str, Any], keep: torch.Tensor) -> None:
    """Number what is left of each row 0, 1, 2 ..., on every axis alike; rows that lose nothing stay as they are."""
    rank = ((keep & text["mask"]).cumsum(1) - 1).clamp(min=0)
    text["positions"] = torch.where(keep.all(1, keepdim=True), text["positions"], rank)


def _decode(model, text: dict[str, Any], steps: int) -> Run:
    """Greedy decoding by the stock text model from prepared prefill inputs."""
    lm, cache, logits, tokens = text_of(model), None, [], []
    embeds, positions, mask = text["embeds"], text["positions"], text["mask"]
    planes = {**text["planes"], **text["aligned"]}
    for step in range(steps):
        out = lm(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=text["first"] if step == 0 and "first" in text else mask,
            past_key_values=cache,
            use_cache=True,
            **planes,
        )
        cache = out.past_key_values
        logits.append(model.lm_head(out.last_hidden_state[:, -1]).float())
        tokens.append(logits[-1].argmax(-1))
        case, fed = case_of(model), tokens[-1][:, None]
        if case.as_padding:
            fed = fed.masked_fill((fed == IMAGE) | (fed == VIDEO), 0)
        planes, embeds = case.step(model, fed), model.get_input_embeddings()(fed)
        positions = positions[..., -1:] + 1
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return Run(torch.stack(tokens, 1), torch.stack(logits))


def with_features(text: dict[str, Any], keep: torch.Tensor, fed: torch.Tensor | None, changed: bool) -> None:
    """Put what the text model was fed, (B, M, D) left-padded, in the kept columns of the stock embeddings."""
    if fed is None:
        return
    for row, columns in enumerate(keep & text["mask"]):
        short = fed[row, fed.shape[1] - int(columns.sum()) :]
        if not changed:
            assert torch.equal(text["embeds"][row, columns], short)
        text["embeds"][row, columns] = short


@torch.no_grad()
def masked(
    model, batch, keep, positions: str | torch.Tensor = "original", steps: int = STEPS, fed=None, changed=False
) -> Run:
    """`positions` may be position ids, (B, L)."""
    text = text_inputs(model, batch.inputs)
    if isinstance(positions, torch.Tensor):
        text["positions"] = positions
    with_features(text, keep, fed, changed)
    text["mask"] = text["mask"] & keep
    if isinstance(positions, str) and positions == "compact":
        renumber(text, keep)
    if case_of(model).blocks:
        return _decode_from_the_top(model, batch, text, steps)
    return _decode(model, text, steps)


def _decode_from_the_top(model, batch, text: dict[str, Any], steps: int) -> Run:
    """The same by the whole stock model, where the masks are made above the text model."""
    mask, positions, logits, tokens = text["mask"], text["positions"], [], []
    handle = text_of(model).register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "inputs_embeds": text["embeds"]}), with_kwargs=True
    )
    call = {**batch.inputs, "attention_mask": mask.long(), "position_ids": positions}
    for _ in range(steps):
        out = model(**call, use_cache=True)
        handle.remove()
        logits.append(out.logits[:, -1].float())
        tokens.append(logits[-1].argmax(-1))
        positions, mask = positions[..., -1:] + 1, torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        call = dict(
            input_ids=tokens[-1][:, None],
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=out.past_key_values,
        )
    return Run(torch.stack(tokens, 1), torch.stack(logits))


def same_block(types: torch.Tensor, blocks: str) -> torch.Tensor:
    """(1, 1, n, n) bool of a row without padding: which columns are of one picture, or of the prompt."""
    block = (types == 0).long() if blocks == "prompt" else (types != 0).long()
    if blocks == "picture":
        starts = (block == 1) & torch.nn.functional.pad(block[:-1] == 0, (1, 0), value=True)
        block = torch.where(block == 1, starts.cumsum(0), 0)
    same = (block[:, None] == block) & (block > 0)
    return same[None, None]


def without(keep: torch.Tensor, batch, kept: list[list[int] | None]) -> torch.Tensor:
    """`keep` with each visual input cut to the given indices; None leaves it as it is."""
    keep = keep.clone()
    order = sorted(batch.visuals, key=lambda v: (v[0], v[1][0]))
    for indices, (row, columns, _) in zip(kept, order, strict=True):
        if indices is not None:
            keep[row, columns] = False
            keep[row, torch.tensor(columns)[indices]] = True
    return keep


def upper_masks(batch, records) -> dict[int, torch.Tensor]:
    """(B, L) bool by decoder layer: what it and those above hold, for every layer where some row was cut."""
    layers = sorted({cut.layer for r in records for cut in r.cuts})
    for r in records:
        for below, above in itertools.pairwise([r.indices, *(cut.indices for cut in r.cuts)]):
            assert set(above) < set(below)

    def held(record, layer):
        return next((cut.indices for cut in reversed(record.cuts) if cut.layer <= layer), None)

    return {layer: without(keep_mask(batch, records), batch, [held(r, layer) for r in records]) for layer in layers}


@torch.no_grad()
def deep_masked(model, batch, keep, upper, positions: str = "original", steps: int = STEPS, fed=None) -> Run:
    """The stock model with an additive mask from some layers on, which hides what they have lost.

    `upper` says by layer what it and those above hold, until the next.
    """
    text = text_inputs(model, batch.inputs)
    with_features(text, keep, fed, changed=True)
    padding = text["mask"].clone()
    text["mask"] = text["mask"] & keep
    if positions == "compact":
        renumber(text, keep)

    def hide(module, args, kwargs):
        length = args[0].shape[1]
        cache = cache_among(kwargs)
        total = length if cache is None else cache.layers[module.self_attn.layer_idx].get_seq_length() + length
        held = upper[max(i for i in upper if i <= module.self_attn.layer_idx)]
        seen = torch.nn.functional.pad(held & padding, (0, total - held.shape[1]), value=True)
        causal = torch.ones(length, total, dtype=torch.bool).tril(total - length)
        mask = torch.zeros(len(seen), 1, length, total, dtype=args[0].dtype)
        mask = mask.masked_fill(~(seen[:, None, None] & causal), torch.finfo(torch.float32).min)
        return args, {**kwargs, "attention_mask": mask}

    layers = text_of(model).layers
    handles = [m.register_forward_pre_hook(hide, with_kwargs=True) for m in layers[min(upper) :]]
    try:
        return _decode(model, text, steps)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def native_short(
    model, batch, keep, positions: str = "original", steps: int = STEPS, fed=None, changed=False, window=None
) -> Run:
    text = text_inputs(model, batch.inputs)
    with_features(text, keep, fed, changed)
    if positions == "compact":
        renumber(text, keep)
    keep = keep & text["mask"]
    runs = []
    for row in range(len(keep)):
        columns = keep[row].nonzero()[:, 0]
        planes = {}
        if text["planes"]:
            visual, here = text["planes"]["visual_pos_masks"], torch.zeros_like(keep)
            marks = visual if visual.ndim == 2 else visual[..., 0]  # transformers 4 has it along the features
            here[row, columns] = True
            planes = dict(
                visual_pos_masks=visual[row : row + 1, columns],
                deepstack_visual_embeds=[p[here[marks]] for p in text["planes"]["deepstack_visual_embeds"]],
            )
            if not planes["visual_pos_masks"].any():
                planes = {}
        short = dict(
            embeds=text["embeds"][row : row + 1, columns],
            positions=text["positions"][..., row : row + 1, columns],
            mask=None,
            planes=planes,
            aligned={name: value[row : row + 1, columns] for name, value in text["aligned"].items()},
        )
        blocks = case_of(model).blocks
        if blocks:
            # Pictures that stand side by side are one block, and remain one.
            types = batch.inputs["mm_token_type_ids" if blocks in ("sliding", "both") else "token_type_ids"][row]
            kind = blocks if blocks == "prompt" else "picture"
            same = same_block(types, kind)[..., columns, :][..., columns]
            causal = torch.ones_like(same).tril()
            within = torch.ones_like(same) if window is None else torch.ones_like(same).triu(1 - window)
            near = causal & within | same if blocks == "both" else (causal | same) & within
            far = causal if blocks == "sliding" else causal | same
            kinds = getattr(text_of(model).config, "layer_types", None)
            short["first"] = {k: near if k == "sliding_attention" else far for k in set(kinds)} if kinds else far
        runs.append(_decode(model, short, steps))
    return Run(torch.cat([r.tokens for r in runs]), torch.cat([r.logits for r in runs], 1))


def assert_same(run: Run, oracle: Run, atol: float = 1e-5) -> None:
    assert torch.equal(run.tokens, oracle.tokens)
    torch.testing.assert_close(run.logits, oracle.logits, rtol=0, atol=atol)


def prune(model, batch, policy, keep, positions: str, steps: int = STEPS, **options) -> tuple[Run, torch.Tensor, list]:
    """A pruned run, what the text model was fed at prefill, and the report."""
    fed: list[torch.Tensor] = []
    with pruning(model, policy, keep, budget="final", positions=positions, **options):
        handle = text_of(model).register_forward_pre_hook(
            lambda m, a, k: fed.append(k["inputs_embeds"]), with_kwargs=True
        )
        run = generate(model, batch.inputs, steps)
        handle.remove()
        return run, fed[0], pruning_report(model)


def check_against_oracles(
    model,
    batch,
    policy,
    keep,
    positions: str,
    changes_features: bool = False,
    steps: int = STEPS,
    oracles: str = "masked, native-short",
    **options,
) -> list:
    """Prune, generate, and hold tokens and logits against both oracles. Returns the report.

    Policies that change features are held against the stock model fed the same features; all others
    must have fed it the stock embeddings to the bit. `oracles` names those that are asked.
    """
    run, fed, records = prune(model, batch, policy, keep, positions, steps, **options)
    kept = keep_mask(batch, records)
    same = dict(fed=fed, changed=changes_features, steps=steps)
    if case_of(model).hybrid:
        assert_same(run, native_short(model, batch, kept, positions, **same), atol=1e-3)
        return records
    if "masked" in oracles:
        assert_same(run, masked(model, batch, kept, positions, **same))
    if "native-short" in oracles:
        assert_same(run, native_short(model, batch, kept, positions, **same))
    return records


def check_decoder_stage(
    model, batch, policy, keep=0.3, positions: str = "original", steps: int = STEPS, **options
) -> list:
    """Prune, generate, and hold tokens and logits against layers that hide what was cut. Returns the report."""
    with pruning(model, policy, keep, budget="final", positions=positions, **options):
        run = generate(model, batch.inputs, steps)
        records = pruning_report(model)
    upper = upper_masks(batch, records)
    kept = keep_mask(batch, records)
    if upper:
        assert_same(run, deep_masked(model, batch, kept, upper, positions, steps))
    else:
        assert_same(run, masked(model, batch, kept, positions, steps))
    return records
