"""`tokenprune_hf`: any supported Hugging Face checkpoint in the harness, through its own chat template."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from ...api import remove_pruning
from ...patches import UnsupportedModelError, supported_model_types
from .. import minivlm
from ..conversations import answer_lengths, encode_conversations
from ..model_names import find_checkpoint
from ..videos import decode_videos
from .options import reject_unknown, take_pruning
from .statistics import Statistics

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def checkpoint(pretrained: str) -> str:
    """The path or id of a checkpoint.

    Args:
        pretrained: a path or id, or the name of an embedded model.

    Raises:
        UnsupportedModelError: its family is not supported.
        OSError, CommandError: there is no such checkpoint.
    """
    path = minivlm.checkpoint_path(pretrained)
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise FileNotFoundError(f"pretrained={pretrained}: there is no such folder")
    path = find_checkpoint(pretrained)
    model_type = AutoConfig.from_pretrained(path).model_type
    if model_type not in supported_model_types():
        raise UnsupportedModelError(
            f"pretrained={pretrained} has model type {model_type!r}; supported: {', '.join(supported_model_types())}"
        )
    return path


@functools.lru_cache(maxsize=1)
def _load(
    path: str, dtype: str, device: str, device_map: str | None, attn: str | None, pixels: tuple[tuple[str, int], ...]
) -> tuple[Any, Any]:
    """Model and processor, cached for the next run of the process: a grid of settings loads its model once."""
    model = AutoModelForImageTextToText.from_pretrained(
        path, dtype=dtype, device_map=device_map, attn_implementation=attn
    ).eval()
    processor = AutoProcessor.from_pretrained(path, **dict(pixels))
    return (model if device_map else model.to(device)), processor


@dataclasses.dataclass(frozen=True)
class ModelArguments:
    """The `--model_args` of `tokenprune_hf`, besides those of pruning.

    Attributes:
        pretrained: path or id of a checkpoint, or the name of an embedded model, as `embedded-qwen`.
        batch_size: samples in one call of `generate`, padded on the left.
        device: `cuda`, `cuda:1`, `cpu`, ...; the process's own GPU under accelerate and torchrun.
        device_map: as in transformers, instead of `device`.
        dtype: `auto` (the default on a GPU), `float32` (the default on a CPU), `bfloat16` or `float16`.
        attn_implementation: as in transformers.
        min_pixels, max_pixels: limits of the processor, on families that have them.
        max_frames: frames that are sampled from a video.
        system_prompt: text, or a file with it, to put before every conversation.
        use_cache: whether generation uses a KV cache.
        max_batch_size: given by the harness, and ignored.

    Raises:
        ValueError: `batch_size` is no whole number above 0.
    """

    pretrained: str = "embedded"
    batch_size: int | str = 1
    device: str | None = None
    device_map: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_frames: int = 32
    system_prompt: str = ""
    use_cache: bool = True
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        if not str(self.batch_size).isdigit() or int(self.batch_size) < 1:
            raise ValueError(f"batch_size={self.batch_size!r} is no whole number above 0")

    @property
    def pixels(self) -> tuple[tuple[str, int], ...]:
        """The limits of the processor that are given."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return tuple((name, value) for name, value in limits.items() if value is not None)


