"""The functions of the public face."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from .arguments import BudgetMeaning as BudgetMeaning
from .arguments import Keep as Keep
from .arguments import Positions as Positions
from .composition import PolicyLike as PolicyLike
from .composition import compose, settle
from .patches import Pruner, PruningReport, PruningStatus, family_of, status_of, supported_model_types
from .patches.cache import STATE_ATTRIBUTE
from .patches.generation import forget_pixels
from .patches.kept_history import History, history_of
from .patches.modules import base_of
from .policies import registry
from .recipe import Recipe, recipe_of

M = TypeVar("M", bound=nn.Module)

#: What can be applied: policies, a recipe, or the path of a recipe.
Applicable = PolicyLike | Recipe | PathLike[str]


def apply_pruning(
    model: M,
    policy: Applicable = "auto",
    keep: Keep = None,
    *,
    budget: BudgetMeaning | None = None,
    positions: Positions | None = None,
    history: float | int | History | None = None,
    **options: Any,
) -> M:
    """Make a vision-language model drop visual tokens.

    Hooks are hung on this instance; its class, weights, config and attention implementation stay as
    they are, and `generate()` is called as before. Applying again replaces what was applied.

    Args:
        model: a transformers model of a supported type.
        policy: a policy's name (see `list_policies`), a name with a paper's setting (`"sparsevlm@v2-128"`, see
            `tokenprune policies`) or with `@pixels` to choose before the vision tower (`"divprune@pixels"`), or a
            `Policy` instance; by default `auto`; or a list of them that act at different stages (before and
            in the vision tower, before the language model, in the decoder) and share the way to the budget:
            of two, the first keeps the geometric mean of all tokens and of the final number. Or a
            recipe of `tokenprune tune`: its file, whose name ends in `.json`, or a `Recipe`. It brings everything
            else but `history`, and a `RecipeWarning` says if it was measured on another model or with other
            versions.
        keep: visual tokens that a decoder layer holds of each visual input, in the mean over all layers: a
            ratio in (0, 1], or a number of tokens >= 1. Where all tokens leave before the decoder, this is
            how many stay. A video is one visual input. None: the family's default (0.25 on LLaVA, 0.5 on
            Qwen-VL), which counts what is left after the last cut where the layers below the first cut alone
            hold more than half of it; or what an adaptive policy finds. For a list of policies also a list:
            what is left of the whole input after each, `["divprune", "fastv"], keep=[0.5, 0.1]`, with None
            for what an adaptive one finds (of others: the family's default), as in
            `["pixelprune", "divprune"], keep=[None, 0.25]`.
            With a policy of the vision stage also `"energy:0.98"`, `"coverage:0.95"` or an `AdaptiveBudget`, which
            finds the number for each input from its tokens (`EnergyBudget`, `CoverageBudget`).
        budget: what a single `keep` counts: `"mean"`, as said, met as nearly as whole tokens allow and
            reported as `Record.mean`; or `"final"`, the tokens that are left after the last cut. None: as a
            preset says, else `"mean"`.
        positions: `"original"`: surviving tokens keep their position ids; `"compact"`: they are
            renumbered without gaps (on mRoPE as if they were text, so they lose their coordinates). Tokens
            that leave inside the decoder leave gaps in any case. None: as a preset says, else `"original"`.
        history: what stays in the KV cache of pictures of earlier turns when a new turn arrives, on all layers:
            a ratio in (0, 1) or a number of each picture's tokens, 0 for none, or a `History` with a policy of its
            own. What stays keeps its positions, and nothing is encoded again. None: they stay as they are.
        **options: hyper-parameters of a policy given by name.

    Returns:
        The same model.

    Raises:
        UnknownPolicyError: no policy of that name.
        UnsupportedModelError: the model's type is not supported.
        OSError: the file of a recipe cannot be read.
        ValueError: a bad keep, budget, positions, history or policy option, a policy that cannot act on this model, a
            file that is no recipe, a recipe beside other arguments, or a mean below what the decoder's first layers
            must hold (with a number of tokens, on the forward call). Nothing has changed then: what was applied
            before still is.
        RuntimeError: while the model runs, in this thread or in another.
    """
    family = family_of(model)
    recipe = recipe_of(policy)
    if recipe is not None:
        _check_alone(keep, budget, positions, options)
        recipe.warn(recipe.differences(model))
        policy, keep, budget, positions = list(recipe.policies), recipe.keep, recipe.budget, recipe.positions
    policies = cast(PolicyLike, policy)
    asked = settle(policies, keep, budget, positions)
    acting = compose(base_of(model), family, policies, options, asked)
    pruner, before = Pruner(model, family, acting, asked.positions, history_of(history)), _pruner(model)
    remove_pruning(model)
    try:
        pruner.attach()
    except BaseException:
        if before is not None:
            before.attach()
        raise
    return model


def _check_alone(keep: Keep, budget: object, positions: object, options: Mapping[str, object]) -> None:
    """Raise `ValueError` if anything is given beside a recipe."""
    given = {"keep": keep, "budget": budget, "positions": positions, **options}
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ValueError(f"a recipe brings its own {', '.join(names)}; give a policy in its place to choose them")


def _pruner(model: nn.Module) -> Pruner | None:
    return getattr(base_of(model), STATE_ATTRIBUTE, None)


def remove_pruning(model: M) -> M:
    """Give the stock model back: no hook and no attribute is left. Does nothing if none is applied.

    Raises:
        RuntimeError: while the model runs, in this thread or in another.
    """
    pruner = _pruner(model)
    if pruner is not None:
        pruner.detach()
        forget_pixels(pruner.config.heads)
    return model


@contextlib.contextmanager
def pruning(
    model: M,
    policy: Applicable = "auto",
    keep: Keep = None,
    *,
    budget: BudgetMeaning | None = None,
    positions: Positions | None = None,
    history: float | int | History | None = None,
    **options: Any,
) -> Iterator[M]:
    """`apply_pruning` for a `with` block; afterwards the model is as it was, pruned or not. Blocks nest.

    Raises:
        RuntimeError: at the end of a block inside which another began that has not ended, as in two threads.
    """
    block = _Block(_pruner(model))
    apply_pruning(model, policy, keep, budget=budget, positions=positions, history=history, **options)
    _BLOCKS.setdefault(base_of(model), []).append(block)
    try:
        yield model
    finally:
        _end(block, model)


@dataclass(eq=False)
class _Block:
    """A `pruning` block, and what was applied when it began."""

    before: Pruner | None


#: Per base model, its blocks that have not ended, in the order in which they began.
_BLOCKS: weakref.WeakKeyDictionary[nn.Module, list[_Block]] = weakref.WeakKeyDictionary()


def _end(block: _Block, model: nn.Module) -> None:
    blocks = _BLOCKS[base_of(model)]
    i = blocks.index(block)
    del blocks[i]
    if i < len(blocks):
        blocks[i].before = block.before  # which the block that began next restores in its place
        raise RuntimeError(
            "pruning() blocks of one model must nest: this one ends before one that began inside it; prune a deep copy "
            "of the model in each thread"
        )
    remove_pruning(model)
    if block.before is not None:
        block.before.attach()


def pruning_report(model: nn.Module) -> PruningReport:
    """What the last prefill did: a list with one record per visual input, empty before the first.

    `print(pruning_report(model))` shows it as a table.

    Raises:
        ValueError: if no pruning is applied.
    """
    return PruningReport(_applied(model).records)


def pruning_status(model: nn.Module) -> PruningStatus | None:
    """How a model is pruned: policies with their options, budgets, positions, and since when.

    Returns:
        None if no pruning is applied, so that `if pruning_status(model):` asks whether it is.
    """
    pruner = _pruner(model)
    return None if pruner is None else status_of(pruner)


def prune_labels(model: nn.Module, labels: Tensor) -> Tensor:
    """Labels for the logits of the last pruned forward, for a loss that is computed outside the model.

    A model that is given `labels` shrinks them itself. Here for `Trainer`'s `compute_loss_func`, distillation and the
    like: `loss(outputs.logits, prune_labels(model, labels))`.

    Args:
        model: a pruned model that has just run.
        labels: (B, L), as long as the sequence that it was fed; -100 counts as none.

    Returns:
        (B, M), as long as its logits: -100 at padding, and at each row's first token, which has nothing before it.

    Raises:
        ValueError: if no pruning is applied, or the last forward was fed a sequence of another length.
    """
    length, packing = _applied(model).last
    if labels.shape[1] != length:
        raise ValueError(f"labels are {labels.shape[1]} long, and the model was last fed a sequence of {length}")
    return labels if packing is None else packing.labels(labels)


def expand_logits(model: nn.Module, logits: Tensor, fill: float = 0.0) -> Tensor:
    """Logits of the last pruned forward where their tokens stand in the unpruned sequence.

    Args:
        model: a pruned model that has just run.
        logits: (B, M, V), or any values by token, (B, M, ...).
        fill: at columns that were pruned.

    Returns:
        (B, L, V).

    Raises:
        ValueError: if no pruning is applied, or the logits are not those of the last forward by their length.
    """
    length, packing = _applied(model).last
    short = length if packing is None else packing.index.shape[1]
    if logits.shape[1] != short:
        raise ValueError(f"logits have {logits.shape[1]} places; those of the last forward have {short}")
    return logits if packing is None else packing.scatter(logits, length, fill)


def _applied(model: nn.Module) -> Pruner:
    pruner = _pruner(model)
    if pruner is None:
        raise ValueError("no pruning is applied to this model; call apply_pruning first")
    return pruner


def list_policies() -> list[str]:
    """Names that `apply_pruning` accepts."""
    return list(registry())


def list_supported_models() -> list[str]:
    """Values of `config.model_type` that `apply_pruning` accepts."""
    return supported_model_types()
