"""What the embedded models are trained on: answers, and what each visual token shows."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import ABSENT, IGNORE, N_CONTENTS, QA_LEN
from .drawing import CHARACTERS, COLOUR_NAMES, KINDS, LETTERS, PATCH, SHAPES, WORD_LENGTH
from .scenes import COLUMNS, ROWS

_BACKGROUND = 0.2  # weight of patches that show nothing: most do


def _named_loss(logits: Tensor, target: Tensor) -> Tensor:
    weight = logits.new_ones(logits.shape[1])
    weight[0] = _BACKGROUND
    return F.cross_entropy(logits, target, weight, ignore_index=-1)


def places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which third of a picture (pixels) each visual token lies in, from the top and from the left, (N,) each."""
    rows, columns = height // PATCH, width // PATCH
    third = lambda n: torch.arange(n) * 3 // n
    return third(rows).repeat_interleave(columns), third(columns).repeat(rows)


class TowerHeads(nn.Module):
    """Training-only classifiers on the vision tower; not shipped."""

    def __init__(self, width: int):
        super().__init__()
        sizes = (len(COLOUR_NAMES), len(KINDS), len(CHARACTERS), WORD_LENGTH, len(LETTERS))
        self.patch = nn.ModuleList(nn.Linear(width, n + 1) for n in sizes)
        self.places = nn.ModuleList(nn.Linear(width, len(words)) for words in (ROWS, COLUMNS))
        self.picture = nn.Linear(width, N_CONTENTS)

    def patch_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """Loss of (B, N, D) features against (B, 5, N) labels, and accuracy on labelled patches."""
        loss, accuracy = features.new_zeros(()), []
        for i, head in enumerate(self.patch):
            logits, target = head(features).float().flatten(0, 1), labels[:, i].flatten().long()
            loss = loss + _named_loss(logits, target)
            named = target > 0
            accuracy.append((logits.argmax(1) == target)[named].float().mean().item())
        return loss, accuracy

    def place_loss(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Visual tokens (B, N, D) of pictures of a size should know where they are: a tower drops it else."""
        losses = [
            F.cross_entropy(head(features).float().flatten(0, 1), place.repeat(len(features)))
            for head, place in zip(self.places, places(*size), strict=True)
        ]
        return losses[0] + losses[1]

    def picture_loss(self, pooled: Tensor | None, contents: Tensor) -> Tensor:
        """Loss of the pooled output (B, D) against what the pictures hold; 0 for a tower that does not pool."""
        if pooled is None:
            return torch.zeros(())
        loss = F.binary_cross_entropy_with_logits(self.picture(pooled).float(), contents.float(), reduction="none")
        return loss.sum(1).mean() / 12


class Alignment:
    """Visual tokens should point at the embeddings of the words for what they show and where they are."""

    def __init__(self, family: ModuleType):
        self.words = [torch.tensor([family.IDS[w] for w in words]) for words in (COLOUR_NAMES, SHAPES, CHARACTERS)]
        self.keys = torch.tensor([family.IDS[w] for w in LETTERS])
        self.rows, self.columns = (torch.tensor([family.IDS[w] for w in words]) for words in (ROWS, COLUMNS))

    def loss(self, tokens: Tensor, labels: Tensor, embeddings: Tensor, size: tuple[int, int]) -> Tensor:
        """Loss of (B, N, D) visual tokens of pictures of a size against (B, 5, N) labels."""
        normal = F.rms_norm(tokens.float(), tokens.shape[-1:])

        def similarity(words: Tensor) -> Tensor:
            e = embeddings[words]
            return (normal @ F.rms_norm(e, e.shape[-1:]).T / 6).float().flatten(0, 1)

        loss = tokens.new_zeros(())
        for i, words in enumerate(self.words):
            target = labels[:, i].flatten().long()
            target = target.masked_fill(target > len(words), -1)  # tiles, signs and tables are shapes without a word
            loss = loss + _named_loss(F.pad(similarity(words), (1, 0)), target)  # background has logit 0
        key = labels[:, 4].flatten().long() - 1  # of the row that a value stands in
        loss = loss + F.cross_entropy(similarity(self.keys), key, ignore_index=-1)
        for words, place in zip((self.rows, self.columns), places(*size), strict=True):
            loss = loss + 0.5 * F.cross_entropy(similarity(words), place.repeat(len(tokens)))
        return loss


class Grounding(nn.Module):
    """Training-only classifier on the language model: halfway up, a name should know where the shape is, if it is."""

    def __init__(self, width: int):
        super().__init__()
        self.places = nn.Linear(width, ABSENT + 1)

    def loss(self, hidden: Tensor, named: Tensor) -> tuple[Tensor, float]:
        """Loss of hidden states (B, n_questions, QA_LEN, D) against (B, n_questions, 2, 2) names, and accuracy."""
        place, cell = named.long().unbind(-1)
        states = hidden.take_along_dim(place.clamp(min=0)[..., None], 2)
        there = place >= 0
        logits, target = self.places(states[there]).float(), cell[there]
        return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean().item()


class Packing:
    """One sequence for some pictures and many questions that do not see each other."""

    def __init__(self, family: ModuleType, model: Any, n_images: int, size: tuple[int, int], n_questions: int):
        before, _ = family.framing(n_images, *size)
        self.before = torch.tensor(before)
        self.visual = self.before == self.before.mode().values  # placeholders are most of it
        start = len(before)
        block = torch.full((start + n_questions * QA_LEN,), -1)
        block[start:] = torch.arange(n_questions).repeat_interleave(QA_LEN)
        order = torch.arange(len(block))
        seen = (order[None] <= order[:, None]) & ((block[None] == -1) | (block[None] == block[:, None]))
        self.mask = seen[None, None]
        one = torch.cat([self.before, torch.zeros(QA_LEN, dtype=torch.long)])[None]
        positions = family.positions(model, one, n_images, *size)
        answers = positions[..., start:]
        self.positions = torch.cat([positions[..., :start], *[answers] * n_questions], -1)

    def __call__(self, model: Any, tokens: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits of the questions, (B, n_questions, QA_LEN, V), from (B, N, D) visual tokens, and their
        hidden states halfway up, (B, n_questions, QA_LEN, D)."""
        embed = model.get_input_embeddings()
        before = embed(self.before).expand(len(ids), -1, -1).clone()
        before[:, self.visual] = tokens.to(before.dtype)
        positions = self.positions
        if positions.ndim == 3:
            positions = positions.expand(-1, len(ids), -1)
        out = model.model.language_model(
            inputs_embeds=torch.cat([before, embed(ids.flatten(1).long())], 1),
            attention_mask=self.mask.expand(len(ids), -1, -1, -1),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        )
        start, halfway = len(self.before), len(out.hidden_states) // 2
        logits, states = model.lm_head(out.last_hidden_state[:, start:]).float(), out.hidden_states[halfway][:, start:]
        return logits.unflatten(1, ids.shape[1:]), states.unflatten(1, ids.shape[1:])


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :, :-1].flatten(0, 2), targets[:, :, 1:].flatten().long(), ignore_index=IGNORE)


def answered(logits: Tensor, targets: Tensor) -> Tensor:
    """Exact match per question, end of answer included (B, n_questions): what greedy decoding would score."""
    target = targets[:, :, 1:].long()
    return ((logits[:, :, :-1].argmax(-1) == target) | (target == IGNORE)).all(-1)
