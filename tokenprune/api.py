"""The functions of the public face."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from .arguments import POSITIONS
from .arguments import Keep as Keep
from .arguments import Positions as Positions
from .budget import AdaptiveBudget, Budget, TokenBudget
from .patches import Pruner, PruningReport, PruningStatus, family_of, status_of, supported_model_types
from .patches.cache import STATE_ATTRIBUTE
from .patches.config import allows_decoder_stage
from .patches.modules import base_of
from .policies import Policy, make_policy, registry
from .policies.base import check_policy
from .policies.stages import Stage

M = TypeVar("M", bound=nn.Module)
PolicyLike = str | Policy | Sequence[str | Policy]


def apply_pruning(
    model: M,
    policy: PolicyLike,
    keep: Keep = None,
    *,
    positions: Positions = "original",
    **options: Any,
) -> M:
    """Make a vision-language model drop visual tokens.

    Hooks are hung on this instance; its class, weights, config and attention implementation stay as
    they are, and `generate()` is called as before. Applying again replaces what was applied.

    Args:
        model: a transformers model of a supported type.
        policy: a policy's name (see `list_policies`) or a `Policy` instance; or a list of them that act at
            different stages (vision tower, before the language model, in the decoder) and share the way
            to the budget: of two, the first keeps the geometric mean of all tokens and of the final number.
        keep: what stays of each visual input: a ratio in (0, 1], or a number of tokens >= 1. A video
            is one visual input. None: the family's default (0.25 on LLaVA, 0.5 on Qwen-VL), or what
            an adaptive policy finds. For a list of policies also a list: what is left of the whole input
            after each, `["divprune", "fastv"], keep=[0.5, 0.1]`.
        positions: `"original"`: surviving tokens keep their position ids; `"compact"`: they are
            renumbered without gaps (on mRoPE as if they were text, so they lose their coordinates).
        **options: hyper-parameters of a policy given by name.

    Returns:
        The same model.

    Raises:
        UnknownPolicyError: no policy of that name.
        UnsupportedModelError: the model's type is not supported.
        ValueError: a bad keep, positions or policy option, or a policy that cannot act on this model. Nothing has
            changed then: what was applied before still is.
        RuntimeError: while the model runs, in this thread or in another.
    """
    family = family_of(model)
    model_type = cast(Any, model).config.model_type
    stages, keeps = _stages(policy, options, keep, allows_decoder_stage(base_of(model), family))
    budgets = [Budget(family.default_keep if each is None else each) for each in keeps]
    if positions not in POSITIONS:
        raise ValueError(f"positions={positions!r} is unknown; accepted: {', '.join(map(repr, POSITIONS))}")
    provided = {"text"} | ({"encoder_attention"} if family.encoder is not None else set())
    for stage in stages:
        missing = set(stage.needs - provided)
        if family.encoder is None and stage.encoder_spec() is not None:
            missing.add("the vision encoder")
        if missing:
            reason = f" ({family.no_encoder_stage})" if family.encoder is None else ""
            raise ValueError(
                f"policy {stage!r} needs {', '.join(sorted(missing))}, which is not available on model type "
                f"{model_type!r}{reason}"
            )
    # Several policies share the way to one budget; a policy's own second stage has none to reach.
    done = list(itertools.accumulate(stage.budget_weight for stage in stages))
    shared = [budgets[0].intermediate(weight, done[-1]) for weight in done] if len(budgets) == 1 else budgets
    acting: dict[str, tuple[Policy, TokenBudget]] = {}
    for stage, share in zip(stages, shared, strict=True):
        for where in stage.stages:
            acting[where] = (stage, AdaptiveBudget() if keep is None and stage.adaptive else share)
    pruner, before = Pruner(model, family, acting, positions), _pruner(model)
    remove_pruning(model)
    try:
        pruner.attach()
    except BaseException:
        if before is not None:
            before.attach()
        raise
    return model


def _stages(
    policy: PolicyLike, options: dict[str, Any], keep: Keep, deep: bool
) -> tuple[list[Policy], list[float | int | None]]:
    """The policies in the order they act, at most one at each stage; and their budgets, or the one they share.

    `deep` says whether a policy may go on in the decoder if it likes.
    """
    given = list(policy) if isinstance(policy, Sequence) and not isinstance(policy, str) else [policy]
    if len(given) > 1 and options:
        raise ValueError(f"options {sorted(options)} go into policy instances when several policies are given")
    stages = [make_policy(p, **options) for p in given]
    if not stages:
        raise ValueError("expected a policy, got an empty list")
    for each in stages:
        check_policy(each)
    if deep and not isinstance(keep, list | tuple) and not any(Stage.DECODER in s.stages for s in stages):
        follow_ups = [more for s in stages if (more := s.decoder_follow_up()) is not None]
        for each in follow_ups:
            check_policy(each)
        stages += follow_ups
    for where in Stage:
        acting = [s for s in stages if where in s.stages]
        if len(acting) > 1:
            raise ValueError(f"only one policy can act at the {where} stage, got {acting!r}")
    order = sorted(range(len(stages)), key=lambda i: list(Stage).index(stages[i].stages[0]))
    keeps: list[Any] = [keep]
    if isinstance(keep, list | tuple) and isinstance(policy, Sequence) and not isinstance(policy, str):
        if len(keep) != len(stages):
            raise ValueError(f"keep={keep!r} must have one budget for each of {len(stages)} policies")
        keeps = [None if keep[i] is None else Budget(keep[i]).keep for i in order]
        for (a, one), (b, other) in itertools.pairwise(zip((stages[i].label for i in order), keeps, strict=True)):
            # Ratios and numbers of tokens cannot be compared.
            if one is not None and type(one) is type(other) and other > one:
                raise ValueError(
                    f"keep={keep!r} grows: {b!r} acts after {a!r}, which leaves {one!r} of each input, so it cannot "
                    f"leave {other!r}"
                )
    return [stages[i] for i in order], keeps


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
    return model


@contextlib.contextmanager
def pruning(
    model: M,
    policy: PolicyLike,
    keep: Keep = None,
    *,
    positions: Positions = "original",
    **options: Any,
) -> Iterator[M]:
    """`apply_pruning` for a `with` block; afterwards the model is as it was, pruned or not. Blocks nest.

    Raises:
        RuntimeError: at the end of a block inside which another began that has not ended, as in two threads.
    """
    block = _Block(_pruner(model))
    apply_pruning(model, policy, keep, positions=positions, **options)
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
