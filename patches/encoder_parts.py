"""All that acts on the vision encoder or reads it: what it does in one call of a feature function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .config import PruningConfig
from .encoder_activations import EncoderActivations
from .encoder_call import EncoderCall
from .encoder_capture import EncoderCapture, Recording
from .encoder_stage import EncoderStage
from .families.acting import restores
from .families.base import EncoderFacts, Family, Kind
from .packed_call import PackedCall
from .packed_restoring_stage import PackedRestoringStage
from .packed_stage import PackedStage
from .padded_patches import padded_patches
from .patch_entropy import patch_entropies
from .patch_stage import PatchStage
from .pixel_stage import PixelCall, PixelStage
from .pixtral_encoder_stage import PixtralEncoderStage, PixtralLayersCall
from .pixtral_stage import PixtralStage
from .positioned_stage import PositionedStage
from .restoring_stage import RestoringCall, RestoringStage
from .tile_stage import TileStage

#: What lets tokens leave before the first layer of a vision encoder.
Before = PixelStage | PatchStage
#: What lets tokens leave between its layers.
Inside = EncoderStage | PackedStage | RestoringStage
#: A call of a vision encoder, as these note it.
Cut = EncoderCall | PackedCall | PixtralLayersCall | RestoringCall


def encoder_stages(config: PruningConfig) -> tuple[Before | None, Inside | None]:
    """What lets tokens leave before the first layer of a vision encoder, and what does between its layers.

    Raises:
        ValueError: where the model's vision encoder does not allow a stage, or not both.
    """
    pixels, inside = config.pixels, config.encoder
    before = None if pixels is None else _before(config.family.encoder)(config.base, config.family, *pixels)
    stage = None if inside is None else _inside(config)
    if pixels is not None and isinstance(stage, EncoderStage) and stage.resizes:
        assert inside is not None
        raise ValueError(
            f"policy {inside.policy!r} resizes pictures, and policy {pixels.policy.label!r} chooses among the patches "
            "of pictures as they are; leave one out"
        )
    return before, stage


def _before(encoder: EncoderFacts | None) -> type[Before]:
    """What acts before a vision encoder, or says why nothing can."""
    if encoder is None or encoder.packed_tower is not None:
        return PixelStage
    if encoder.pixtral is not None:
        return PixtralStage
    if encoder.positioned_tower is not None:
        return PositionedStage
    if encoder.patch_conv is not None:
        return TileStage
    return PatchStage if encoder.layers is not None and encoder.projector is not None else PixelStage


def _inside(config: PruningConfig) -> Inside:
    """What acts between layers of the encoder, as its policy and its tower ask for."""
    assert config.encoder is not None
    encoder, policy = config.family.encoder, config.encoder.policy
    packed = encoder is not None and encoder.packed_tower is not None
    stage: type[Inside] = PackedStage if packed else EncoderStage
    if restores(policy):
        stage = PackedRestoringStage if packed else RestoringStage
    elif encoder is not None and encoder.pixtral is not None:
        stage = PixtralEncoderStage
    return stage(config.base, config.family, *config.encoder)


@dataclass(frozen=True)
class EncoderParts:
    """The parts of one pruning that hang hooks on the vision encoder; None where there is none.

    Attributes:
        capture: what a policy reads of it.
        pixels: lets tokens leave before the first layer.
        stage: lets tokens leave between layers.
    """

    capture: EncoderCapture | None = None
    pixels: Before | None = None
    stage: Inside | None = None

    def __iter__(self) -> Iterator[EncoderCapture | Before | Inside]:
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
                None if self.pixels is None else stack.enter_context(self._before(self.pixels, kind, arguments)),
                None if self.stage is None else stack.enter_context(self._cutting(self.stage)),
            )

    @staticmethod
    def _before(
        stage: Before, kind: Kind, arguments: Mapping[str, Any]
    ) -> contextlib.AbstractContextManager[PixelCall | EncoderCall]:
        return stage.cutting(kind, arguments) if isinstance(stage, PixelStage) else stage.cutting()

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
    pixels: PixelCall | EncoderCall | None
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
            if isinstance(parts.pixels, PixelStage):
                assert isinstance(self.pixels, PixelCall)
                parts.pixels.mark_kept(self.pixels, found, lengths)
            else:
                assert isinstance(self.pixels, EncoderCall)
                parts.pixels.mark_kept(self.pixels, found, self.kind, lengths, arguments)
        if parts.stage is not None and self.cut is not None:
            given = found or EncoderActivations(), self.kind, lengths, arguments
            found = parts.stage.mark_kept(self.cut, *given)  # type: ignore[arg-type]
        return found
