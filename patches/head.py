"""The modules above the base model: the language-model head, and wrappers such as PEFT's.

They compute logits and loss from the pruned sequence, so what they index it by has to shrink with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .cache import cache_among, layout_of
from .families.base import UnsupportedModelError, base_of, unwrapped
from .packing import Packing

if TYPE_CHECKING:
    from .pruner import Pruner

_PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "mm_encoder_outputs")


def heads_of(model: nn.Module) -> list[nn.Module]:
    """The modules from the one that the user holds down to the head, without the base model.

    Raises:
        UnsupportedModelError: if the head reads one place of each row, as classifiers and reward models do.
    """
    base, head = base_of(model), unwrapped(model)
    if head is base:
        return []
    can_generate = getattr(head, "can_generate", None)
    if can_generate is None or not can_generate():
        raise UnsupportedModelError(
            f"{type(head).__name__} is not supported: its head picks the place that it reads of each row in the "
            f"unpruned sequence; prune a model that generates text, or its base model alone ({type(base).__name__})"
        )
    path = next((name for name, module in model.named_modules() if module is head), "")
    above = [path[:i] for i, c in enumerate(path) if c == "."]
    return [model.get_submodule(name) for name in dict.fromkeys(["", *above, path])]


def bound(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Arguments of a call, by name where the module names them; wrappers that take any hand them on as they are."""
    if not args:
        return args, kwargs
    signature = inspect.signature(module.forward)
    if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        return args, kwargs
    arguments = signature.bind_partial(*args, **kwargs).arguments
    return (), {**arguments, **arguments.pop("kwargs", {})}


def feeds_pictures(arguments: Mapping[str, Any]) -> bool:
    """Whether a call has pixels, or features of some."""
    given = [arguments.get(name) for name in _PIXELS]
    return any(isinstance(value, Tensor) or bool(value) for value in given)


class LogitsToKeep:
    """Which places a head computes logits for, as its argument `logits_to_keep` says.

    The head gets a tensor of places in any case, which is rewritten in place when the sequence has shrunk.

    Args:
        wanted: the last so many places, or a (K,) tensor of places or a bool mask, in the caller's sequence.
        length: of the caller's sequence.
        device: of the model.
    """

    def __init__(self, wanted: int | Tensor, length: int, device: torch.device):
        self.last = wanted if isinstance(wanted, int) else None
        if isinstance(wanted, int):
            places = torch.arange(max(0, length - wanted), length, device=device)
        else:
            places = wanted.nonzero()[:, 0] if wanted.dtype == torch.bool else wanted.long()
            places = torch.where(places < 0, places + length, places)
        self.places = places

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> LogitsToKeep | None:
        """What a call asks for; None where it is no question of the sequence's length."""
        wanted = arguments.get("logits_to_keep")
        tokens = arguments.get("input_ids")
        tokens = arguments.get("inputs_embeds") if tokens is None else tokens
        if wanted is None or tokens is None or not feeds_pictures(arguments):
            return None
        if isinstance(wanted, int) and wanted <= 1:  # all of them, or the last, which always stays
            return None
        length, device = tokens.shape[1], tokens.device
        if isinstance(wanted, slice):
            wanted = range(length)[wanted]
        if not isinstance(wanted, int | Tensor):
            wanted = torch.as_tensor(list(wanted), device=device)
        return cls(wanted, length, device)

    def follow(self, packing: Packing, length: int) -> None:
        """Rewrite the places, in a sequence of `length` columns that shrinks.

        Raises:
            ValueError: if a place is gone, or another one in each row.
        """
        new_length = packing.index.shape[1]
        if self.last is not None:
            # As many of the last columns as are left in the row that has most of them left.
            held = (packing.index >= length - self.last) & packing.held
            self.last = int(held.sum(1).max())
            self.places.data = torch.arange(new_length - self.last, new_length, device=self.places.device)
            return
        wanted = self.places.to(packing.index.device)
        found = (packing.index[:, :, None] == wanted) & packing.held[:, :, None]  # (B, M, K)
        new = found.long().argmax(1)
        if not bool(found.any(1).all()) or not bool((new == new[:1]).all()):
            raise ValueError(
                f"logits_to_keep={wanted.tolist()} names places that pruning removes, or that come to stand elsewhere "
                "in each row; pass an int (the last so many), or take what you need from the pruned sequence's logits"
            )
        self.places.data = new[0].to(self.places.device)


