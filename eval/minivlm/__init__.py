"""A miniature LLaVA and a miniature Qwen2.5-VL that ship with the package: real transformers classes, trained here.

`load()` gives model and processor; `scenes` and `questions` draw what they can be asked about; `train` made
the weights.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

Name = Literal["llava", "qwen"]
NAMES: tuple[Name, ...] = get_args(Name)
#: Folders that `from_pretrained` takes.
WEIGHTS: dict[str, Path] = {name: Path(__file__).parent / "weights" / name for name in NAMES}
#: What commands call them.
EMBEDDED: dict[str, Path] = {"embedded": WEIGHTS["llava"], "embedded-qwen": WEIGHTS["qwen"]}


def place(model: str) -> str:
    """Where `from_pretrained` finds a model: a folder of ours, or the path or id it is."""
    return str(EMBEDDED.get(model, model))


def load_processor(model: str) -> ProcessorMixin:
    """The processor of a model of ours, or of a path or id; ours do without torchvision."""
    from transformers import AutoProcessor

    where = place(model)
    if where == str(WEIGHTS["qwen"]):  # whose videos want it
        return family("qwen").load_processor(WEIGHTS["qwen"])
    return AutoProcessor.from_pretrained(where)


def family(name: str) -> ModuleType:
    """The module of an embedded model: `llava` or `qwen`."""
    return importlib.import_module(f"{__name__}.{name}")


def load(name: Name = "llava") -> tuple[PreTrainedModel, ProcessorMixin]:
    """An embedded model in float32 on the CPU, and its processor.

    Args:
        name: `llava`, a `LlavaForConditionalGeneration`, or `qwen`, a `Qwen2_5_VLForConditionalGeneration`.

    Raises:
        ValueError: for another name.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    if name not in NAMES:
        raise ValueError(f"no embedded model {name!r}; accepted: {', '.join(NAMES)}")
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS[name], dtype=torch.float32)
    return model.eval(), load_processor(str(WEIGHTS[name]))


def prompt(question: str, n_images: int = 1) -> list[dict[str, Any]]:
    """The chat messages of one question about some pictures, for `apply_chat_template`."""
    pictures = [{"type": "image"}] * n_images
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]
