"""A miniature LLaVA for easy-VQA, a data set of others: pictures of 64 x 64 pixels, each with one coloured shape.

The data come with the package `easy-vqa` (V. Zhou, MIT license): 4,000 training and 1,000 test pictures with 38,575 and
9,673 questions.
"""

from __future__ import annotations

from pathlib import Path

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from .. import llava
from ..drawing import PATCH
from ..tokenizer import token_ids
from .words import WORDS

SIDE = 64  # of a picture, pixels
SIZES = ((SIDE, SIDE),)
IDS = token_ids(llava.SPECIAL, WORDS)
END = llava.END

#: What does not depend on the size of pictures and on the words.
tower, layers, project, positions = llava.tower, llava.layers, llava.project, llava.positions


def build_model() -> LlavaForConditionalGeneration:
    """A `LlavaForConditionalGeneration` with random weights."""
    return llava.build_model(width=96, vision_layers=4, text_layers=4, side=SIDE, ids=IDS)


def build_processor() -> LlavaProcessor:
    """Word-level tokenizer, CLIP image processing and the chat template, as one `LlavaProcessor`."""
    return llava.build_processor(SIDE, IDS)


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write model and processor to `folder`, ready for `from_pretrained`."""
    llava.save(model, folder, build_processor())


def framing(n_images: int, height: int, width: int) -> tuple[list[int], list[int]]:
    """Token ids before a question, visual placeholders included, and those after it.

    Args:
        n_images: images before the question.
        height: of an image in pixels.
        width: likewise.
    """
    return llava.turns(IDS, n_images * (height // PATCH) * (width // PATCH))
