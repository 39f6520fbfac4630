"""The miniature LLaVA: stock transformers classes built small, with processor and chat template."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from .questions import TOKEN_ID
from .scenes import GRID, PATCH, SIZE

PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
N_VISUAL = GRID * GRID

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


def build_model(width: int = 128, vision_layers: int = 4, text_layers: int = 3) -> LlavaForConditionalGeneration:
    """A `LlavaForConditionalGeneration` with a CLIP tower (CLS, 144 patches) and a small Llama."""
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=width * 3,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=SIZE,
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
        vocab_size=len(TOKEN_ID),
        max_position_embeddings=1024,
        pad_token_id=TOKEN_ID["<pad>"],
        bos_token_id=TOKEN_ID["<s>"],
        eos_token_id=TOKEN_ID["</s>"],
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=TOKEN_ID["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=N_VISUAL,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def build_processor() -> LlavaProcessor:
    """Word-level tokenizer, CLIP image processing and the chat template, as one `LlavaProcessor`."""
    tokenizer = Tokenizer(models.WordLevel(dict(TOKEN_ID), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", TOKEN_ID["<s>"])])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=1024,
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        images,
        fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=_CHAT_TEMPLATE,
    )


def save(model: LlavaForConditionalGeneration, folder: str | Path) -> None:
    """Write model (float16 safetensors) and processor to `folder`, ready for `from_pretrained`."""
    model.generation_config = GenerationConfig(
        bos_token_id=TOKEN_ID["<s>"],
        eos_token_id=TOKEN_ID["</s>"],
        pad_token_id=TOKEN_ID["<pad>"],
        max_new_tokens=8,
        do_sample=False,
    )
    folder = Path(folder)
    model.half().save_pretrained(folder)
    processor = build_processor()
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # transformers 4 looks for it beside the processor
    _use_hub_names(folder)


def _use_hub_names(folder: Path) -> None:
    """Name weights and tokenizer class as hub checkpoints do, which every supported transformers reads."""
    weights = folder / "model.safetensors"
    tensors = {
        re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name): tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens", ["<image>"])
    config.write_text(json.dumps(settings, indent=1) + "\n")


def prompt(question: str) -> list[dict[str, Any]]:
    """The chat messages of one question about one picture, for `apply_chat_template`."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