def labels_among(arguments: dict[str, Any]) -> Tensor | None:
    """The labels of a call."""
    labels = arguments.get("labels")
    return labels if isinstance(labels, Tensor) else None


def labels_above(base: nn.Module, frame: FrameType) -> bool:
    """Whether a head that nobody has hooked calls the base model, and was given labels.

    Args:
        base: the base model.
        frame: that runs it.
    """
    caller: FrameType | None = frame
    for _ in range(12):  # torch's and transformers' own frames lie between
        caller = None if caller is None else caller.f_back
        if caller is None:
            return False
        owner = caller.f_locals.get("self")
        if isinstance(owner, nn.Module) and any(child is base for child in owner.children()):
            return caller.f_locals.get("labels") is not None
    return False


def smoothed_above(frame: FrameType) -> bool:
    """Whether a `Trainer` with a label smoother of its own runs the model: it keeps the labels to itself."""
    caller: FrameType | None = frame
    while caller is not None:
        if caller.f_code.co_name == "compute_loss":
            trainer = caller.f_locals.get("self")
            smoother = getattr(trainer, "label_smoother", None)
            return smoother is not None and getattr(trainer, "compute_loss_func", None) is None
        caller = caller.f_back
    return False


class _StandIn:
    """Stands in for a method of one head. An object, not a closure, so that a deep copy of the model calls its own."""

    NAME = ""

    def __init__(self, pruner: Pruner):
        self.pruner, self.original = pruner, getattr(pruner.heads[-1], self.NAME)
        functools.update_wrapper(self, self.original)  # type: ignore[arg-type]  # generate() reads the signature

    @classmethod
    def fits(cls, head: nn.Module) -> bool:
        """Whether there is such a method, which nobody else has replaced."""
        return hasattr(type(head), cls.NAME) and cls.NAME not in vars(head)


class PrefillGuard(_StandIn):
    """Refuses to feed a pruned prompt in chunks.

    A chunk holds a part of a picture, whose tokens would be chosen from without the rest.
    """

    NAME = "_prefill"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(self.original).bind(*args, **kwargs).arguments
        size = getattr(arguments.get("generation_config"), "prefill_chunk_size", None)
        fed = arguments.get("model_kwargs", {})
        if size is not None and feeds_pictures(fed) and not self.pruner.keeps_all:
            raise ValueError(
                f"prefill_chunk_size={size!r} feeds a prompt in parts, and pruning chooses among all tokens of a "
                "picture at once; leave prefill_chunk_size out for prompts with pictures"
            )
        return self.original(*args, **kwargs)


class PreparationNotes(_StandIn):
    """Notes what a call does not tell that `generate` prepares.

    On a pruned cache: the caller's padding mask, before a 4-D mask is made of it for a static one. Without a cache: how
    much of the sequence is the prompt.
    """

    NAME = "prepare_inputs_for_generation"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = cache_among(kwargs)
        if layout_of(cache) is not None:
            cache.callers_mask = kwargs.get("attention_mask")
        elif kwargs.get("use_cache") is False:
            ids: Any = args[0] if args else kwargs.get("input_ids")
            for source in self.pruner.sources(kwargs.get("mm_encoder_outputs") or {}):
                source.generation.prepare(ids.shape[1], bool(kwargs.get("is_first_iteration")))
        return self.original(*args, **kwargs)


#: What is put on a head, by the name of the method it stands in for.
STAND_INS: tuple[type[_StandIn], ...] = (PrefillGuard, PreparationNotes)
