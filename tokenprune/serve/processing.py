"""Prompts with as many placeholders as visual tokens are kept, and no cache entry shared between budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import BaseMultiModalProcessor
from vllm.multimodal.processing.context import InputProcessingContext
from vllm.multimodal.processing.processor import PromptUpdateDetails

from ..budget import Budget, apportion
from ..policies.types import EncoderSpec
from . import failures
from .settings import PER_FRAME, Settings, check_encoder

#: A request's `mm_processor_kwargs` may name its budget, `{"keep": 0.1}`.
KEEP = "keep"
#: What is added to them: it is hashed with every image and video.
ASKED = "tokenprune"
MODALITIES = ("image", "video")
#: Beside each image or video on its way to the model: its budget, and the tokens a text-guided policy reads.
BUDGET, TEXT, QUESTION = "tokenprune_budget_{}", "tokenprune_text_{}", "tokenprune_question_{}"
#: In place of a budget: the tokens that a policy of the pixels stage keeps.
KEPT = "tokenprune_kept_{}"


class Cut(NamedTuple):
    """What one picture or video is cut down to.

    Attributes:
        modality: "image" or "video".
        budget: of the request; None where the policy has found its own count.
        kept: (K,) indices of the tokens that stay, where a policy has chosen by pixels.
    """

    modality: str
    budget: Budget | None
    kept: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Context(InputProcessingContext):
    """What a processor knows of the model; keeps our arguments from Hugging Face's processors."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **rest: Any) -> dict[str, Any]:
        merged = super().get_merged_mm_kwargs(kwargs, **rest)
        return _stock(merged)


