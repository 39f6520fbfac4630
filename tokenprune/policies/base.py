"""The base classes of policies."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from .presets import Preset
from .renamed import FormerNames
from .stages import Stage, parse_stages
from .types import DecoderView, EncoderSpec, Restoration, Selection, TowerCut, TowerView, VisualTokens


@dataclasses.dataclass
class Policy(FormerNames):
    """Decides which visual tokens stay. Subclass it as a dataclass whose fields are the policy's options.

    A subclass overrides the method of each stage that it acts at: `select` or `select_many` (vision),
    `decoder_layers` and `decoder_select` or `decoder_select_many` (decoder), `encoder_select` or `resized_shape`
    (encoder). All else has a default.

    A fact that depends on options is a property (`stages`, `exact`, `by_tile`, `proportional`, `budget_weight`). All
    other facts are class attributes, and instances do not overwrite them.

    Class attributes:
        name: set by `register`.
        stage: the stages that the policy acts at: `"pixels"` (before the vision encoder), `"encoder"` (between layers
            of the vision encoder), `"vision"` (between the projector and the language model), `"decoder"` (before a
            decoder layer, during prefill), or several of them joined by `", "`, as `"vision, decoder"`. To read it,
            use the property `stages`.
        pixel_features: what `VisualTokens.features` are at the stage `"pixels"`: `"embedded"`, the mean of the
            encoder's patch embeddings, without positions; or `"raw"`, the pixel values of all patches of a token.
        chooses_groups: whether `encoder_select` chooses among tokens that several patches are made into
            (`TowerView.group`), as Qwen-VL's vision towers have them. A policy that merges patches cannot.
        needs: what it reads besides the projected tokens, of `"text"` and `"encoder_attention"` (which
            `encoder_spec` says more about).
        adaptive: whether it decides how many tokens stay when no budget is given. `select` then gets None.
        per_frame: whether the budget of a video is split over its frames and each is selected from alone. Otherwise
            `select` gets all frames of a video at once.
        paper: name, venue and arXiv id of the paper.
        keeps: in a few words, which tokens it keeps.
        deviates: in a few words, where it differs from the paper or the paper's code.
        presets: settings of the paper by name, for `apply_pruning(model, "NAME@PRESET")`.
    """

    name: ClassVar[str] = ""
    stage: ClassVar[Literal["pixels", "encoder", "vision", "decoder", "vision, decoder"]] = "vision"
    pixel_features: ClassVar[Literal["embedded", "raw"]] = "embedded"
    chooses_groups: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    per_frame: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    keeps: ClassVar[str] = ""
    deviates: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Preset]] = {}

    @property
    def label(self) -> str:
        """The policy's name in error messages: its registered name, else its class's name."""
        return self.name or type(self).__name__

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that this policy acts at, in the order in which tokens pass them.

        Raises:
            ValueError: for a `stage` that names an unknown stage or names one twice.
        """
        stages = parse_stages(self.stage)
        if stages is None:
            raise ValueError(
                f"policy {self.label!r} has the unknown stage {self.stage!r}; accepted: "
                f"{', '.join(repr(str(stage)) for stage in Stage)}, or several of them joined by ', '"
            )
        return stages

    @property
    def exact(self) -> bool:
        """Whether it keeps exactly as many tokens as it is asked for. False for policies that keep whole rows or
        whole grids; their count is in the report."""
        return True

    @property
    def by_tile(self) -> bool:
        """Whether the budget of an image that the encoder saw in tiles is split over the tiles, by their sizes, and
        each is selected from alone."""
        return False

    @property
    def proportional(self) -> bool:
        """Whether attention in the vision encoder counts a merged token as often as the patches that it stands for."""
        return False

    @property
    def budget_weight(self) -> float:
        """Weight among policies that share one budget, > 0.

        After policies of weights 1 and 3, with a final keep ratio r, r ** (1 / 4) of the tokens are left after the
        first and r after the second. A policy that acts before the vision encoder has 2, because a token that leaves
        there saves the encoder's work and the language model's, and all others have 1.
        """
        return 2.0 if Stage.PIXELS in self.stages else 1.0

    def encoder_spec(self) -> EncoderSpec | None:
        """What to record of the vision encoder for `VisualTokens`; None: nothing."""
        return None

    @property
    def chooser(self) -> Policy:
        """The policy whose `select_many` is called, and whose options these are: itself, if it wraps no other."""
        return self

    # Stages "vision" and "pixels"

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        """Choose `n_keep` of the N tokens of one visual input.

        At the stage `"pixels"` the indices alone count, and `tokens` holds `features` (see `pixel_features`), `grids`,
        `kind` and `index`, which counts the inputs of the call of the encoder.

        Args:
            tokens: one visual input, or one frame of a video with `per_frame`.
            n_keep: exact number of tokens to keep, 1 <= n_keep < N; None for an adaptive policy without a budget.

        Returns:
            ascending indices, and new features for them if the policy merges or pools.
        """
        raise NotImplementedError

    def select_many(self, tokens: Sequence[VisualTokens], n_keep: Sequence[int]) -> list[Selection]:
        """`select` for all visual inputs of a batch, in their order."""
        return [self.select(each, k) for each, k in zip(tokens, n_keep, strict=True)]

    # Stage "encoder"

    def encoder_select(self, view: TowerView) -> TowerCut | None:
        """Choose which tokens stay between two layers of the vision encoder; None: all."""
        raise NotImplementedError

    def restoration(self, n_layers: int) -> Restoration | None:
        """How patches come back that leave inside a vision encoder of so many layers; None: they do not.

        If they do, `encoder_select` is asked once, in front of one layer, and answers with indices alone.
        """
        return None

    def resized_shape(self, height: int, width: int, n_keep: int) -> tuple[int, int] | None:
        """Rows and columns of tokens to resize an image to before the vision encoder.

        Args:
            height: rows of tokens that the image has.
            width: columns of tokens that the image has.
            n_keep: tokens that the budget leaves.

        Returns:
            None for no change. Else `source_indices` says where the tokens of the resized image belong.
        """
        return None

    @staticmethod
    def source_indices(height: int, width: int, rows: int, columns: int) -> list[int]:
        """For each token of a resized image of (rows, columns), the index of a token of the full (height, width).

        Indices are distinct. The resized tokens take the columns and position ids of these tokens.
        """
        raise NotImplementedError

    # Stage "decoder"

    def decoder_layers(self, n_layers: int, lowest: int) -> list[int]:
        """Decoder layers before which tokens may be dropped, ascending.

        Args:
            n_layers: decoder layers of the model.
            lowest: lowest layer before which this model lets tokens be dropped. A lower answer is an error when the
                policy is applied.
        """
        return []

    def decoder_select(self, view: DecoderView) -> list[Tensor] | None:
        """Choose which tokens stay at such a layer, in one row of the batch.

        Returns:
            for each visual input a (N,) bool mask, True for tokens that stay; None: all stay.
        """
        raise NotImplementedError

    def decoder_select_many(self, views: Sequence[DecoderView]) -> list[list[Tensor] | None]:
        """`decoder_select` for all rows of a batch, in their order."""
        return [self.decoder_select(view) for view in views]

    def decoder_counts(self, n: int, n_keep: float, n_layers: int, lowest: int) -> Sequence[float]:
        """How many tokens of a visual input stay after each cut, as far as the policy plans it.

        A budget that counts the mean over decoder layers is solved with it: `n_keep` is varied until the mean is the
        budget. By default all cuts leave `n_keep`. A policy whose cuts depend on what it sees answers what they leave
        at most.

        Args:
            n: tokens that entered the decoder.
            n_keep: tokens after the last cut, at least 1, not rounded. Answers must not fall when it grows.
            n_layers: decoder layers of the model.
            lowest: as in `decoder_layers`.

        Returns:
            for each of `decoder_layers`, a number that need not be whole.
        """
        return [n_keep] * len(self.decoder_layers(n_layers, lowest))

    def decoder_entry(self, share: float, exponent: float) -> float:
        """The share of a visual input's tokens that enters the decoder, for a budget that counts the mean over layers.

        Args:
            share: what is left after the last cut, in (0, 1].
            exponent: by `budget_weight`: `share ** exponent` are left if all policies take their part of the way.

        Returns:
            at least `share`, at most 1, and growing with it.
        """
        entering: float = share**exponent
        return entering

    def with_mean(self, keep: float | int, n_layers: int, lowest: int) -> Policy:
        """The policy for a budget that counts the mean over decoder layers, where nothing else acts: itself, unless its
        options are to be solved for it.

        Args:
            keep: ratio or number of tokens.
            n_layers: decoder layers of the model.
            lowest: as in `decoder_layers`.
        """
        return self

    def decoder_follow_up(self) -> Policy | None:
        """A policy that acts in the decoder after this one; None: none. The two share the budget like a list of them.

        It is left out where tokens cannot be dropped in a model's decoder, where another policy of a list acts
        there, and where a list of budgets says what each policy keeps.
        """
        return None