class PrunedModel(lmms):
    """A pruned checkpoint for lmms-eval (`--model tokenprune_hf`), on a GPU or a CPU.

    Args:
        pretrained: path or id of a checkpoint, or the name of an embedded model, as `embedded-qwen`.
        arguments: those of `ModelArguments`, and of pruning: `policy` (names joined by `+`; `none` is the full model),
            `keep` and `positions` as in `apply_pruning`, `policy_OPTION=VALUE` for the policy's options, and
            `tokenprune_version`, which must be the installed one.

    Raises:
        ValueError: an argument that does not exist, or has a value that is not accepted.
        OSError: there is no such checkpoint.
    """

    is_simple = False

    def __init__(self, pretrained: str = "embedded", **arguments: Any) -> None:
        super().__init__()
        setting = take_pruning(arguments)
        reject_unknown(arguments, ModelArguments)
        given = ModelArguments(pretrained, **arguments)
        path = checkpoint(pretrained)
        # Without this, accelerate puts processes on a CPU in no group.
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        device, device_map = given.device, given.device_map
        if self._world_size > 1:
            device, device_map = str(self.accelerator.device), None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = given.dtype or ("float32" if device.startswith("cpu") else "auto")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype={dtype!r} is none of {', '.join(_DTYPES)}")
        self._model, self._processor = _load(path, dtype, device, device_map, given.attn_implementation, given.pixels)
        remove_pruning(self._model)  # the cached model of a run that failed is still pruned
        setting.apply(self._model)
        self._setting = setting
        self.batch_size, self.use_cache, self.max_frames = int(given.batch_size), given.use_cache, given.max_frames
        self.system_prompt = self._resolve_system_prompt(given.system_prompt)

    @property
    def model(self) -> Any:
        return self._model

    @property
    def device(self) -> torch.device:
        return self._model.device

    def clean(self) -> None:
        """Remove the pruning, so that the cached model is the full one."""
        if not self._setting.is_full:
            remove_pruning(self._model)
        super().clean()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("tokenprune_hf generates answers; tasks that score given ones are not supported")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("tokenprune_hf answers single rounds; multi-round tasks are not supported")

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests.

        An exception ends the run: an empty answer instead would look like a low accuracy.
        """
        answers: list[GenerationResult | None] = [None] * len(requests)
        statistics = Statistics()
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="answering")
        for indices in self._batches(requests):
            batch = [requests[i] for i in indices]
            for i, answer in zip(indices, self._answer(batch, statistics), strict=True):
                answers[i] = answer
                self.cache_hook.add_partial("generate_until", requests[i].args, answer.text)
            bar.update(len(indices))
        bar.close()
        statistics.log(self.rank)
        assert all(a is not None for a in answers)
        return answers  # type: ignore[return-value]

    def _batches(self, requests: list[Instance]) -> Iterator[list[int]]:
        """Indices of requests that are answered together: those with the same generation arguments, in order."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(i)
        for indices in groups.values():
            yield from _chunks(indices, self.batch_size)

    def _answer(self, requests: list[Instance], statistics: Statistics) -> Iterator[GenerationResult]:
        conversations = [self._messages(request) for request in requests]
        inputs = self._encode(conversations)
        generation = dict(requests[0].args[2])
        until = generation.pop("until", None) or []
        with statistics.timed(self.device):
            tokens = self._model.generate(**inputs, use_cache=self.use_cache, **_sampling(generation))
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(new, skip_special_tokens=True)
        records = self._setting.records(self._model)
        prompts, lengths = inputs["attention_mask"].sum(1).tolist(), answer_lengths(new, self._model.generation_config)
        dropped = [0] * len(requests)
        for record in records:
            dropped[record.sample] += record.n_before - record.n_after
        counts = [not (request.metadata or {}).get("__padding_only__") for request in requests]
        statistics.add(records, counts, self._model.config.get_text_config().num_hidden_layers, lengths)
        for i, text in enumerate(texts):
            for stop in [until] if isinstance(until, str) else until:
                text = text.split(stop)[0] if stop else text
            prompt = prompts[i] - dropped[i]
            yield GenerationResult(text, TokenCounts(input_tokens=prompt, output_tokens=lengths[i]))

    def _messages(self, request: Instance) -> list[dict[str, Any]]:
        _, to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][doc_id])).to_hf_messages()
        for part in itertools.chain.from_iterable(message["content"] for message in messages):
            if part["type"] == "audio":
                raise ValueError(f"task {task!r} asks about sound, which tokenprune_hf does not take")
            if part["type"] == "image" and hasattr(part["image"], "convert"):
                part["image"] = part["image"].convert("RGB")
        return self._apply_system_prompt(messages, self.system_prompt)

    def _encode(self, conversations: list[list[dict[str, Any]]]) -> Any:
        options = decode_videos(conversations, self.max_frames)
        inputs = encode_conversations(self._processor, conversations, **options)
        return inputs.to(self.device, self._model.dtype)


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _sampling(generation: dict[str, Any]) -> dict[str, Any]:
    """The harness's generation arguments as those of `generate`: temperature 0 means greedy."""
    out = {"max_new_tokens": 128, **generation}
    if not out.get("do_sample", (out.get("temperature") or 0) > 0):
        out |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    else:
        out["do_sample"] = True
    return out
