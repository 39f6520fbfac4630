"""One sequence of images and many questions, as the embedded models are trained on it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from .data import QA_LEN

#: Attention implementation that computes no scores which the mask of a packed sequence forbids.
PACKED = "minivlm_packed"


class Packing:
    """One sequence of images and many questions, none of which attends to another.

    Args:
        family: module of the embedded model.
        model: the model.
        n_images: images of a sequence.
        size: their height and width in pixels, or what else the family's `framing` and `positions` take.
        n_questions: of a sequence.
        length: of a question with its answer, in tokens.
    """

    def __init__(
        self,
        family: ModuleType,
        model: Any,
        n_images: int,
        size: tuple[int, ...],
        n_questions: int,
        length: int = QA_LEN,
    ):
        self.length = length
        before, _ = family.framing(n_images, *size)
        self.before = torch.tensor(before)
        self.visual = self.before == self.before.mode().values  # the most frequent token is the placeholder
        start = len(before)
        block = torch.full((start + n_questions * length,), -1)
        block[start:] = torch.arange(n_questions).repeat_interleave(length)
        order = torch.arange(len(block))
        attends = (order[None] <= order[:, None]) & ((block[None] == -1) | (block[None] == block[:, None]))
        self.mask = attends[None, None]
        one = torch.cat([self.before, torch.zeros(length, dtype=torch.long)])[None]
        positions = family.positions(model, one, n_images, *size)
        answers = positions[..., start:]
        self.positions = torch.cat([positions[..., :start], *[answers] * n_questions], -1)

    def __call__(self, model: Any, tokens: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Run the language model.

        Args:
            model: the model.
            tokens: visual tokens, (B, N, D), or with P deepstack planes behind them, (B, N, (1 + P) * D).
            ids: token ids of the questions, (B, n_questions, length).

        Returns:
            Next-token logits of the questions, float32 (B, n_questions, length, V), and their hidden states after half
            of the layers, (B, n_questions, length, D).
        """
        embed = model.get_input_embeddings()
        before = embed(self.before).expand(len(ids), -1, -1).clone()
        tokens, *planes = tokens.to(before.dtype).split(before.shape[-1], -1)
        before[:, self.visual] = tokens
        positions = self.positions
        if positions.ndim == 3:
            positions = positions.expand(-1, len(ids), -1)
        more: dict[str, Any] = {}
        if planes:
            columns = F.pad(self.visual, (0, ids[0].numel()))
            more["visual_pos_masks"] = columns.expand(len(ids), -1)
            more["deepstack_visual_embeds"] = [plane.flatten(0, 1) for plane in planes]
        if model.config.text_config._attn_implementation == PACKED:
            more |= {"shared": len(self.before), "length": self.length}
        out = model.model.language_model(
            inputs_embeds=torch.cat([before, embed(ids.flatten(1).long())], 1),
            attention_mask=self.mask.expand(len(ids), -1, -1, -1),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
            **more,
        )
        start, halfway = len(self.before), len(out.hidden_states) // 2
        logits, states = model.lm_head(out.last_hidden_state[:, start:]).float(), out.hidden_states[halfway][:, start:]
        return logits.unflatten(1, ids.shape[1:]), states.unflatten(1, ids.shape[1:])


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any
) -> tuple[Tensor, None]:
    """Attention of a packed sequence without the scores that its mask forbids, which are six in ten.

    Args:
        module: the attention layer.
        query: (B, n_heads, L, D).
        key: (B, n_key_heads, L, D).
        value: likewise.
        attention_mask: ignored; the layout says who attends to whom.
        **more: `scaling` of the scores; `shared`, the tokens before the questions, to which all questions attend;
            `length` of a question.

    Returns:
        The output, (B, L, n_heads, D), and None for the weights.
    """
    scaling, shared, length = more["scaling"], more["shared"], more["length"]
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    first_query, first_key, first_value = (x[:, :, :shared] for x in (query, key, value))
    ahead = F.scaled_dot_product_attention(first_query, first_key, first_value, is_causal=True, scale=scaling)
    q, own_keys, own_values = (x[:, :, shared:].unflatten(2, (-1, length)) for x in (query, key, value))
    to_shared = query[:, :, shared:] @ first_key.transpose(2, 3)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    to_own = (q @ own_keys.transpose(3, 4)).masked_fill(later, -torch.inf)
    scores = torch.cat([to_shared.unflatten(2, (-1, length)), to_own], -1) * scaling
    weights = scores.float().softmax(-1).to(query.dtype)
    questions = weights[..., :shared].flatten(2, 3) @ first_value
    questions = questions + (weights[..., shared:] @ own_values).flatten(2, 3)
    return torch.cat([ahead, questions], 2).transpose(1, 2), None


AttentionInterface.register(PACKED, packed_attention)
