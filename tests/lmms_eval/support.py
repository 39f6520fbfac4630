"""Small Qwen-VL checkpoints on disk, random weights, processor and chat template included; answers of a run."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from .. import builders
from ..families import CASES

WORDS = ("Is", "there", "a", "What", "colour", "is", "the", "?", "Where", "How", "many", "shapes", "are", "user", "yes")
SPECIAL = {
    "<|image_pad|>": builders.IMAGE,
    "<|video_pad|>": builders.VIDEO,
    "<|vision_start|>": builders.VISION_START,
    "<|vision_end|>": builders.VISION_END,
    "<pad>": 0,
    "<|im_start|>": 1,
    "<|im_end|>": builders.EOS,
    "<unk>": 3,
}
TEMPLATE = """\
{%- for message in messages -%}<|im_start|> {{ message['role'] }}
{%- if message['content'] is string %} {{ message['content'] }}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' %} <|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' %} <|vision_start|><|video_pad|><|vision_end|>
{%- else %} {{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif %} <|im_end|>
{%- endfor -%}{%- if add_generation_prompt %} <|im_start|> assistant{%- endif -%}"""
_LIMITS = {"shortest_edge": 8 * 8, "longest_edge": 32 * 32}


def _tokenizer():
    free = [i for i in range(builders.VOCAB) if i not in SPECIAL.values()]
    words = list(WORDS) + [f"word{i}" for i in range(len(free) - len(WORDS))]
    vocabulary = SPECIAL | dict(zip(words, free, strict=True))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=[t for t in SPECIAL if t.startswith("<|")],
        padding_side="left",
    )


def save(name: str, folder: Path) -> Path:
    """`qwen2_5_vl` or `qwen3_vl`."""
    model = builders.spread_weights(CASES[name].build()).float()
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    patches = {"patch_size": builders.PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": _LIMITS}
    images = Qwen2VLImageProcessor(**patches)
    processor, videos = {
        "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }[name]
    processor(
        image_processor=images,
        tokenizer=_tokenizer(),
        video_processor=videos(**patches | {"size": {"shortest_edge": 64, "longest_edge": 4096}}),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def answers(results):
    """Text by task and question."""
    return {(task, s["doc_id"]): s["filtered_resps"][0] for task, ss in results["samples"].items() for s in ss}
