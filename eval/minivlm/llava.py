"""The miniature LLaVA: a CLIP tower with CLS, 144 visual tokens per image, a small Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from .checkpoint import PIXEL_MEAN, PIXEL_STD, hub_tokenizer, rewrite, save_model
from .drawing import PATCH
from .scenes import GRID, SIZE
from .tokenizer import MAX_LENGTH, build_tokenizer, token_ids

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER", "ASSISTANT", ":")
IDS = token_ids(SPECIAL)
N_VISUAL = GRID * GRID
#: (height, width) of the images it is trained and tested on, in pixels.
SIZES = ((SIZE, SIZE),)
END = "</s>"

_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}USER:
{%- if message['content'] is string %} {{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' %} <image>{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %} {{ part['text'] }}{% endfor -%}
{%- endif -%}
{%- else %} ASSISTANT:
{%- if message['content'] is string %} {{ message['content'] }}
{%- else -%}
{%- for part in message['content'] %} {{ part['text'] }}{% endfor -%}
{%- endif -%}</s>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %} ASSISTANT:{% endif -%}"""


def build_model(
    width: int = 128, vision_layers: int = 5, text_layers: int = 4, side: int = SIZE, ids: dict[str, int] = IDS
) -> LlavaForConditionalGeneration:
    """A `LlavaForConditionalGeneration` with random weights.

    Args:
        width: of both parts.
        vision_layers: of the tower, of which the last feeds only its pooled output.
        text_layers: of the language model.
        side: of the images in pixels.
        ids: token ids by word.
    """
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=width * 3,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH,
        projection_dim=width,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=text_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(ids),
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids[END],
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(side // PATCH) ** 2,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def build_processor(side: int = SIZE, ids: dict[str, int] = IDS) -> LlavaProcessor:
    """Word-level tokenizer, CLIP image processing and the chat template, as one `LlavaProcessor`."""
    images = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        images,
        build_tokenizer(ids, "<image>", "<pad>", END, bos="<s>"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=_CHAT_TEMPLATE,
    )


def save(model: LlavaForConditionalGeneration, folder: Path, processor: LlavaProcessor | None = None) -> None:
    """Write model and processor, None: that of `build_processor`, to `folder`, ready for `from_pretrained`."""
    save_model(model, folder, {r"^vision_tower\.(?!vision_model\.)": "vision_tower.vision_model."})
    processor = processor or build_processor()
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # transformers 4 reads it from a file of its own
    rewrite(folder / "tokenizer_config.json", hub_tokenizer)


# ---------------------------------------------------------------- training


def framing(n_images: int, height: int, width: int) -> tuple[list[int], list[int]]:
    """Token ids before a question, visual placeholders included, and those after it.

    Args:
        n_images: images before the question.
        height: of an image in pixels; all have the same number of visual tokens.
        width: likewise.
    """
    return turns(IDS, N_VISUAL * n_images)


def turns(ids: dict[str, int], n_visual: int) -> tuple[list[int], list[int]]:
    """Token ids before a question about `n_visual` visual tokens, and those after it, by the ids of words."""
    before = [ids["<s>"], ids["USER"], ids[":"], *[ids["<image>"]] * n_visual]
    return before, [ids["ASSISTANT"], ids[":"]]


def tower(model: Any, images: Tensor, pooled: bool = True) -> tuple[Tensor, Tensor | None]:
    """Features for the projector, float (B, 144, D), and the pooled CLS output, (B, D), or None.

    Args:
        model: the LLaVA.
        images: uint8 (B, 96, 96, 3).
        pooled: whether to run the layer above the features and pool.
    """
    pixels = (images.permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD
    vision = model.model.vision_tower
    if pooled:
        out = vision(pixels, output_hidden_states=True)
        return out.hidden_states[-2][:, 1:], out.pooler_output
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden[:, 1:], None


def tower_parameters(model: Any) -> list[tuple[str, Any]]:
    """The vision tower's parameters by name."""
    return list(model.model.vision_tower.named_parameters())


def layers(model: Any) -> list[Any]:
    """The modules that `train --compile` compiles."""
    return [*model.model.vision_tower.encoder.layers, *model.model.language_model.layers]


def project(model: Any, features: Tensor) -> Tensor:
    """Visual tokens for the language model, (B, N, D)."""
    return model.model.multi_modal_projector(features)


def positions(model: Any, ids: Tensor, n_images: int, height: int, width: int) -> Tensor:
    """Position ids of a sequence `ids` (1, L), int64 (1, L)."""
    return torch.arange(ids.shape[1])[None]
