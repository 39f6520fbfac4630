"""Options of `tokenprune profile` that do not go together: they are refused before any work."""

from __future__ import annotations

import argparse
from typing import Any

from ...patches.families.base import Kind
from ...patches.families.registry import families
from ..errors import CommandError
from ..files import check_different, check_file, picture_suffixes

#: Options that one engine only takes, with the value that they have where they are not given.
_OF_TRANSFORMERS: dict[str, Any] = {"batch": 1, "frames": 0, "attn": None, "device": None}
_OF_VLLM = ("concurrency", "requests", "batched_tokens", "clock")
#: Those of vLLM where they are not given.
CONCURRENCY, REQUESTS = (1, 8, 32), 32


def check(options: argparse.Namespace) -> None:
    """Check options.

    Raises:
        CommandError: naming an option that does not apply, or a file that cannot be written.
    """
    check_file(options.json, "--json")
    check_file(options.plot, "--plot", picture_suffixes())
    check_different(json=options.json, plot=options.plot)
    if options.engine == "vllm":
        for name, default in _OF_TRANSFORMERS.items():
            if getattr(options, name) != default:
                raise CommandError(f"--{name.replace('_', '-')} does not go with --engine vllm")
    else:
        for name in _OF_VLLM:
            if getattr(options, name) is not None:
                raise CommandError(f"--{name.replace('_', '-')} goes with --engine vllm")
        if options.new_tokens < 2:
            raise CommandError(f"new_tokens={options.new_tokens} must be at least 2: the first is the prefill's")
    if options.model is not None and options.layers is not None:
        raise CommandError("--layers goes with --config; --model has the layers of its checkpoint")
    if options.model is not None and options.vision_layers is not None:
        raise CommandError("--vision-layers goes with --config; --model has the layers of its checkpoint")
    if options.frames and options.images != 1:
        raise CommandError("--images and --frames do not go together: a row has images or a video")


def check_kind(model_type: str, options: argparse.Namespace) -> None:
    """Check that a model type takes the visual inputs that are asked for.

    Raises:
        CommandError: it does not, or is not supported.
    """
    known = families()
    if model_type not in known:
        raise CommandError(f"model type {model_type!r} is not supported; supported model types: {', '.join(known)}")
    kind: Kind = "video" if options.frames else "image"
    if kind not in known[model_type].kinds:
        raise CommandError(f"--frames {options.frames}: {model_type} takes no videos")
