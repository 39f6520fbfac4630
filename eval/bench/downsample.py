"""The baseline that needs no policy: the full model on smaller pictures, with as many visual tokens."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...budget import Budget
from ..asking import Sample, Setting, encode
from ..minivlm.scenes import PATCH


def raster(height: int, width: int, budget: int) -> tuple[int, int]:
    """Rows and columns of a raster with about `budget` tokens, shaped like (height, width) within a third.

    The nearest count wins, the larger one of two as near, then the shape that is nearest.
    """
    ratio = height / width
    shapes = [
        (h, w)
        for h, w in itertools.product(range(1, height + 1), range(1, width + 1))
        if 3 / 4 <= h / w / ratio <= 4 / 3
    ]
    return min(shapes, key=lambda s: (abs(s[0] * s[1] - budget), -s[0] * s[1], abs(np.log(s[0] / s[1] / ratio))))


@dataclass(frozen=True)
class Downsampled(Setting):
    """Pictures are resized (bicubic, anti-aliased) to as many tokens as `keep` leaves.

    A tower with learned positions, as CLIP's, has them interpolated.
    """

    @property
    def name(self) -> str:
        return "downsample"

    @contextlib.contextmanager
    def context(self, model: Any) -> Iterator[Any]:
        tower = getattr(model.model, "vision_tower", None)
        if tower is None:  # positions are computed
            yield model
            return
        embeddings = getattr(tower, "vision_model", tower).embeddings  # transformers 4 nests it
        hook = embeddings.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"interpolate_pos_encoding": True}), with_kwargs=True
        )
        try:
            yield model
        finally:
            hook.remove()

    def encode(self, processor: Any, samples: Sequence[Sample]) -> Any:
        images = [[self._resized(scene.image) for scene in s.scenes] for s in samples]
        # transformers 4 refuses an argument that a processor does not know, and Qwen's knows no cropping.
        crop = {"do_center_crop": False} if hasattr(processor.image_processor, "do_center_crop") else {}
        return encode(processor, samples, images, do_resize=False, **crop)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[0] // PATCH, image.shape[1] // PATCH
        rows, columns = raster(height, width, Budget(self.keep).count(height * width))
        size = (columns * PATCH, rows * PATCH)
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
