"""All that acts on the vision encoder or reads it: what it does in one call of a feature function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..policies.base import Policy
from .config import PruningConfig
from .encoder_activations import EncoderActivations
from .encoder_call import EncoderCall
from .encoder_capture import EncoderCapture, Recording
from .encoder_stage import EncoderStage
from .families.base import EncoderFacts, Family, Kind
from .packed_call import PackedCall
from .packed_restoring_stage import PackedRestoringStage
from .packed_stage import PackedStage
from .padded_patches import padded_patches
from .patch_entropy import patch_entropies
from .patch_stage import PatchStage
from .pixel_stage import PixelCall, PixelStage
from .pixtral_stage import PixtralStage
from .positioned_stage import PositionedStage
from .restoring_stage import RestoringCall, RestoringStage
from .tile_stage import TileStage

#: What lets tokens leave between layers of a vision encoder.
Inside = EncoderStage | PackedStage | RestoringStage
#: A call of a vision encoder, as these note it.
Cut = EncoderCall | PackedCall | RestoringCall


def encoder_stages(config: PruningConfig) -> tuple[PixelStage | None, Inside | None]:
    """What lets tokens leave before the first layer of a tower without a raster, and what does behind the embeddings.

    Raises:
        ValueError: where the model's vision encoder does not allow a stage, or not both.
    """
    base, family, encoder = config.base, config.family, config.family.encoder
    if config.pixels is None:
        return None, None if config.encoder is None else _inside(config)
    by_picture = _by_picture(encoder)
    if by_picture is None:
        before: type[PixelStage] = PixelStage
        if encoder is not None and encoder.pixtral is not None:
            before = PixtralStage
        elif encoder is not None and encoder.positioned_tower is not None:
            before = PositionedStage
        return before(base, family, *config.pixels), None if config.encoder is None else _inside(config)
    if config.encoder is not None:
        raise ValueError(
            f"policies {config.pixels.policy!r} and {config.encoder.policy!r} act before and inside the vision tower, "
            f"of which model type {base.config.model_type!r} takes one; leave one out"
        )
    return None, by_picture(base, family, *config.pixels)


def _by_picture(encoder: EncoderFacts | None) -> type[PatchStage] | None:
    """What acts before a tower that takes pictures or tiles of one size; None for other towers."""
    if encoder is None or encoder.packed_tower is not None:
        return None
    if encoder.patch_conv is not None:
        return TileStage
    return PatchStage if encoder.layers is not None and encoder.projector is not None else None


def _inside(config: PruningConfig) -> Inside:
    """What acts between layers of the encoder, as its policy and its tower ask for."""
    assert config.encoder is not None
    encoder, policy = config.family.encoder, config.encoder.policy
    packed = encoder is not None and encoder.packed_tower is not None
    stage: type[Inside] = PackedStage if packed else EncoderStage
    if type(policy).restoration is not Policy.restoration:
        stage = PackedRestoringStage if packed else RestoringStage
    return stage(config.base, config.family, *config.encoder)


@dataclass(frozen=True)
class EncoderParts:
    """The parts of one pruning that hang hooks on the vision encoder; None where there is none.

    Attributes:
        capture: what a policy reads of it.
        pixels: lets tokens leave before the first layer of a packed tower, Pixtral's or Gemma 4's.
        stage: lets tokens leave between embeddings and projector, or between layers of a packed tower.
    """

    capture: EncoderCapture | None = None
    pixels: PixelStage | None = None
    stage: Inside | None = None

    def __iter__(self) -> Iterator[EncoderCapture | PixelStage | Inside]:
        return iter([part for part in (self.capture, self.pixels, self.stage) if part is not None])

    @contextlib.contextmanager
    def running(self, kind: Kind, arguments: Mapping[str, Any]) -> Iterator[EncoderRun]:
        """Record and let tokens leave in a block that runs the feature function, in this thread alone.

        Args:
            kind: of the visual inputs.
            arguments: of the feature function.
        """
        with contextlib.ExitStack() as stack:
            yield EncoderRun(
                self,
                kind,
                None if self.capture is None else stack.enter_context(self.capture.recording(arguments)),
                None if self.pixels is None else stack.enter_context(self.pixels.cutting(kind, arguments)),
                None if self.stage is None else stack.enter_context(self._cutting(self.stage)),
            )

    @staticmethod
    def _cutting(stage: Inside) -> contextlib.AbstractContextManager[Cut]:
        cutting: contextlib.AbstractContextManager[Cut] = stage.cutting()
        return cutting


@dataclass
class EncoderRun:
    """What the parts noted in one call of a feature function."""

    parts: EncoderParts
    kind: Kind
    recording: Recording | None
    pixels: PixelCall | None
    cut: Cut | None

    def whole_raster(self, values: Tensor) -> Tensor:
        """Values of the tokens that are left as values of all, with zeros elsewhere."""
        if self.cut is not None:  # from the inside out
            values = self.cut.whole_raster(values)
        return values if self.pixels is None else self.pixels.whole_raster(values)

    def activations(
        self, base: Any, family: Family, lengths: list[int], arguments: Mapping[str, Any], named: Mapping[str, Any]
    ) -> EncoderActivations | None:
        """By visual input; None where nothing was read and nothing could leave.

        Args:
            base: the base model.
            family: its facts.
            lengths: placeholders of each input.
            arguments: of the feature function, without pixels.
            named: with them.

        Raises:
            ValueError: for an answer of the policy inside the encoder that is not as it should be.
        """
        parts, found = self.parts, None
        if parts.capture is not None and self.recording is not None:
            found = parts.capture.by_input(self.recording, self.kind, lengths, arguments, self.whole_raster)
            if parts.capture.looks_for_padding:
                found.padding = padded_patches(base, family, self.kind, lengths, named)
            if parts.capture.spec.entropy:
                found.entropy = patch_entropies(base, self.kind, lengths, named)
        if parts.pixels is not None and self.pixels is not None:
            found = found or EncoderActivations()
            parts.pixels.mark_kept(self.pixels, found, lengths)
        if parts.stage is not None and self.cut is not None:
            given = found or EncoderActivations(), self.kind, lengths, arguments
            found = parts.stage.mark_kept(self.cut, *given)  # type: ignore[arg-type]
        return found
