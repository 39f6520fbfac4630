"""A model's own answers, and how a pruned model takes them: one call of the model on prompt and answer each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from ...patches import Record
from ...patches.cache import cache_among, cache_name
from ..conversations import answer_lengths
from ..setting import PruningSetting

#: Most likely next tokens that are remembered of the full model; the others count as one.
LIKELIEST = 20
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class Reply:
    """What the full model answered.

    Attributes:
        text: the answer without special tokens, stripped.
        tokens: (T,) ids, the one that ends it included.
        likeliest: (T, K) ids of the likeliest tokens in each of its places.
        logs: (T, K) natural logarithms of their probabilities.
    """

    text: str
    tokens: list[int]
    likeliest: list[list[int]]
    logs: list[list[float]]


@dataclass(frozen=True)
class Taken:
    """How a pruned model takes a reply.

    Attributes:
        differ: share of the reply's tokens in whose place the pruned model would choose another one, in [0, 1]. It is 0
            exactly if the pruned model gives the same reply by itself.
        kl: Kullback-Leibler divergence of its next token from the full model's, in nats, a mean over the reply's
            tokens. The tokens beyond `LIKELIEST` count as one, so it is at most the divergence over all tokens.
        layers: visual tokens that each decoder layer holds.
    """

    differ: float
    kl: float
    layers: list[int]


def greedy(model: Any, new_tokens: int) -> GenerationConfig:
    """How answers are generated: the likeliest token each, whatever else the checkpoint's own settings ask for."""
    ids = {name: getattr(model.generation_config, name, None) for name in _IDS}
    if ids["pad_token_id"] is None:
        ends = ids["eos_token_id"]
        ids["pad_token_id"] = ends[0] if isinstance(ends, list | tuple) else (ends or 0)
    return GenerationConfig(**ids, max_new_tokens=new_tokens, do_sample=False)


@torch.inference_mode()
def full_replies(model: Any, processor: Any, inputs: Mapping[str, Any], new_tokens: int) -> list[Reply]:
    """What the full model answers.

    Args:
        model: not pruned.
        processor: of the model.
        inputs: a batch, padded on the left.
        new_tokens: of an answer, at most.
    """
    with _own_settings(model, greedy(model, new_tokens)):
        out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True)
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    logs, likeliest = torch.stack(out.logits, 1).float().log_softmax(-1).topk(LIKELIEST)
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return [
        Reply(text.strip(), row[:length].tolist(), ids[:length].tolist(), _rounded(values[:length]))
        for text, row, length, ids, values in zip(
            texts, new, answer_lengths(new, model.generation_config), likeliest, logs, strict=True
        )
    ]


@torch.inference_mode()
def pruned_texts(
    model: Any, processor: Any, inputs: Mapping[str, Any], setting: PruningSetting, new_tokens: int
) -> list[str]:
    """What a pruned model answers by itself, without special tokens, stripped."""
    with setting.context(model), _own_settings(model, greedy(model, new_tokens)):
        tokens = model.generate(**inputs)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


@torch.inference_mode()
def take(model: Any, inputs: Mapping[str, Any], replies: Sequence[Reply], setting: PruningSetting) -> list[Taken]:
    """How a pruned model takes the full model's replies.

    The prompt is one call, whose tokens are pruned, and the reply another on its KV cache, so that policies that look
    at the end of the prompt find its end there.

    Args:
        model: not pruned.
        inputs: a batch, padded on the left.
        replies: of the full model.
        setting: how the model is pruned.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    longest = max(len(reply.tokens) for reply in replies)
    told = ids.new_full((len(replies), longest), greedy(model, 1).pad_token_id)
    for row, reply in zip(told, replies, strict=True):
        row[: len(reply.tokens)] = torch.tensor(reply.tokens)
    with setting.context(model), _own_settings(model, greedy(model, 1)), _head(model) as logits:
        out = model.generate(**inputs, return_dict_in_generate=True)
        records = setting.records(model)
        if longest > 1:
            more = {
                "input_ids": torch.cat([ids, told[:, :-1]], 1),
                "attention_mask": torch.cat([mask, mask.new_ones(told[:, 1:].shape)], 1),
                cache_name(): cache_among(out),
            }
            model.generate(**more, logits_to_keep=longest - 1)
    logs = torch.cat([logits[0][:, -1:], *(each[:, 1 - longest :] for each in logits[1:])], 1).float().log_softmax(-1)
    chosen, n_layers = logs.argmax(-1), model.config.get_text_config().num_hidden_layers
    placeholders = visual_tokens(model, ids)
    taken = []
    for i, reply in enumerate(replies):
        length = len(reply.tokens)
        differ = (chosen[i, :length] != told[i, :length]).float().mean()
        taken.append(Taken(float(differ), _divergence(reply, logs[i]), _layers(records, i, placeholders[i], n_layers)))
    return taken


def _divergence(reply: Reply, logs: Tensor) -> float:
    """The mean divergence of log-probabilities (T, V) from those of a reply."""
    full = torch.tensor(reply.logs, dtype=torch.float64)
    pruned = logs[: len(full)].gather(1, torch.tensor(reply.likeliest, device=logs.device)).double().cpu()
    rest = lambda known: torch.log1p(-known.exp().sum(1).clamp(max=1 - 1e-6))
    known = (full.exp() * (full - pruned)).sum(1)
    unknown = rest(full).exp() * (rest(full) - rest(pruned))
    return float((known + unknown).clamp(min=0).mean())


def _layers(records: Sequence[Record], sample: int, placeholders: int, n_layers: int) -> list[int]:
    """Visual tokens of one row of a batch by decoder layer."""
    own = [record.tokens_per_layer for record in records if record.sample == sample]
    return [sum(of_layer) for of_layer in zip(*own, strict=True)] if own else [placeholders] * n_layers


def visual_tokens(model: Any, ids: Tensor) -> list[int]:
    """Placeholders of pictures and videos in each row."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    tokens = {token for name in names if (token := getattr(model.config, name, None)) is not None}
    return torch.isin(ids, torch.tensor(sorted(tokens), device=ids.device)).sum(1).tolist()


@contextlib.contextmanager
def _own_settings(model: Any, config: GenerationConfig) -> Iterator[None]:
    """A context in which `generate` has these settings and none of the checkpoint's.

    It fills what a config given as an argument leaves open from the checkpoint's, a repetition penalty for example.
    """
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before


@contextlib.contextmanager
def _head(model: nn.Module) -> Iterator[list[Tensor]]:
    """A context that gathers the logits of each call of the model."""
    found: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: found.append(output.logits))
    try:
        yield found
    finally:
        handle.remove()


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in values.tolist()]
