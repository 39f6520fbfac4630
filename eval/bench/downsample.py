"""The baseline without pruning: the full model on smaller images, with the visual tokens of the keep ratio."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from ...budget import Budget
from ..minivlm.drawing import PATCH
from ..setting import PruningSetting


def raster(height: int, width: int, budget: int) -> tuple[int, int]:
    """Rows and columns of the grid of about `budget` tokens whose aspect ratio is within a third of height / width.

    The grid with the nearest number of tokens wins; of two as near, the larger; then the nearest aspect ratio.
    """
    ratio = height / width
    shapes = [
        (h, w)
        for h, w in itertools.product(range(1, height + 1), range(1, width + 1))
        if 3 / 4 <= h / w / ratio <= 4 / 3
    ]
    return min(shapes, key=lambda s: (abs(s[0] * s[1] - budget), -s[0] * s[1], abs(np.log(s[0] / s[1] / ratio))))


@dataclass(frozen=True)
class Downsampled(PruningSetting):
    """Images are resized (bicubic, anti-aliased) to as many tokens as `keep` leaves, and the model is not pruned.

    A vision tower with learned position embeddings, such as CLIP's, interpolates them.
    """

    def __post_init__(self) -> None:
        Budget(1.0 if self.keep is None else self.keep)  # type: ignore[arg-type]  # it refuses text
        object.__setattr__(self, "policies", ())
        object.__setattr__(self, "labels", ())

    @property
    def name(self) -> str:
        return "downsample"

    @contextlib.contextmanager
    def context(self, model: nn.Module) -> Iterator[Any]:
        base: Any = model.model
        tower = getattr(base, "vision_tower", None)
        if tower is None:  # Qwen's tower computes its positions
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

    def prepare(
        self, processor: Any, images: Sequence[Sequence[np.ndarray]]
    ) -> tuple[Sequence[Sequence[np.ndarray]], dict[str, Any]]:
        # transformers 4 refuses arguments that a processor does not know; Qwen's does not crop.
        crop = {"do_center_crop": False} if hasattr(processor.image_processor, "do_center_crop") else {}
        return [[self._resized(image) for image in of_sample] for of_sample in images], {"do_resize": False} | crop

    def _resized(self, image: np.ndarray) -> np.ndarray:
        if image.ndim == 4:  # the frames of a video
            return np.stack([self._resized(frame) for frame in image])
        height, width = image.shape[0] // PATCH, image.shape[1] // PATCH
        keep = 1.0 if self.keep is None else self.keep
        n_tokens = Budget(keep).count(height * width)  # type: ignore[arg-type]  # it refuses text
        rows, columns = raster(height, width, n_tokens)
        size = (columns * PATCH, rows * PATCH)
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
