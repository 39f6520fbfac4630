"""Folders with a config and processor files as on the hub, of model types whose processor takes videos.

They are written by hand: without torchvision, no video processor can be made that would write them.
"""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

#: Image processor and settings by model type.
_QWEN = ("Qwen2VLImageProcessor", {"patch_size": 4, "merge_size": 2, "min_pixels": 64, "max_pixels": 1024})
_SIDE = {"height": 24, "width": 24}
_TILES = {"size": _SIDE, "crop_size": _SIDE, "image_grid_pinpoints": [[24, 24], [24, 48]]}
IMAGES = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "qwen3_5": _QWEN,
    "qwen3_5_moe": _QWEN,
    "internvl": ("GotOcr2ImageProcessor", {"size": _SIDE, "crop_to_patches": False}),
    "llava_onevision": ("LlavaOnevisionImageProcessor", _TILES),
    "llava_next_video": ("LlavaNextImageProcessor", _TILES | {"size": {"shortest_edge": 24}}),
    "video_llava": ("VideoLlavaImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": _SIDE}),
}
#: What `processor_config.json` has besides.
_SETTINGS = {
    "internvl": {"image_seq_length": 9},
    "llava_onevision": {"num_image_tokens": 9, "vision_feature_select_strategy": "full"},
    "llava_next_video": {"patch_size": 8, "vision_feature_select_strategy": "default"},
    "video_llava": {"patch_size": 8, "vision_feature_select_strategy": "default"},
}
_TOKENS = {
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
}
_VIDEOS = {
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "qwen3_vl_moe": "Qwen3VLVideoProcessor",
    "qwen3_5": "Qwen3VLVideoProcessor",
    "qwen3_5_moe": "Qwen3VLVideoProcessor",
    "internvl": "InternVLVideoProcessor",
    "llava_next_video": "LlavaNextVideoVideoProcessor",
}
_PLACEHOLDER = {"internvl": "<IMG_CONTEXT>"}
SPECIAL = ("<pad>", "<unk>", "</s>", "<image>", "<video>", "<img>", "</img>", "<IMG_CONTEXT>", "<|image_pad|>",
           "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")  # fmt: skip


def placeholder(model_type: str) -> str:
    """The token that stands for a piece of an image in a prompt."""
    return _PLACEHOLDER.get(model_type, "<|image_pad|>" if model_type.startswith("qwen") else "<image>")


def save(model_type: str, folder: Path) -> Path:
    """Write config, tokenizer, chat template and the settings of both processors."""
    folder.mkdir(parents=True, exist_ok=True)
    transformers.AutoConfig.for_model(model_type).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate((*SPECIAL, "what"))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(SPECIAL))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        **({"extra_special_tokens": _TOKENS[model_type]} if model_type in _TOKENS else {}),
    ).save_pretrained(folder)  # fmt: skip
    name, settings = IMAGES[model_type]
    video = _VIDEOS.get(model_type, name.replace("Image", "Video"))
    files = {
        "preprocessor_config.json": {"image_processor_type": name, **settings},
        "video_preprocessor_config.json": {"video_processor_type": video, **settings},
        "processor_config.json": _SETTINGS.get(model_type, {}),
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    image = placeholder(model_type)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}"
        + (f"<|vision_start|>{image}<|vision_end|>" if model_type.startswith("qwen") else f" {image} ")
        + "{% elif p['type'] == 'video' %}<video>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    return folder