def _stock(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What is not ours of a request's arguments of the processor."""
    return {name: value for name, value in kwargs.items() if name not in (KEEP, ASKED)}


class PruningProcessor(BaseMultiModalProcessor):
    """Mixed in before a stock processor: cuts the placeholders it makes down to the budget."""

    #: What can be read of the model's vision tower; None: nothing.
    readable: ClassVar[EncoderSpec | None] = None
    #: Whether policies that choose by pixels are asked, and the tower gets what they keep.
    reads_pixels: ClassVar[bool] = False

    def __init__(self, info: Any, *args: Any, **kwargs: Any):
        info.ctx = Context(info.ctx.model_config, info.ctx.tokenizer)
        super().__init__(info, *args, **kwargs)
        self.settings = Settings.of(info.ctx.model_config.hf_config)
        check_encoder(self.settings.policy, self.readable, self.reads_pixels)
        self._keep(None)  # of the engine's own arguments: a bad one stops it here

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The engine sizes its caches for the largest input: a request may ask for all tokens."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return dataclasses.replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, KEEP: 1.0})

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        asked = {**inputs.hf_processor_mm_kwargs}
        asked[ASKED] = {
            "policy": self.settings.name,
            "options": dict(self.settings.options),
            "per_frame": self.settings.per_frame,
        }
        keep = self._keep(asked.pop(KEEP, None))
        if keep is not None:
            asked[ASKED]["keep"] = keep
        if failed := failures.count():
            asked[ASKED]["failures"] = failed
        guided = "text" in self.settings.policy.needs
        if guided:
            asked[ASKED].update(self._words(inputs.prompt))
        result = super().apply(dataclasses.replace(inputs, hf_processor_mm_kwargs=asked), *args, **kwargs)
        if guided:
            self._renew_question(result)
        return result

    def _renew_question(self, result: Any) -> None:
        """Have the policy read the question as the model does: with tokens that stand behind the last picture, which
        some stock processors write only when they put in the placeholders."""
        question = torch.tensor(self._words(result["prompt_token_ids"])["question"], dtype=torch.int64)
        for modality, items in result["mm_kwargs"].items():
            name = QUESTION.format(modality)
            for item in items:
                # One that the engine has in a cache is not sent again: it was of the same prompt.
                if item is not None and name in item and item[name].data is not None:
                    item[name] = dataclasses.replace(item[name], data=question)

    def _keep(self, requested: Any) -> float | int | None:
        """Of the request, else of the engine's `--mm-processor-kwargs`, else of the settings."""
        if requested is None:
            config = self.info.ctx.model_config.get_multimodal_config()
            requested = (config.mm_processor_kwargs or {}).get(KEEP)
        return self.settings.keep if requested is None else Budget(requested).keep

    def _words(self, prompt: Sequence[int]) -> dict[str, list[int]]:
        """The prompt's text, and what of it follows the last picture."""
        visual = self.visual_ids()
        text = [token for token in prompt if token not in visual]
        last = max((i for i, token in enumerate(prompt) if token in visual), default=-1)
        return {"text": text, "question": list(prompt[last + 1 :]) or text}

    def visual_ids(self) -> set[int]:
        """Ids of placeholder tokens."""
        config = self.info.ctx.model_config.hf_config
        names = ("image_token_index", "image_token_id", "video_token_index", "video_token_id")
        return {getattr(config, name) for name in names if getattr(config, name, None) is not None}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        processed = super()._apply_hf_processor_main(mm_items, _stock(hf_kwargs))
        asked, counts = hf_kwargs[ASKED], mm_items.get_all_counts()
        for modality in MODALITIES:
            if n := counts.get(modality, 0):
                row = _encoded(asked.get("keep", 1.0))
                processed[BUDGET.format(modality)] = torch.tensor([row] * n, dtype=torch.float64)
                for name, words in ((TEXT, "text"), (QUESTION, "question")):
                    if words in asked:
                        processed[name.format(modality)] = [torch.tensor(asked[words], dtype=torch.int64)] * n
                for field, value in self.own_fields(modality).items():
                    processed[field] = torch.stack([value] * n)
        return processed

    def own_fields(self, modality: str) -> dict[str, torch.Tensor]:
        """What a model wants beside each picture or video, by names that begin with `tokenprune_`."""
        return {}

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        ours = {
            name: MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for modality in MODALITIES
            for name in hf_inputs
            if name.startswith("tokenprune_") and name.endswith(modality)
        }
        return {**super()._get_mm_fields_config(hf_inputs, _stock(hf_processor_mm_kwargs)), **ours}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> list[Any]:
        updates = super()._get_prompt_updates(mm_items, _stock(hf_processor_mm_kwargs), out_mm_kwargs)
        keep = hf_processor_mm_kwargs[ASKED].get("keep")
        budget = None if keep is None else Budget(keep)

        def pruned(stock: Any, modality: str) -> Any:
            def replacement(item: int) -> Any:
                whole = stock(item) if callable(stock) else stock
                kept = out_mm_kwargs[modality][item].get(KEPT.format(modality))
                return self._cut(whole, Cut(modality, budget, None if kept is None else kept.data))

            return replacement

        return [
            dataclasses.replace(update, replacement=pruned(update.replacement, update.modality)) for update in updates
        ]

    def _cut(self, whole: Any, cut: Cut) -> Any:
        """A placeholder of the pruned length; frames, where text stands between them, get a share each."""
        details = whole if isinstance(whole, PromptUpdateDetails) else None
        full = list(whole if details is None else details.full)
        runs = _runs(full, self.visual_ids())
        lengths = [stop - start for start, stop in runs]
        counts = self.counts(lengths, cut)
        if counts == lengths:
            return whole
        for (start, stop), count in reversed(list(zip(runs, counts, strict=True))):
            del full[start + count : stop]
        return full if details is None else dataclasses.replace(details, full=full)

    def counts(self, lengths: list[int], cut: Cut) -> list[int]:
        """How many tokens each stretch of placeholders of one picture or video keeps.

        Args:
            lengths: of the stretches, before pruning.
            cut: what they are cut down to.

        Raises:
            ValueError: for a policy that chooses over all stretches, whose counts are then not known beforehand.
        """
        if cut.kept is not None:
            stretch = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
            return torch.bincount(stretch[cut.kept], minlength=len(lengths)).tolist()
        n = sum(lengths)
        k = n if cut.budget is None else cut.budget.count(n)
        if k == n:
            return lengths
        if len(lengths) > 1 and not self.settings.per_frame:
            raise ValueError(
                f"policy {self.settings.name!r} chooses over all frames of a {cut.modality}, and this model's prompt "
                f"wants to know beforehand how many tokens each frame keeps; set {PER_FRAME}=1 to have it choose in "
                "each frame on its own, or send keep=1.0 with this request"
            )
        return apportion(k, lengths)


def _encoded(keep: float | int) -> tuple[float, float]:
    """A budget as a row of a tensor: (keep ratio, number of tokens), one of them 0."""
    return (0.0, float(keep)) if isinstance(keep, int) else (keep, 0.0)


def decoded(row: torch.Tensor) -> Budget:
    ratio, count = row.tolist()
    return Budget(int(count) if count else ratio)


def _runs(full: Sequence[int], visual: set[int]) -> list[tuple[int, int]]:
    """(start, stop) of each stretch of visual tokens."""
    inside = [False, *(token in visual for token in full), False]
    borders = [i for i in range(len(full) + 1) if inside[i] != inside[i + 1]]
    return list(zip(borders[::2], borders[1::2], strict=True))
