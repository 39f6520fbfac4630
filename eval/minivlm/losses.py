"""Training losses of the embedded models: answers, and what each visual token shows."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import ABSENT, IGNORE, N_CONTENTS
from .drawing import CHARACTERS, COLOUR_NAMES, KINDS, LETTERS, PATCH, SHAPES, WORD_LENGTH
from .scenes import COLUMNS, ROWS

_BACKGROUND = 0.2  # weight of patches that show no object, which are the majority


def named_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of logits (n, classes) and targets (n,), with less weight on class 0 and none on -1."""
    weight = logits.new_ones(logits.shape[1])
    weight[0] = _BACKGROUND
    return F.cross_entropy(logits, target, weight, ignore_index=-1)


def thirds(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which third of an image each visual token lies in, from the top and from the left: int64 (N,) each.

    Args:
        height: of the image in pixels.
        width: likewise.
    """
    rows, columns = height // PATCH, width // PATCH
    third = lambda n: torch.arange(n) * 3 // n
    return third(rows).repeat_interleave(columns), third(columns).repeat(rows)


class TowerHeads(nn.Module):
    """Classifiers on the vision tower, used in training only.

    Args:
        width: of a visual token.
        kinds: of objects.
    """

    def __init__(self, width: int, kinds: tuple[str, ...] = KINDS):
        super().__init__()
        self.width = width
        sizes = (len(COLOUR_NAMES), len(kinds), len(CHARACTERS), WORD_LENGTH, len(LETTERS))
        self.patch = nn.ModuleList(nn.Linear(width, n + 1) for n in sizes)
        self.places = nn.ModuleList(nn.Linear(width, len(words)) for words in (ROWS, COLUMNS))
        self.picture = nn.Linear(width, N_CONTENTS)

    def patch_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """Loss of features (B, N, D) against labels (B, 5, N), and per label the accuracy on labelled patches."""
        loss, accuracy = features.new_zeros(()), []
        for i, head in enumerate(self.patch):
            logits, target = head(features).float().flatten(0, 1), labels[:, i].flatten().long()
            loss = loss + named_loss(logits, target)
            named = target > 0
            accuracy.append((logits.argmax(1) == target)[named].float().mean().item())
        return loss, accuracy

    def place_loss(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Loss of a classifier of the third that each visual token lies in, which keeps positions in the features.

        Args:
            features: (B, N, D).
            size: height and width of the images in pixels.
        """
        losses = [
            F.cross_entropy(head(features).float().flatten(0, 1), place.repeat(len(features)))
            for head, place in zip(self.places, thirds(*size), strict=True)
        ]
        return losses[0] + losses[1]

    def picture_loss(self, pooled: Tensor | None, contents: Tensor) -> Tensor:
        """Loss of the pooled output (B, D) against the contents (B, N_CONTENTS); 0 for a tower without one."""
        if pooled is None:
            return torch.zeros(())
        loss = F.binary_cross_entropy_with_logits(self.picture(pooled).float(), contents.float(), reduction="none")
        return loss.sum(1).mean() / 12


class Alignment:
    """Aligns visual tokens with the embeddings of the words for what they show and for where they are.

    Args:
        family: module of the embedded model.
    """

    def __init__(self, family: ModuleType):
        self.words = [torch.tensor([family.IDS[w] for w in words]) for words in (COLOUR_NAMES, SHAPES, CHARACTERS)]
        self.keys = torch.tensor([family.IDS[w] for w in LETTERS])
        self.rows, self.columns = (torch.tensor([family.IDS[w] for w in words]) for words in (ROWS, COLUMNS))

    def loss(self, tokens: Tensor, labels: Tensor, embeddings: Tensor, size: tuple[int, int]) -> Tensor:
        """Loss of visual tokens.

        Args:
            tokens: (B, N, D).
            labels: (B, 5, N).
            embeddings: of all words, (V, D).
            size: height and width of the images in pixels.
        """
        normal = F.rms_norm(tokens.float(), tokens.shape[-1:])

        def similarity(words: Tensor) -> Tensor:
            e = embeddings[words]
            return (normal @ F.rms_norm(e, e.shape[-1:]).T / 6).float().flatten(0, 1)

        loss = tokens.new_zeros(())
        for i, words in enumerate(self.words):
            target = labels[:, i].flatten().long()
            target = target.masked_fill(target > len(words), -1)  # there are no words for tiles, signs and tables
            loss = loss + named_loss(F.pad(similarity(words), (1, 0)), target)  # the logit of no object is 0
        key = labels[:, 4].flatten().long() - 1  # of a value's row
        if (key >= 0).any():
            loss = loss + F.cross_entropy(similarity(self.keys), key, ignore_index=-1)
        for words, place in zip((self.rows, self.columns), thirds(*size), strict=True):
            loss = loss + 0.5 * F.cross_entropy(similarity(words), place.repeat(len(tokens)))
        return loss


class Grounding(nn.Module):
    """Classifier on the language model, used in training only.

    From the hidden state of a shape's name after half of the layers it predicts the shape's cell, or that it is absent.

    Args:
        width: of a hidden state.
    """

    def __init__(self, width: int):
        super().__init__()
        self.places = nn.Linear(width, ABSENT + 1)

    def loss(self, hidden: Tensor, named: Tensor) -> tuple[Tensor, float]:
        """Loss of hidden states (B, n_questions, QA_LEN, D) against `named` (B, n_questions, 2, 2), and accuracy."""
        index, cell = named.long().unbind(-1)
        states = hidden.take_along_dim(index.clamp(min=0)[..., None], 2)
        given = index >= 0
        logits, target = self.places(states[given]).float(), cell[given]
        return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean().item()


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of next-token logits (B, n_questions, QA_LEN, V) and targets (B, n_questions, QA_LEN)."""
    return F.cross_entropy(logits[:, :, :-1].flatten(0, 2), targets[:, :, 1:].flatten().long(), ignore_index=IGNORE)


def answered(logits: Tensor, targets: Tensor) -> Tensor:
    """Exact match per question, bool (B, n_questions), with the end of the answer: the score of greedy decoding."""
    target = targets[:, :, 1:].long()
    return ((logits[:, :, :-1].argmax(-1) == target) | (target == IGNORE)).all(-1)
