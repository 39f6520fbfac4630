"""The embedded models: a miniature LLaVA and a miniature Qwen2.5-VL of transformers' own classes, with weights.

`load()` gives model and processor, `scenes` and `questions` draw images and questions for them, and `train` makes the
weights.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

Name = Literal["llava", "qwen", "qwen3"]
NAMES: tuple[Name, ...] = get_args(Name)
#: Checkpoint folders.
WEIGHTS: dict[str, Path] = {name: Path(__file__).parent / "weights" / name for name in NAMES}
#: Checkpoint folders by the names that commands take.
EMBEDDED: dict[str, Path] = {"embedded": WEIGHTS["llava"], "embedded-qwen": WEIGHTS["qwen"], **WEIGHTS}


def checkpoint_path(model: str) -> str:
    """The argument of `from_pretrained`: the folder of an embedded model's name, or the path or id as it is."""
    return str(EMBEDDED.get(model, model))


def load_processor(model: str) -> ProcessorMixin:
    """The processor of an embedded model, a path or an id; see `processors.load_processor`."""
    from ..processors import load_processor

    return load_processor(checkpoint_path(model))


def family(name: str) -> ModuleType:
    """The module of an embedded model: `llava` or `qwen`."""
    return importlib.import_module(f"{__name__}.{name}")


def load(name: Name = "llava") -> tuple[PreTrainedModel, ProcessorMixin]:
    """An embedded model in float32 on the CPU, and its processor.

    Args:
        name: `llava`, a `LlavaForConditionalGeneration`, or `qwen`, a `Qwen2_5_VLForConditionalGeneration`.

    Raises:
        ValueError: no embedded model of that name.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    if name not in NAMES:
        raise ValueError(f"no embedded model {name!r}; accepted: {', '.join(NAMES)}")
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS[name], dtype=torch.float32)
    return model.eval(), load_processor(str(WEIGHTS[name]))


def prompt(question: str, n_images: int = 1) -> list[dict[str, Any]]:
    """The chat messages of a question about `n_images` images, for `apply_chat_template`."""
    images = [{"type": "image"}] * n_images
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]
