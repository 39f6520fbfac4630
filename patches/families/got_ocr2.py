"""GOT-OCR 2 and PP-Chart2Table: one square raster per picture, from a SAM tower and strided convolutions."""

from __future__ import annotations

from .base import Family
from .registry import register_family
from .square_tiles import square

FAMILY = register_family(
    Family(
        model_types=("got_ocr2", "pp_chart2table"),
        default_keep=0.5,
        shape=square,
        no_encoder_stage="attention of its SAM tower cannot be read, and convolutions blend neighbouring patches",
        no_pixel_stage="attention of its SAM tower cannot be read, and convolutions blend neighbouring patches",
    )
)
