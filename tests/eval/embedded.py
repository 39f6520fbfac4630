"""The embedded models by name: their modules, and the stock classes they load as."""

from transformers import (
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from tokenprune.eval.minivlm import llava, qwen, qwen3

FAMILIES = {"llava": llava, "qwen": qwen, "qwen3": qwen3}
CLASSES = {
    "llava": (LlavaForConditionalGeneration, LlavaProcessor),
    "qwen": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
    "easy-vqa": (LlavaForConditionalGeneration, LlavaProcessor),
    "qwen3": (Qwen3VLForConditionalGeneration, Qwen3VLProcessor),
    "qwen-pages": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
}