@dataclasses.dataclass
class BatchedPolicy(Policy):
    """Base of vision-stage policies that choose for a whole batch with one call of an op.

    A subclass defines `select_many`, for example with `greedy_selections`.
    """

    def select(self, tokens: VisualTokens, n_keep: int) -> Selection:
        """`select_many` for one visual input."""
        return self.select_many([tokens], [n_keep])[0]


#: For each stage, the methods of which a policy overrides at least one to act there.
STAGE_METHODS = {
    Stage.PIXELS: ("select", "select_many"),
    Stage.ENCODER: ("encoder_select", "resized_shape"),
    Stage.VISION: ("select", "select_many"),
    Stage.DECODER: ("decoder_select", "decoder_select_many"),
}


def check_policy(policy: Policy) -> None:
    """Raise `ValueError` for a policy that cannot act: an unknown stage, or a stage without the method for it."""
    stages: object = policy.stages
    if not isinstance(stages, tuple):
        raise ValueError(
            f"policy {policy.label!r} has an option or attribute 'stages', which hides the property of that name; give "
            "it another name"
        )
    for stage in policy.stages:
        methods = STAGE_METHODS[stage]
        if not any(_is_overridden(policy, method) for method in methods):
            raise ValueError(f"policy {policy.label!r} acts at the {stage} stage and must define {methods[0]}()")


def _is_overridden(policy: Policy, method: str) -> bool:
    """Whether a policy's class has a method of its own, not only that of `Policy` or `BatchedPolicy`."""
    return getattr(type(policy), method) not in (getattr(Policy, method), getattr(BatchedPolicy, method))


def __getattr__(name: str) -> object:
    """Former home of what is in `registration.py` and `run.py` now."""
    now = {"select": "run.run_policy", "ScheduledPolicy": "scheduled.ScheduledPolicy"} | {
        each: f"registration.{each}" for each in ("UnknownPolicyError", "make_policy", "register", "registry")
    }
    if name not in now:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, new = now[name].partition(".")
    message = f"{__name__}.{name} is deprecated: import {new} from {__package__}.{module}"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(f".{module}", __package__), new)
