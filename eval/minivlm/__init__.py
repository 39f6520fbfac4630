"""The embedded models: miniatures of LLaVA, Qwen2.5-VL and Qwen3-VL of transformers' own classes, with weights.

`load()` gives model and processor, `scenes` and `questions` draw images and questions for them, and `train` makes the
weights. `easy_vqa` has a further LLaVA for a data set of others, `qwen_pages` a further Qwen2.5-VL for pages, short
videos and descriptions.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

Name = Literal["llava", "qwen", "qwen3", "easy-vqa", "qwen-pages"]
_FOLDER = Path(__file__).parent / "weights"
#: Embedded models that have weights here; one that has yet to be trained has none.
NAMES: tuple[Name, ...] = tuple(name for name in get_args(Name) if (_FOLDER / name / "model.safetensors").is_file())
#: Of these, those that are asked about procedural scenes. The others have questions of their own.
OF_SCENES: tuple[Name, ...] = tuple(name for name in NAMES if name not in ("easy-vqa", "qwen-pages"))
#: Checkpoint folders.
WEIGHTS: dict[str, Path] = {name: _FOLDER / name for name in NAMES}
_ALIASES = {
    "embedded": "llava",
    "embedded-qwen": "qwen",
    "embedded-qwen3": "qwen3",
    "embedded-qwen-pages": "qwen-pages",
}
#: Checkpoint folders by the names that commands take.
EMBEDDED: dict[str, Path] = {
    **{alias: WEIGHTS[name] for alias, name in _ALIASES.items() if name in NAMES},
    **{name: WEIGHTS[name] for name in NAMES if name in _ALIASES.values()},
}


def checkpoint_path(model: str) -> str:
    """The argument of `from_pretrained`: the folder of an embedded model's name, or the path or id as it is."""
    return str(EMBEDDED.get(model, model))


def reads_pages(model: str) -> bool:
    """Whether a model's name or path is that of the embedded model for pages, which does not know questions about
    scenes."""
    return Path(checkpoint_path(model)) == WEIGHTS.get("qwen-pages")


def load_processor(model: str) -> ProcessorMixin:
    """The processor of an embedded model, a path or an id; see `processors.load_processor`."""
    from ..processors import load_processor

    return load_processor(checkpoint_path(model))


def family(name: str) -> ModuleType:
    """The module of an embedded model, with dashes of its name as underscores."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def load(name: Name = "llava") -> tuple[PreTrainedModel, ProcessorMixin]:
    """An embedded model in float32 on the CPU, and its processor.

    Args:
        name: `llava` or `easy-vqa`, a `LlavaForConditionalGeneration`; `qwen` or `qwen-pages`, a
            `Qwen2_5_VLForConditionalGeneration`; `qwen3`, a `Qwen3VLForConditionalGeneration`.

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
