"""What a model family declares. The mechanism is shared by all families; a family states facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from ...policies.types import Grid, TileBorders
from ..cache_errors import PrunedCacheError
from ..packing import Packing

Kind = Literal["image", "video"]


@dataclass(frozen=True)
class VisualShape:
    """How the placeholders of one visual input are laid out.

    Attributes:
        grids: (T, H, W) of the rasters that make it up, in order, separators left out; None if unknown.
        separators: indices, within the input, of newline tokens. They carry no picture content, and no policy may
            choose them.
        tile_borders: for each grid, the rows and columns at which another tile of the encoder begins; None where there
            is one tile, or where it is not known.
    """

    grids: tuple[Grid, ...] | None = None
    separators: tuple[int, ...] = ()
    tile_borders: tuple[TileBorders, ...] | None = None


@dataclass(frozen=True)
class InputFacts:
    """What is known of one visual input, for `Family.shape`.

    Attributes:
        config: of the model.
        kind: `"image"` or `"video"`.
        length: how many placeholders it has.
        arguments: of the feature function that computed its features, without pixels; empty if not known.
        index: which of the inputs of that call it is.
    """

    config: Any
    kind: Kind
    length: int
    arguments: Mapping[str, Any]
    index: int


@dataclass(frozen=True)
class EncoderValues:
    """Values by token of the vision encoder, for `EncoderFacts.regroup`.

    Attributes:
        base: the base model.
        kind: `"image"` or `"video"`.
        values: (pieces, M, C), in the order in which the encoder has its tokens.
        lengths: placeholders of each visual input.
        arguments: of the feature function, without pixels.
    """

    base: Any
    kind: Kind
    values: Tensor
    lengths: list[int]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class PrunedSequence:
    """A sequence that loses columns, for `Family.extras`.

    Attributes:
        arguments: of the text model, for the whole sequence.
        keep: (B, L) bool, False at pruned columns and at padding.
        packing: which columns stay, and where.
    """

    arguments: Mapping[str, Any]
    keep: Tensor
    packing: Packing


@dataclass(frozen=True)
class MaskInputs:
    """A sequence that has lost columns, for `Family.build_masks`.

    Attributes:
        base: the base model.
        arguments: of the base model, for the whole sequence.
        embeds: (B, M, D), what the text model is fed.
        packing: which columns stay, and where.
        valid: (B, P + M) bool, False at padding, over what the cache holds as well.
        cache: the KV cache, or None.
    """

    base: Any
    arguments: Mapping[str, Any]
    embeds: Tensor
    packing: Packing
    valid: Tensor
    cache: Any

    def refuse_past(self) -> None:
        """Raise `PrunedCacheError` for a picture in a later turn, where masks do not reach back."""
        if self.valid.shape[1] > self.embeds.shape[1]:
            raise PrunedCacheError(
                "a picture in a later turn is not supported on sliding-window layers with pruning; start a fresh cache"
            )


def no_cls(base: Any) -> bool:
    """The default of `EncoderFacts.has_cls`."""
    return False


def one_patch(base: Any) -> int:
    """The default of `EncoderFacts.patches_per_token`."""
    return 1


@dataclass(frozen=True)
class EncoderFacts:
    """Facts about a family's vision encoder.

    Attributes:
        attention: `attention(base, layer)`, the attention module of a layer: `"feature"`, the one whose output the
            projector reads (or its last with full attention), or `"last"`.
        regroup: values by encoder token as one (N, C) tensor per visual input, in the order of its candidates.
        has_cls: whether token 0 is a CLS token, `has_cls(base)`.
        projector: attribute path of the pointwise projector, where tokens before and after it are one-to-one; None
            otherwise.
        merger: the module that gets patches, (M, C) or (tokens, C, s, s), and makes one token of several,
            `merger(base)`; None where there is none, or where its input is not to be read.
        packed: where the encoder takes all inputs as one sequence, the length of each in it,
            `packed(base, arguments)`; None where that is not known.
        layers: the layers of the vision encoder up to the one whose output the projector reads, `layers(base)`; None
            where tokens cannot leave between them. Needs `projector` and `embeddings`.
        embeddings: the module that makes tokens of pixels, `embeddings(base)`.
        packed_tower: the tower, if it takes the patches of all inputs as one sequence, with what it derives from their
            sizes as keyword arguments, `packed_tower(base)`; None where tokens cannot leave before its first layer.
        pixtral: of a Pixtral tower, `pixtral(base)`: the tower, the module that gets its output, and how many patches
            along a side become one token; None for other towers.
        positioned_tower: a tower as Gemma 4's, whose patches carry their place in the picture,
            `positioned_tower(base)`; None for other towers.
        patch_conv: the convolution that makes patches of pixels, `patch_conv(base)`, where squares of patches become
            one token behind the last of `raster_layers`; None elsewhere.
        raster_layers: the same as `layers` where tokens that left between them have to be back behind the last,
            `raster_layers(base)`; None: as `layers`.
        patches_per_token: how many patches become one token, `patches_per_token(base)`.
    """

    attention: Callable[[Any, Literal["feature", "last"]], nn.Module]
    regroup: Callable[[EncoderValues], list[Tensor]]
    has_cls: Callable[[Any], bool] = no_cls
    projector: str | None = None
    merger: Callable[[Any], nn.Module] | None = None
    packed: Callable[[Any, Mapping[str, Any]], list[int] | None] | None = None
    layers: Callable[[Any], Sequence[nn.Module]] | None = None
    embeddings: Callable[[Any], nn.Module] | None = None
    packed_tower: Callable[[Any], nn.Module] | None = None
    pixtral: Callable[[Any], tuple[nn.Module, nn.Module, int]] | None = None
    positioned_tower: Callable[[Any], nn.Module] | None = None
    patch_conv: Callable[[Any], nn.Module] | None = None
    raster_layers: Callable[[Any], Sequence[nn.Module]] | None = None
    patches_per_token: Callable[[Any], int] = one_patch


def unknown_shape(facts: InputFacts) -> VisualShape:
    """The default of `Family.shape`."""
    return VisualShape()


def as_returned(config: Any, lengths: list[int]) -> list[int]:
    """The default of `Family.lengths`."""
    return lengths


def named_token(config: Any, kind: Kind) -> int:
    """The default of `Family.placeholder`."""
    token: int = getattr(config, f"{kind}_token_id")
    return token


def no_extras(pruned: PrunedSequence) -> dict[str, Any]:
    """The default of `Family.extras`."""
    return {}


@dataclass(frozen=True)
class Family:
    """Facts about how a model type moves its visual tokens.

    Attributes:
        model_types: values of `config.model_type`.
        positions: `"1d"` RoPE or `"mrope"`, multi-axis RoPE whose positions have rows (t, h, w).
        default_keep: keep ratio where the caller gives none; conservative.
        text_model: attribute path of the text model inside the base model; several, where versions of transformers
            differ: the first that a model has.
        kinds: visual inputs that the family takes.
        placeholder: id of the token that stands for a kind of visual input, `placeholder(config, kind)`.
        shape: layout of one visual input.
        lengths: placeholders of each visual input, given the lengths of what the feature function returns,
            `lengths(config, returned)`: some return several inputs as one.
        lengths_by_grid: placeholders of each visual input by their sizes, `lengths_by_grid(config, kind, arguments)`,
            where a version of transformers returns the features of all inputs as one; None where sizes are not known.
        extras: new values of further arguments of the text model that are aligned with the sequence.
        layer_arguments: further arguments of decoder layers that have a value for each column, (B, L, ...).
        encoder: facts about the vision encoder, for policies that read it.
        masks: who builds 4-D attention masks: the `"text"` model, or the `"base"` model above it.
        build_masks: makes the attention masks of a sequence that has lost columns, where the base model builds them;
            None: they are cut out of those of the whole sequence.
        head_compares_lengths: whether the head takes `logits_to_keep` only of a sequence as long as its own input.
        first_position: position id of a sequence's first token.
        no_encoder_stage: why policies cannot act inside the vision encoder, where `encoder` names no layers, and cannot
            read it, where `encoder` is None.
        no_pixel_stage: why tokens cannot leave before the vision encoder, where `encoder` names none of `packed_tower`,
            `pixtral`, `positioned_tower`, `patch_conv`, and `layers` with a `projector`.
        no_decoder_stage: why tokens cannot leave between decoder layers; None where they can.
        first_decoder_cut: lowest decoder layer before which tokens can leave, of the base's config.
        usual_towers: values of `config.vision_config.model_type` that `shape`, `encoder` and the like are about;
            empty where a family has a vision tower of its own.
        readable_towers: values of it for other towers that `encoder` is true of, but between whose layers tokens cannot
            leave.
        other_towers: the facts with other vision towers, by that value.
    """

    model_types: tuple[str, ...]
    positions: Literal["1d", "mrope"] = "1d"
    default_keep: float = 0.25
    text_model: str | tuple[str, ...] = "language_model"
    kinds: tuple[Kind, ...] = ("image",)
    placeholder: Callable[[Any, Kind], int] = named_token
    shape: Callable[[InputFacts], VisualShape] = unknown_shape
    lengths: Callable[[Any, list[int]], list[int]] = as_returned
    lengths_by_grid: Callable[[Any, Kind, Mapping[str, Any]], list[int] | None] | None = None
    extras: Callable[[PrunedSequence], dict[str, Any]] = no_extras
    layer_arguments: tuple[str, ...] = ()
    encoder: EncoderFacts | None = None
    masks: Literal["text", "base"] = "text"
    build_masks: Callable[[MaskInputs], Any] | None = None
    head_compares_lengths: bool = False
    first_position: int = 0
    no_encoder_stage: str = "what it makes of a picture after its tower needs the whole raster"
    no_pixel_stage: str = "its vision tower takes whole pictures only"
    no_decoder_stage: str | None = None
    first_decoder_cut: Callable[[Any], int] = lambda config: 1
    usual_towers: tuple[str, ...] = ()
    readable_towers: tuple[str, ...] = ()
    other_towers: Mapping[str, Family] = field(default_factory=dict)

    def with_tower(self, config: Any) -> Family:
        """The facts for the vision tower that a model has.

        Those of the family, those of `other_towers`, or the family's without its encoder's layers, or, for an unknown
        tower, without its encoder.
        """
        tower = getattr(getattr(config, "vision_config", None), "model_type", None)
        if not self.usual_towers or tower in self.usual_towers:
            return self
        for other, family in self.other_towers.items():
            if tower == other:
                return family
        if tower in self.readable_towers and self.encoder is not None:
            encoder = replace(self.encoder, layers=None, embeddings=None)
            return replace(self, encoder=encoder, no_encoder_stage=f"its vision tower is of type {tower!r}")
        nothing = f"nothing is known about its vision tower of type {tower!r}"
        return replace(self, encoder=None, no_encoder_stage=nothing, no_pixel_stage=nothing)
