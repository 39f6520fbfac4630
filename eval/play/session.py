"""One model that answers for everybody who has the page open, one question at a time."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ...patches.families.registry import family_of
from ..checkpoints import load_checkpoint
from ..errors import CommandError
from ..minivlm import WEIGHTS
from ..setting import PruningSetting
from .choices import acting
from .drawing import View, as_seen, views
from .examples import examples
from .measure import Outcome, measure

_REMEMBERED = 256  # questions whose outcomes are kept
_SLOW_MS = 500  # a full model that takes longer is asked once for each picture and question


@dataclass(frozen=True)
class Comparison:
    """The full model and the pruned one on one question.

    Attributes:
        setting: of the pruned model.
        full: the full model's outcome.
        pruned: the pruned model's.
        tokens: visual tokens of the picture.
        entering: visual tokens that enter the language model, when pruned.
        mean: visual tokens that a decoder layer holds, when pruned; a mean over the layers.
        views: the kept tokens, drawn.
        right: the right answer; None if it is not known.
    """

    setting: PruningSetting
    full: Outcome
    pruned: Outcome
    tokens: int
    entering: int
    mean: float
    views: list[View]
    right: str | None


class Session:
    """A model with its processor, examples, and what it answered so far.

    The one model is pruned for each question, so only one question runs at a time, in one thread.

    Args:
        name: of an embedded model, as `embedded-qwen`; a path or an id.
        dtype: of the weights.
        device: where the model runs.
        new_tokens: longest answer, in tokens.

    Attributes:
        policies: those that can act on the model, by name.
        refused: why the others cannot, by name.
        examples: pictures with questions.

    Raises:
        CommandError: there is no such checkpoint, or its model type is not supported.
    """

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device, new_tokens: int):
        try:
            self.model, self.processor = load_checkpoint(name, dtype, device)
            family_of(self.model)
        except (OSError, ValueError) as error:
            raise CommandError(" ".join(str(error).split())) from error
        self.name, self.new_tokens = name, new_tokens
        self.policies, self.refused = acting(self.model)
        self.examples = examples(name)
        self._right = {(_digest(each.picture), each.question): each.answer for each in self.examples}
        self._pairs: dict[tuple[str, str, str], tuple[Outcome, Outcome]] = {}
        self._full: dict[tuple[str, str], Outcome] = {}
        self._thread = ThreadPoolExecutor(1, "tokenprune-play")  # torch keeps its own threads for each thread

    @property
    def n_layers(self) -> int:
        """Layers of the decoder."""
        count: int = self.model.config.get_text_config().num_hidden_layers
        return count

    @property
    def embedded(self) -> bool:
        """Whether the model is one of ours, which know only pictures like the examples."""
        return self.model.name_or_path in map(str, WEIGHTS.values())

    def compare(self, picture: Image.Image, question: str, setting: PruningSetting) -> Comparison:
        """Ask full and pruned, in turns. What was asked before is not asked again.

        Args:
            picture: in RGB.
            question: what to ask about it.
            setting: of the pruned model; not the full model.

        Raises:
            ValueError: the setting does not fit the model, or the model takes no such input.
        """
        key = _digest(picture), question
        full, pruned = self._thread.submit(self._ask, picture, key, setting).result()
        if not pruned.records:
            raise ValueError("the model reports no visual tokens for this picture")
        return Comparison(
            setting=setting,
            full=full,
            pruned=pruned,
            tokens=sum(record.n_before for record in pruned.records),
            entering=sum(record.n_after for record in pruned.records),
            mean=sum(record.mean_tokens(self.n_layers) for record in pruned.records),
            views=views(as_seen(picture, self.processor), pruned.records[0], self.n_layers),
            right=self._right.get(key),
        )

    def _ask(self, picture: Image.Image, key: tuple[str, str], setting: PruningSetting) -> tuple[Outcome, Outcome]:
        """The full model's outcome and the pruned one's; `key` is the picture's digest and the question."""
        identity = *key, str(setting.identity())
        if identity not in self._pairs:
            full = self._full.get(key)
            settings = [setting] if full is not None and full.total_ms > _SLOW_MS else [PruningSetting(), setting]
            *first, pruned = measure(self.model, self.processor, picture, key[1], settings, self.new_tokens)
            self._full[key] = first[0] if first else self._full[key]
            self._pairs[identity] = self._full[key], pruned
            _forget(self._pairs)
            _forget(self._full)
        return self._pairs[identity]


def _forget(memory: dict[Any, Any]) -> None:
    """Drop the oldest entries beyond `_REMEMBERED`."""
    while len(memory) > _REMEMBERED:
        del memory[next(iter(memory))]


def _digest(picture: Image.Image) -> str:
    """A digest of a picture's pixels and size."""
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()
