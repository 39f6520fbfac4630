"""Asks a model batches of prompts, full and pruned. What was answered is read from disk the next time."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...recipe import fingerprint
from .. import runs
from ..conversations import encode_conversations
from ..setting import PruningSetting, format_keep
from ..videos import decode_videos
from .metrics import Pruned
from .options import Options
from .prompts import Prompt, digest
from .replies import Reply, full_replies, pruned_texts, take, visual_tokens
from .workers import Workers

_REMEMBERED = 512 << 20  # bytes of encoded batches that are kept


@dataclass(frozen=True)
class Cell(runs.Cell):
    """One batch under one setting."""

    setting: PruningSetting
    batch: str
    of_run: tuple[tuple[str, Any], ...]

    def parts(self) -> tuple[str, ...]:
        s = self.setting
        return (s.name if s.is_full else f"{s.name}-{format_keep(s.keep)}-{s.positions}", self.batch[:8])

    def names(self) -> dict[str, Any]:
        return {"policy": self.setting.name, "keep": self.setting.keep, "positions": self.setting.positions}

    def identity(self) -> dict[str, Any]:
        return {**dict(self.of_run), **self.setting.identity(), "prompts": self.batch}

    def _found(self, out: Path) -> dict[str, Any] | None:
        results = runs.read_cell(self.path(out))  # no former version named files differently
        return results if results is not None and self.is_of(results) else None


@dataclass(frozen=True)
class Answered:
    """A batch under a setting.

    Attributes:
        pruned: of each prompt, what became of the full model's reply.
        layers: of each prompt, visual tokens by decoder layer.
    """

    pruned: list[Pruned]
    layers: list[list[int]]


class Asker:
    """A model, its processor and batches of prompts.

    Args:
        model: not pruned.
        processor: of the model.
        batches: prompts that are asked together.
        options: length of an answer, and frames of a video.
        work: folder for what was answered.
        workers: processes that share the batches.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        batches: Sequence[Sequence[Prompt]],
        options: Options,
        work: Path,
        workers: Workers,
    ):
        self.model, self.processor, self.batches = model, processor, batches
        self.options, self.work, self.workers = options, work, workers
        self.replies: list[list[Reply]] = []
        #: Of each prompt, by batch: all its tokens, and those that are visual.
        self.tokens: list[list[int]] = []
        self.visual_tokens: list[list[int]] = []
        self._digests = [digest(batch) for batch in batches]
        self._of_run = (
            ("model", fingerprint(model)),
            ("dtype", str(model.dtype)),
            ("new_tokens", options.new_tokens),
            ("frames", options.frames),
            ("tokenprune", __version__),
            ("transformers", importlib.metadata.version("transformers")),
        )
        self._encoded: OrderedDict[int, Any] = OrderedDict()
        self._remembered: dict[str, dict[tuple[int, bool], Answered]] = {}

    def answer(self, tick: Callable[[int], None] = lambda count: None) -> None:
        """Let the full model answer all prompts; `tick` receives the number of prompts after each batch."""

        def ask(i: int) -> dict[str, Any]:
            results = self._read(PruningSetting(), i)
            if results is None:
                inputs = self.inputs(i)
                replies = full_replies(self.model, self.processor, inputs, self.options.new_tokens)
                results = {
                    "replies": [dataclasses.asdict(reply) for reply in replies],
                    "visual_tokens": visual_tokens(self.model, inputs["input_ids"]),
                    "tokens": inputs["attention_mask"].sum(1).tolist(),
                }
                self._cell(PruningSetting(), i).write(self.work, results)
            tick(len(self.batches[i]))
            return results

        for results in self.workers.share(range(len(self.batches)), ask):
            self.replies.append([Reply(**reply) for reply in results["replies"]])
            self.tokens.append(results["tokens"])
            self.visual_tokens.append(results["visual_tokens"])

    def ask(self, setting: PruningSetting, batches: Sequence[int], texts: bool) -> list[Answered]:
        """Ask batches under a setting.

        Args:
            setting: how the model is pruned.
            batches: their indices.
            texts: whether the pruned model's own answers are wanted where they are others.
        """
        known = self._remembered.setdefault(str(setting.identity()), {})
        todo = [i for i in batches if (i, texts) not in known]
        for i, found in zip(todo, self.workers.share(todo, lambda i: self._ask(setting, i, texts)), strict=True):
            known[i, texts] = found
        return [known[i, texts] for i in batches]

    def asked(self, setting: PruningSetting) -> list[tuple[int, list[list[int]]]]:
        """The batches that a setting was asked, and for each prompt its visual tokens by decoder layer."""
        known = self._remembered.get(str(setting.identity()), {})
        layers = {i: answered.layers for (i, _), answered in known.items()}
        return sorted(layers.items())

    def _ask(self, setting: PruningSetting, i: int, texts: bool) -> Answered:
        stored = self._read(setting, i)
        if stored is None:
            taken = take(self.model, self.inputs(i), self.replies[i], setting)
            results: dict[str, Any] = {"differ": [each.differ for each in taken], "kl": [each.kl for each in taken]}
            results |= {"layers": [each.layers for each in taken], "texts": None}
        else:
            results = {name: stored[name] for name in ("differ", "kl", "layers", "texts")}
        if texts and results["texts"] is None:
            results["texts"] = self._texts(setting, i, results["differ"])
        if stored is None or results["texts"] != stored["texts"]:
            self._cell(setting, i).write(self.work, results)
        told = results["texts"] or [None] * len(self.batches[i])
        pruned = [Pruned(*each) for each in zip(results["differ"], results["kl"], told, strict=True)]
        return Answered(pruned, results["layers"])

    def _texts(self, setting: PruningSetting, i: int, differ: Sequence[float]) -> list[str | None]:
        """The pruned model's answers to the prompts where they are not the full model's."""
        others = [row for row, share in enumerate(differ) if share]
        texts: list[str | None] = [None] * len(differ)
        if others:
            inputs = self.encode([self.batches[i][row] for row in others])
            told = pruned_texts(self.model, self.processor, inputs, setting, self.options.new_tokens)
            for row, text in zip(others, told, strict=True):
                texts[row] = text
        return texts

    def inputs(self, i: int) -> Any:
        """Model inputs of a batch."""
        if i not in self._encoded:
            self._encoded[i] = self.encode(self.batches[i])
            while len(self._encoded) > 1 and sum(map(_bytes, self._encoded.values())) > _REMEMBERED:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(i)
        return self._encoded[i]

    def encode(self, prompts: Sequence[Prompt]) -> Any:
        """Model inputs of prompts."""
        conversations = [prompt.conversation() for prompt in prompts]
        videos = decode_videos(conversations, self.options.frames)
        inputs = encode_conversations(self.processor, conversations, **videos)
        return inputs.to(self.model.device, self.model.dtype)

    def _cell(self, setting: PruningSetting, i: int) -> Cell:
        return Cell(setting, self._digests[i], self._of_run)

    def _read(self, setting: PruningSetting, i: int) -> dict[str, Any] | None:
        cell = self._cell(setting, i)
        return cell.read(self.work) if cell.finished(self.work) else None


def _bytes(inputs: Any) -> int:
    return sum(value.numel() * value.element_size() for value in inputs.values())
