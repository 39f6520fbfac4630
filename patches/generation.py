"""What `generate` knows and does not tell the model: how it feeds a prompt, and the mask it prepares from."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from torch import nn
from torch.utils._pytree import tree_leaves

from .cache import cache_among, layout_of
from .config import PruningConfig
from .feature_source import FeatureSource
from .static_columns import full_length
from .visual_inputs import feeds_pictures

#: Attribute of a draft: inputs of pictures that it encodes itself, by name.
OWN_PIXELS = "_tokenprune_pixels"


def forget_pixels(heads: Sequence[nn.Module]) -> None:
    """Take pixels off the heads of a draft that it was given."""
    for head in heads:
        if OWN_PIXELS in vars(head):
            delattr(head, OWN_PIXELS)


#: Where features that `generate` has computed came from, as far as that was noted.
Sources = Callable[[Mapping[Any, Any]], list[FeatureSource]]


class StandIn:
    """Takes the place of a method of one head, and calls it.

    It is an object instead of a closure, so that a deep copy of the model calls its own method.

    Args:
        config: of the pruning; it has a head.
        sources: see `Sources`.
    """

    NAME = ""

    def __init__(self, config: PruningConfig, sources: Sources):
        self.config, self.sources = config, sources
        self.original: Callable[..., Any] = getattr(config.heads[-1], self.NAME)
        functools.update_wrapper(self, self.original)  # type: ignore[arg-type]  # generate() reads the signature

    @classmethod
    def fits(cls, head: nn.Module) -> bool:
        """Whether there is such a method, which nobody else has replaced."""
        return hasattr(type(head), cls.NAME) and cls.NAME not in vars(head)


class PrefillGuard(StandIn):
    """Refuses to feed a pruned prompt in chunks.

    A chunk holds a part of a picture, whose tokens would be chosen from without the rest.
    """

    NAME = "_prefill"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(self.original).bind(*args, **kwargs).arguments
        size = getattr(arguments.get("generation_config"), "prefill_chunk_size", None)
        fed = arguments.get("model_kwargs", {})
        if size is not None and feeds_pictures(fed) and not self.config.keeps_all:
            raise ValueError(
                f"prefill_chunk_size={size!r} feeds a prompt in parts, and pruning chooses among all tokens of a "
                "picture at once; leave prefill_chunk_size out for prompts with pictures"
            )
        return self.original(*args, **kwargs)


class PreparationNotes(StandIn):
    """Notes what `generate` prepares a call from.

    On a pruned cache: the caller's padding mask, before a 4-D mask is made of it for a static cache; and whether a turn
    begins. Without a cache: how much of the sequence is the prompt.

    The prefill of an assistant in assisted decoding is prepared as one that sees the pictures.
    """

    NAME = "prepare_inputs_for_generation"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = cache_among(kwargs)
        if self._drafts_blind(cache, kwargs):
            refuse_earlier_turns(sys._getframe(1))
            kwargs = self._with_pictures(kwargs)
        if layout_of(cache) is not None:
            cache.callers_mask = full_length(kwargs.get("attention_mask"), cache)
            if self.config.history is not None:  # else nobody would take the note
                cache.begins_turn = kwargs.get("is_first_iteration")
        elif kwargs.get("use_cache") is False:
            ids: Any = args[0] if args else kwargs.get("input_ids")
            for source in self.sources(kwargs.get("mm_encoder_outputs") or {}):
                source.generation.prepare(ids.shape[1], bool(kwargs.get("is_first_iteration")))
        return self.original(*args, **kwargs)

    def _drafts_blind(self, cache: Any, arguments: Mapping[str, Any]) -> bool:
        """Whether this is the prefill of an assistant, for which `generate` says that it is none, so that pictures are
        left out."""
        if arguments.get("is_first_iteration") is not False or arguments.get("use_cache") is False:
            return False
        length = 0 if cache is None else cache.get_seq_length()
        return isinstance(length, int) and length == 0  # that of a static cache in use is on the device

    def _with_pictures(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a prefill that sees pictures.

        Raises:
            ValueError: for features of a model of another width.
        """
        own = getattr(self.config.heads[-1], OWN_PIXELS, None)
        seeing: dict[str, Any] = {**arguments, "is_first_iteration": True}
        if own is not None:
            seeing.pop("mm_encoder_outputs", None)
            return {**seeing, **own}
        width = self.config.text.get_input_embeddings().weight.shape[-1]
        for kind, output in (arguments.get("mm_encoder_outputs") or {}).items():
            found = {each.shape[-1] for each in tree_leaves(getattr(output, "pooler_output", output))}
            if found and width not in found:
                raise ValueError(
                    f"the features of {kind}s are {max(found)} wide, of another model, and this draft's are {width} "
                    "wide; give it the pictures themselves: tokenprune.draft(model, ..., pixels=inputs)"
                )
        return seeing


def refuse_earlier_turns(frame: FrameType) -> None:
    """Raise `ValueError` where assisted decoding begins on a KV cache that holds earlier turns.

    transformers feeds the model the whole prompt again there, behind what the cache holds, and the text is another.

    Args:
        frame: in which the draft's prefill is prepared.
    """
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_name != "_assisted_decoding":
        caller = caller.f_back
    if caller is None or not caller.f_locals.get("is_first_iteration"):
        return
    cache = cache_among(caller.f_locals.get("model_kwargs") or {})
    held = 0 if cache is None else int(cache.get_seq_length())
    if held:
        raise ValueError(
            f"assisted decoding cannot go on with a KV cache: transformers feeds the {held} tokens that it holds a "
            "second time, and the text is another one; leave past_key_values out and feed the whole talk, with all its "
            "pictures, or generate this turn without assistant_model"
        )


#: What is put on a head, by the name of the method it takes the place of.
STAND_INS: tuple[type[StandIn], ...] = (PrefillGuard, PreparationNotes)
