"""Model families, one file of facts each.

To add one: a file here with a `Family` that is registered, its import below, a builder in `tests/builders.py` and a row
in `tests/families.py`. From another package: `tokenprune.register_family`, or an entry point of the group
`tokenprune.families`.
"""

from . import (
    aya_vision,
    deepseek_vl,
    gemma3,
    idefics3,
    internvl,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    mistral3,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
    video_llava,
    vipllava,
)

__all__ = [
    "aya_vision",
    "deepseek_vl",
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "paligemma",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_vl",
    "video_llava",
    "vipllava",
]
