"""Processors of checkpoints, without videos where torchvision is missing."""

from __future__ import annotations

from typing import Any

import torch

from .errors import CommandError

_VIDEOS = "video_processor"


def load_processor(path: str) -> Any:
    """The processor of a checkpoint. Without torchvision, which all video processors need, one that takes no videos.

    Args:
        path: a path or id.

    Raises:
        CommandError: it needs a package that is not installed.
        OSError: there is no such checkpoint.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils.import_utils import is_torchvision_available

    cls: Any = AutoProcessor
    if not is_torchvision_available():
        known: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(path)), None)
        if known is not None and _VIDEOS in _parts(known):
            cls = type(known.__name__, (_PictureProcessor, known), {"__module__": __name__})
    try:
        return cls.from_pretrained(path)
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        raise CommandError(f"the processor of {path} cannot be loaded: {reason}") from error


def takes_videos(processor: Any) -> bool:
    """Whether a processor has the part that reads videos."""
    return getattr(processor, _VIDEOS, None) is not None


def check_videos(processor: Any) -> None:
    """Check that a processor of a model that takes videos has what reads them.

    Raises:
        CommandError: it was loaded without; the message says what to install.
    """
    if not takes_videos(processor):
        raise CommandError(f"videos need torchvision, of the build for torch {torch.__version__}; it is not installed")


def _parts(cls: Any) -> list[str]:
    """Names of the parts that a processor class is made of: tokenizer, image processor, ..."""
    return list(cls.get_attributes() if hasattr(cls, "get_attributes") else cls.attributes)  # transformers 5, 4


class _PictureProcessor:
    """Mixed into a processor class: its video processor is None."""

    @classmethod
    def _get_arguments_from_pretrained(cls, path: Any, *args: Any, **kwargs: Any) -> list[Any]:
        known: Any = cls.__mro__[2]
        others = [name for name in _parts(known) if name != _VIDEOS]
        without = {"get_attributes": classmethod(lambda cls: others), "attributes": others}
        loader: Any = type(known.__name__, (known,), without)
        loaded = dict(zip(others, loader._get_arguments_from_pretrained(path, *args, **kwargs), strict=True))
        return [loaded.get(name) for name in _parts(known)]

    @classmethod
    def get_attributes(cls) -> list[str]:
        return _parts(cls.__mro__[2])

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == _VIDEOS and argument is None:
            return type(None)
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]
