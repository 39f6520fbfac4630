"""What is applied to one model, as the phases of a call read it; checked when pruning is applied."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from torch import nn

from ..arguments import Positions as Positions
from ..budget import TokenBudget
from ..mean_budget import DecoderCuts, MeanBudget
from ..policies.base import Policy
from ..policies.cuts import planned_cuts
from ..policies.stages import Stage
from .cache import cache_name
from .families.base import Family
from .families.registry import UnsupportedModelError
from .kept_history import History
from .masks import window_at
from .modules import base_of, heads_of, text_model_of


class Acting(NamedTuple):
    """Who chooses tokens at a stage, and its budget."""

    policy: Policy
    budget: TokenBudget

    def count(self, n: int) -> int:
        """Tokens that the budget leaves of `n`; all of them where the policy finds its own number."""
        count = self.budget.count(n)
        return n if count is None else count

    def drops(self, n: int) -> bool:
        """Whether an input of `n` tokens may lose some; not where the budget is all of them."""
        count = self.budget.budget.count(n) if isinstance(self.budget, MeanBudget) else self.budget.count(n)
        return count is None or count < n

    def counts(self, cuts: DecoderCuts, n: int, entered: int) -> tuple[int, ...]:
        """Tokens that the budget leaves after each cut in the decoder.

        Args:
            cuts: the cuts.
            n: tokens of the input.
            entered: how many of them entered the decoder.

        Raises:
            ValueError: for a number of tokens that the mean over the layers cannot be as low as.
        """
        if isinstance(self.budget, MeanBudget):
            self.budget.check(n, self.policy.label)
            return self.budget.left(n, entered)
        return cuts.left(entered, min(self.count(n), entered))


@dataclass(frozen=True)
class PruningConfig:
    """What is applied to one model.

    Attributes:
        base: the model that merges visual features into the sequence and calls the text model.
        text: the text model.
        heads: the modules from the one that the user holds down to the language-model head; none if the base model is
            pruned alone.
        family: the facts about the model's type.
        positions: whether surviving tokens keep their position ids or are renumbered.
        pixels, encoder, vision, decoder: what acts at that stage; None: nothing.
        cuts: decoder layers before which tokens may leave, and how many; None without a decoder stage.
        text_arguments, base_arguments: names that the text model's and the base model's forward take.
        cache_name: what they call the KV cache.
        history: what becomes of pictures of earlier turns; None: they stay as they are.
    """

    base: Any
    text: Any
    heads: tuple[nn.Module, ...]
    family: Family
    positions: Positions
    pixels: Acting | None
    encoder: Acting | None
    vision: Acting | None
    decoder: Acting | None
    cuts: DecoderCuts | None
    text_arguments: frozenset[str]
    base_arguments: frozenset[str]
    cache_name: str
    history: History | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        family: Family,
        acting: Mapping[str, tuple[Policy, TokenBudget]],
        positions: Positions,
        history: History | None = None,
    ) -> PruningConfig:
        """From the arguments of `apply_pruning`.

        Args:
            model: as the user holds it.
            family: its facts.
            acting: by stage (`"pixels"`, `"encoder"`, `"vision"`, `"decoder"`), who chooses tokens there, and its
                budget.
            positions: of surviving tokens.
            history: of earlier turns.

        Raises:
            ValueError: if the decoder stage does not fit the model.
            UnsupportedModelError: if the model's head or text model cannot follow.
        """
        base = base_of(model)
        heads = heads_of(model)
        text: Any = text_model_of(base, family)
        accepted = frozenset(inspect.signature(text.forward).parameters)
        cache = cache_name()
        if cache not in accepted:  # under a third name the cache would go unnoticed
            raise UnsupportedModelError(
                f"{type(text).__name__} takes no argument {cache!r}, through which transformers "
                f"{version('transformers')} hands on the KV cache; install a version that tokenprune was tested with"
            )
        pixels, encoder, vision, decoder = (Acting(*acting[stage]) if stage in acting else None for stage in Stage)
        return cls(
            base=base,
            text=text,
            heads=tuple(heads),
            family=family,
            positions=positions,
            pixels=pixels,
            encoder=encoder,
            vision=vision,
            decoder=decoder,
            cuts=None if decoder is None else decoder_cuts(decoder.policy, base, family),
            text_arguments=accepted,
            base_arguments=frozenset(inspect.signature(base.forward).parameters),
            cache_name=cache,
            history=_checked_history(history, text),
        )

    @property
    def keeps_all(self) -> bool:
        """Whether all tokens stay, of any input."""
        acting = (self.pixels, self.encoder, self.vision, self.decoder)
        return all(each.budget.keeps_all for each in acting if each is not None)

    @property
    def decoder_cuts(self) -> tuple[int, ...]:
        """Decoder layers before which tokens may leave, ascending; empty without a decoder stage."""
        return () if self.cuts is None else self.cuts.layers

    @property
    def reads_cache_position(self) -> bool:
        """Whether the text model builds masks from this index of physical columns.

        It would otherwise derive it from the logical length. So it is until some transformers 5.x.
        """
        return "cache_position" in self.text_arguments

    @property
    def first_decoder_cut(self) -> int:
        """Lowest decoder layer before which tokens can leave."""
        return self.family.first_decoder_cut(self.base.config)

    @property
    def uses_flash_attention(self) -> bool:
        """Whether the text model's attention is FlashAttention; it may be changed at any time."""
        return "flash" in (self.text.config._attn_implementation or "")


def _checked_history(history: History | None, text: Any) -> History | None:
    """Raise `ValueError` for a model whose layers count the columns that they hold, or hold no columns."""
    if history is None:
        return None
    kinds = set(getattr(text.config, "layer_types", None) or ())
    others = {each for each in kinds if each == "linear_attention" or not each.endswith("_attention")}
    if others:
        raise ValueError(
            f"history={history.keep!r} lets columns leave the KV cache between turns, and this model has layers "
            f"({', '.join(sorted(others))}) that keep a state instead, from which nothing can leave; leave history out "
            "for this model"
        )
    if any(window_at(text.config, i) is not None for i in range(len(text.layers))):
        raise ValueError(
            f"history={history.keep!r} lets columns leave the KV cache between turns, which layers with a sliding "
            "window do not allow: they count the columns that they hold; leave history out for this model"
        )
    return history


def allows_decoder_stage(base: nn.Module, family: Family) -> bool:
    """Whether tokens can leave between decoder layers of a model."""
    layers: Any = text_model_of(base, family).layers
    return family.no_decoder_stage is None and family.first_decoder_cut(base.config) < len(layers)


def decoder_cuts(policy: Policy, base: Any, family: Family) -> DecoderCuts:
    """The layers before which a policy wants to drop tokens, and how many it plans to leave there.

    Raises:
        ValueError: where the model does not allow it, or not at these layers.
    """
    if family.no_decoder_stage is not None:
        raise ValueError(
            f"policy {policy!r} drops tokens between decoder layers, which model type {base.config.model_type!r} does "
            f"not allow: {family.no_decoder_stage}; use a policy that acts before the language model "
            "(todre: removal=False)"
        )
    n_layers = len(text_model_of(base, family).layers)
    return planned_cuts(policy, n_layers, family.first_decoder_cut(base.config))
