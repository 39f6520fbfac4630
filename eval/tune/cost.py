"""What settings cost: FLOPs of the language model, KV cache, and time to the first token."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...patches.families.registry import family_of
from ...patches.modules import base_of, text_model_of
from ..profile.counting import now
from ..setting import PruningSetting
from .asking import Asker
from .options import Unit
from .replies import greedy

SAMPLES, ROUNDS = 4, 3  # prompts, and counted rounds over them, of a time


@dataclass(frozen=True)
class Decoder:
    """What a token costs in a language model.

    Attributes:
        matrices: elements of the matrices of each layer.
        heads: width of all heads of each layer.
        kv_bytes: of a token's keys and values in each layer.
    """

    matrices: list[int]
    heads: list[int]
    kv_bytes: list[int]

    @classmethod
    def of(cls, model: Any) -> Decoder:
        """That of a model. Layers without keys and values, as those of linear attention, hold nothing per token."""
        attention = [getattr(layer, "self_attn", None) for layer in _layers(model)]
        return cls(
            matrices=[sum(p.numel() for p in layer.parameters() if p.ndim == 2) for layer in _layers(model)],
            heads=[_width(each, "o_proj", "in_features") for each in attention],
            kv_bytes=[
                (_width(each, "k_proj", "out_features") + _width(each, "v_proj", "out_features")) * model.dtype.itemsize
                for each in attention
            ],
        )

    def flops(self, lengths: Sequence[int]) -> int:
        """Of a prefill with so many tokens in each layer, as `profile.counting.decoder_flops` counts them."""
        return sum(
            2 * n * matrices + 4 * n * n * width
            for n, matrices, width in zip(lengths, self.matrices, self.heads, strict=True)
        )

    def cache(self, lengths: Sequence[int]) -> int:
        """Bytes of the KV cache of a prompt with so many tokens in each layer."""
        return sum(n * size for n, size in zip(lengths, self.kv_bytes, strict=True))


@dataclass(frozen=True)
class Counted:
    """Sums over prompts, of a setting and of the full model on the same prompts.

    Attributes:
        tokens: visual tokens, a mean over decoder layers.
        flops: of the language model's prefill.
        kv_bytes: of the KV cache after it.
        prompts: how many.
    """

    tokens: float
    flops: float
    kv_bytes: float
    prompts: int

    def means(self) -> dict[str, float]:
        """Per prompt, by name."""
        n = max(1, self.prompts)
        return {
            "visual_tokens": self.tokens / n,
            "prefill_flops": self.flops / n,
            "kv_cache_bytes": self.kv_bytes / n,
        }


class Costs:
    """The costs of settings that were asked.

    Args:
        asker: that asked them.
        unit: what `of` gives.
    """

    def __init__(self, asker: Asker, unit: Unit):
        self.asker, self.unit = asker, unit
        self._decoder = Decoder.of(asker.model)
        self._times: dict[str, float] = {}

    def of(self, setting: PruningSetting) -> float:
        """The cost of a setting, as a share of the full model's."""
        if self.unit == "flops":
            counted, of_full = self.counted(setting)
            return counted.flops / of_full.flops
        key = str(setting.identity())
        if key not in self._times:
            full, pruned = self.times([PruningSetting(), setting])
            self._times[key] = pruned / full
        return self._times[key]

    def counted(self, setting: PruningSetting) -> tuple[Counted, Counted]:
        """What a setting and the full model need on the prompts that the setting was asked."""
        of_pruned, of_full = list[tuple[float, int, int]](), list[tuple[float, int, int]]()
        n_layers = len(self._decoder.matrices)
        for batch, layers in self.asker.asked(setting):
            lengths = zip(self.asker.tokens[batch], self.asker.visual_tokens[batch], layers, strict=True)
            for tokens, visual, held in lengths:
                of_pruned.append(self._needs(tokens - visual, held))
                of_full.append(self._needs(tokens - visual, [visual] * n_layers))
        return _sum(of_pruned), _sum(of_full)

    def _needs(self, text: int, held: Sequence[int]) -> tuple[float, int, int]:
        lengths = [text + n for n in held]
        return sum(held) / len(held), self._decoder.flops(lengths), self._decoder.cache(lengths)

    def times(self, settings: Sequence[PruningSetting], rounds: int = ROUNDS) -> list[float]:
        """Milliseconds to the first token of one prompt, vision encoder included, medians.

        Each round runs every setting once, so that a slow moment of the machine affects all of them. The first process
        measures for all.
        """
        return self.asker.workers.agree(lambda: self._measure(settings, rounds))

    @torch.inference_mode()
    def _measure(self, settings: Sequence[PruningSetting], rounds: int) -> list[float]:
        asker = self.asker
        prompts = [prompt for batch in asker.batches for prompt in batch]
        spread = prompts[:: max(1, len(prompts) // SAMPLES)][:SAMPLES]
        times: list[list[float]] = [[] for _ in settings]
        for inputs in map(asker.encode, ([prompt] for prompt in spread)):
            taken: list[list[float]] = [[] for _ in settings]
            for i in range(-1, rounds):  # the first one warms up
                for setting, of_setting in zip(settings, taken, strict=True):
                    with setting.context(asker.model):
                        before = now(asker.model.device)
                        asker.model.generate(**inputs, generation_config=greedy(asker.model, 1))
                        spent = now(asker.model.device) - before
                    if i >= 0:
                        of_setting.append(spent)
            for of_setting, some in zip(times, taken, strict=True):
                of_setting.append(statistics.median(some))
        return [statistics.mean(each) for each in times]


def _layers(model: Any) -> Any:
    return text_model_of(base_of(model), family_of(model)).layers


def _width(attention: Any, projection: str, side: str) -> int:
    return getattr(getattr(attention, projection, None), side, 0)


def _sum(needs: Sequence[tuple[float, int, int]]) -> Counted:
    columns = list(zip(*needs, strict=True)) or [(), (), ()]
    return Counted(float(sum(columns[0])), float(sum(columns[1])), float(sum(columns[2])), len(needs))
