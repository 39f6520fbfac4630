"""Conversations of any checkpoint as batches, by its own chat template."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch


def encode_conversations(processor: Any, conversations: Sequence[list[dict[str, Any]]], **options: Any) -> Any:
    """Model inputs of a batch of conversations that the model is to answer, padded on the left.

    Args:
        processor: of the checkpoint.
        conversations: messages as chat templates take them, with `images` and `videos` in their parts.
        **options: further arguments for the processor.

    Raises:
        ValueError: the processor has no chat template.
    """
    options = {"padding": True, "padding_side": "left", **options}
    apply = processor.apply_chat_template
    if "processor_kwargs" in inspect.signature(apply).parameters:  # transformers 5
        options = {"processor_kwargs": options}
    return apply(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )


def answer_lengths(new: torch.Tensor, config: Any) -> list[int]:
    """Number of tokens generated in each row, up to and including the first end of sequence; padding follows.

    Args:
        new: (B, T) generated ids.
        config: that they were generated with.
    """
    ends = config.eos_token_id
    ends = torch.tensor([] if ends is None else [ends] if isinstance(ends, int) else ends, device=new.device)
    ended = torch.isin(new, ends)
    first = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
    return first.tolist()
