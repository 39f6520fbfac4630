"""How much work a profile is, so that its progress bar says from the start how long it will take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from torch import Tensor, nn

from ...patches.families.registry import family_of
from ...patches.modules import base_of, text_model_of
from ..prefill import WARM_UP
from ..setting import PruningSetting

#: Cost of a new token, in those of a token of the prefill: it reads all weights for one token.
_DECODING = 64
_PER_BYTE = 25.0  # FLOPs in the time that a byte of the weights takes to be made or read
#: FLOPs per second, before any work was timed.
_SPEED = {"cpu": 5e10, "cuda": 1e14}


@dataclass(frozen=True)
class Costs:
    """Estimated FLOPs.

    Attributes:
        build: of making or reading the weights.
        encode: of the vision encoder.
        text: of the language model on the text of a prefill.
        visual: likewise on all visual tokens.
        n_visual: number of visual tokens.
        decode: of all new tokens.
    """

    build: float
    encode: float
    text: float
    visual: float
    n_visual: int
    decode: float

    @classmethod
    def of(cls, model: Any, inputs: Mapping[str, Tensor], new_tokens: int) -> Costs:
        """Estimate them.

        Args:
            model: of any device; on `meta` it costs nothing to make.
            inputs: the batch.
            new_tokens: to generate.
        """
        base = base_of(model)
        decoder = text_model_of(base, family_of(model))
        inside = {id(p) for p in decoder.parameters()}
        of_decoder = sum(p.numel() for layer in decoder.layers for p in layer.parameters())
        encoder = [p for p in base.parameters() if id(p) not in inside and p.ndim > 1]
        patch = next((m.weight[0].numel() for m in base.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), 588)
        pixels = next((t.numel() for name, t in inputs.items() if name.startswith("pixel_values")), 0)
        ids = inputs["input_ids"]
        n_visual = int(sum((ids == token).sum() for token in _placeholders(model.config)))
        return cls(
            build=_PER_BYTE * sum(p.numel() * p.element_size() for p in model.parameters()),
            encode=2.0 * sum(p.numel() for p in encoder) * pixels / patch,
            text=2.0 * of_decoder * (ids.numel() - n_visual),
            visual=2.0 * of_decoder * n_visual,
            n_visual=n_visual,
            decode=2.0 * _DECODING * of_decoder * len(ids) * (new_tokens - 1),
        )

    def prefill(self, setting: PruningSetting) -> float:
        """Of a prefill under a setting."""
        keep = 0.5 if setting.keep is None or isinstance(setting.keep, str) else setting.keep
        share = keep if isinstance(keep, float) else min(1.0, keep / max(1, self.n_visual))
        return self.text + share * self.visual

    def request(self, setting: PruningSetting) -> float:
        """Of a prefill and the new tokens."""
        return self.prefill(setting) + self.decode

    def total(self, settings: Sequence[PruningSetting], rounds: int) -> float:
        """Of building the model and measuring it."""
        of_settings = sum(self.prefill(s) + (WARM_UP + rounds) * self.request(s) for s in (PruningSetting(), *settings))
        return self.build + 2 * self.encode + of_settings


def _placeholders(config: Any) -> set[int]:
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return {token for name in names if (token := getattr(config, name, None)) is not None}


class Work:
    """Takes note of what is done. Without a bar it does nothing.

    Args:
        costs: of each thing.
        settings: that are measured, the full model included.
        bar: shows it.
    """

    def __init__(self, costs: Costs | None = None, settings: Sequence[PruningSetting] = (), bar: WorkBar | None = None):
        self.costs, self.settings, self.bar = costs, settings, bar

    def did_build(self, n_bytes: int) -> None:
        """So many bytes of the weights were made."""
        self._advance(_PER_BYTE * n_bytes)

    def did_encode(self) -> None:
        """The visual inputs were encoded."""
        if self.costs:
            self._advance(self.costs.encode)

    def did_prefill(self, setting: PruningSetting) -> None:
        """A setting had a prefill."""
        if self.costs:
            self._advance(self.costs.prefill(setting))

    def did_request(self, setting: PruningSetting) -> None:
        """A setting had a request."""
        if self.costs:
            self._advance(self.costs.request(setting))

    def expect(self, encodings: int, prefills: int, requests: int) -> None:
        """This is left, the latter two under each setting."""
        if self.costs and self.bar:
            costs = self.costs
            left = encodings * costs.encode
            left += sum(prefills * costs.prefill(s) + requests * costs.request(s) for s in self.settings)
            self.bar.expect(left)

    @contextlib.contextmanager
    def encoding(self, model: Any) -> Iterator[None]:
        """A context in which the layers of the vision encoder are noted one by one."""
        base = base_of(model)
        inside = set(text_model_of(base, family_of(model)).modules())
        lists = [m for m in base.modules() if isinstance(m, nn.ModuleList) and m not in inside]
        layers = max(lists, key=len, default=())
        cost = self.costs.encode / max(1, len(layers)) if self.costs else 0.0
        handles = [layer.register_forward_hook(lambda *_: self._advance(cost)) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _advance(self, cost: float) -> None:
        if self.bar:
            self.bar.advance(cost)


class _TimeLeft(ProgressColumn):
    """What is left at the speed so far, or at first at a guess."""

    def render(self, task: Task) -> Text:
        elapsed, done, at = task.elapsed or 0.0, task.completed, task.fields["at"]
        speed = done / at if done and at > 1 else task.fields["speed"]
        left = max(0.0, (task.total or 0.0) / speed - elapsed)
        return Text(f"about {timedelta(seconds=round(left))} left", style="progress.remaining")


class WorkBar:
    """A progress bar whose steps cost what they cost.

    Args:
        console: shows it.
        total: FLOPs of all work.
        device: type of the device, for the first guess.
    """

    def __init__(self, console: Console, total: float, device: str):
        columns = (TextColumn("{task.description}"), BarColumn(), _TimeLeft())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
        speed = _SPEED.get(device, _SPEED["cuda"])
        self.task = self.progress.add_task("profiling", total=total, at=0.0, speed=speed)

    def __enter__(self) -> WorkBar:
        self.progress.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.progress.stop()

    def advance(self, cost: float) -> None:
        """So many FLOPs are done."""
        self.progress.update(self.task, advance=cost, at=self._elapsed())

    def expect(self, left: float) -> None:
        """So many FLOPs are left."""
        self.progress.update(self.task, total=self._task.completed + left, at=self._elapsed())

    @property
    def _task(self) -> Task:
        return self.progress.tasks[0]

    def _elapsed(self) -> float:
        return self._task.elapsed or 0.0
