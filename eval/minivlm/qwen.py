"""The miniature Qwen2.5-VL: images of any size, window attention, 2 x 2 merger, mRoPE.

A visual token covers 8 x 8 pixels (four patches of 4 x 4), as in the LLaVA.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.utils.import_utils import is_torchvision_available

from .checkpoint import MOST_WORDS, PIXEL_MEAN, PIXEL_STD, hub_tokenizer, rewrite, save_model
from .drawing import PATCH
from .qwen_tower import MERGE, TEMPORAL, VISION_PATCH, WINDOW, grids
from .qwen_tower import tower as tower
from .scenes import SIZE
from .tokenizer import MAX_LENGTH, build_tokenizer, token_ids

SPECIAL = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
IDS = token_ids(("<|endoftext|>", "<|im_end|>", "<unk>", "<|image_pad|>", *SPECIAL, "user", "assistant"))
#: (height, width) of the images it is trained and tested on, in pixels; others work too.
SIZES = ((SIZE, SIZE), (SIZE, SIZE + 32), (SIZE + 32, SIZE))
END = "<|im_end|>"

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
IMAGES: dict[str, Any] = {
    "patch_size": VISION_PATCH,
    "merge_size": MERGE,
    "temporal_patch_size": TEMPORAL,
    "image_mean": [PIXEL_MEAN] * 3,
    "image_std": [PIXEL_STD] * 3,
    "min_pixels": (SIZE // 2) ** 2,
    "max_pixels": (SIZE * 2) ** 2,
}

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


#: Of the config of the language model.
VOCABULARY: dict[str, Any] = dict(
    vocab_size=len(IDS),
    max_position_embeddings=MAX_LENGTH,
    bos_token_id=None,
    eos_token_id=IDS[END],
    pad_token_id=IDS["<|endoftext|>"],
)
#: Of the config of the whole model.
PLACEHOLDERS: dict[str, Any] = dict(
    image_token_id=IDS["<|image_pad|>"],
    video_token_id=IDS["<|video_pad|>"],
    vision_start_token_id=IDS["<|vision_start|>"],
    vision_end_token_id=IDS["<|vision_end|>"],
    tie_word_embeddings=False,
)


def build_model(width: int = 128, vision_width: int = 96, text_layers: int = 4) -> Qwen2_5_VLForConditionalGeneration:
    """A `Qwen2_5_VLForConditionalGeneration` with random weights."""
    vision = dict(
        depth=4,
        hidden_size=vision_width,
        intermediate_size=vision_width * 2,
        num_heads=4,
        patch_size=VISION_PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=TEMPORAL,
        window_size=WINDOW * PATCH,
        fullatt_block_indexes=[1, 3],
        out_hidden_size=width,
        in_channels=3,
    )
    text = dict(
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=text_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters=dict(_ROPE),
        tie_word_embeddings=False,
        **VOCABULARY,
    )
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, text_config=text, **PLACEHOLDERS))


class WithoutVideos:
    """Base of processors that take no videos, and so work without torchvision.

    Attributes:
        tokens: special tokens by the name that the stock processor gives them.
    """

    attributes: ClassVar = ["image_processor", "tokenizer"]  # transformers 4
    tokens: ClassVar[dict[str, str]] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any
    ):
        for name, token in self.tokens.items():
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", IDS[token])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)  # type: ignore[arg-type]


class PictureProcessor(WithoutVideos, Qwen2_5_VLProcessor):
    """A Qwen2.5-VL processor without videos, which works without torchvision."""


def build_images() -> Any:
    """Qwen2-VL image processing, without torchvision."""
    images: Any
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil as images
    except ImportError:  # transformers 4
        from transformers import Qwen2VLImageProcessor as images
    return images(**IMAGES)


def build_processor(cls: type[WithoutVideos] = PictureProcessor, ids: dict[str, int] = IDS) -> Any:
    """Word-level tokenizer of `ids`, Qwen2-VL image processing and the chat template, as a processor of that class."""
    return cls(
        build_images(),
        build_tokenizer(ids, "<|image_pad|>", "<|endoftext|>", END, special=SPECIAL),
        chat_template=CHAT_TEMPLATE,
    )


def load_processor(folder: Path) -> Qwen2_5_VLProcessor:
    """The processor of a folder that `save` wrote; it takes videos if torchvision is installed."""
    return (Qwen2_5_VLProcessor if is_torchvision_available() else PictureProcessor).from_pretrained(folder)


def save(
    model: Qwen2_5_VLForConditionalGeneration, folder: Path, processor: Any = None, most: int = MOST_WORDS
) -> None:
    """Write model and processor to `folder`, ready for `from_pretrained`.

    Args:
        model: the model.
        folder: to write to.
        processor: its processor; None: that of `build_processor`.
        most: words of an answer.
    """
    renamed = {r"^model\.visual\.": "visual.", r"^model\.language_model\.": "model."}
    save_model(model, folder, renamed, most)
    save_processor(processor or build_processor(), folder, "Qwen2_5_VL", "Qwen2VL")
    rewrite(folder / "config.json", _hub_rope)


def save_processor(processor: Any, folder: Path, name: str, videos: str | None = None) -> None:
    """Write a processor so that `AutoProcessor` makes one of the stock class.

    Args:
        processor: the processor.
        folder: to write to.
        name: of the stock class, before `Processor`.
        videos: of the stock class of its videos, before `VideoProcessor`; None: `name`.
    """
    processor.save_pretrained(folder)
    (folder / "processor_config.json").unlink(missing_ok=True)  # it names `PictureProcessor`
    stock = {"processor_class": f"{name}Processor"}
    settings = {
        "preprocessor": {**IMAGES, "image_processor_type": "Qwen2VLImageProcessor", **stock},
        "video_preprocessor": {**IMAGES, "video_processor_type": f"{videos or name}VideoProcessor", **stock},
    }
    for part, content in settings.items():
        (folder / f"{part}_config.json").write_text(json.dumps(content, indent=1) + "\n")
    rewrite(folder / "tokenizer_config.json", hub_tokenizer)
    rewrite(folder / "tokenizer_config.json", lambda settings: settings.update(stock))


def _hub_rope(settings: dict[str, Any]) -> None:
    """Add the rotary settings under the names that transformers 4 reads."""
    text = settings["text_config"]
    text["rope_theta"] = _ROPE["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "rope_type": "default", "mrope_section": _ROPE["mrope_section"]}


# ---------------------------------------------------------------- training


def framing(n_images: int, height: int, width: int) -> tuple[list[int], list[int]]:
    """Token ids before a question, visual placeholders included, and those after it.

    Args:
        n_images: images before the question.
        height: of an image in pixels.
        width: likewise.
    """
    n_visual = height // PATCH * (width // PATCH)
    image = [IDS["<|vision_start|>"], *[IDS["<|image_pad|>"]] * n_visual, IDS["<|vision_end|>"]]
    before = [IDS["<|im_start|>"], IDS["user"], *image * n_images]
    return before, [IDS[END], IDS["<|im_start|>"], IDS["assistant"]]


def layers(model: Any) -> list[Any]:
    """The modules that `train --compile` compiles."""
    vision = [part for block in model.model.visual.blocks for part in (block.norm1, block.norm2, block.mlp)]
    return [*vision, *model.model.language_model.layers]


def tower_parameters(model: Any) -> list[tuple[str, Any]]:
    """The vision tower's parameters by name, its merger's included."""
    return list(model.model.visual.named_parameters())


def project(model: Any, features: Tensor) -> Tensor:
    """Visual tokens for the language model, (B, N, D): `features` as they are, for the tower has the merger."""
    return features


def positions(model: Any, ids: Tensor, n_images: int, height: int, width: int) -> Tensor:
    """Position ids of a sequence `ids` (1, L) with `n_images` images of one size in pixels, int64 (3, 1, L)."""
    return model.model.get_rope_index(
        ids,
        image_grid_thw=grids(n_images, height, width),
        mm_token_type_ids=(ids == IDS["<|image_pad|>"]).int(),
    )[0]
