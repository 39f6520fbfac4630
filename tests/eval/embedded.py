"""The embedded models by name: their modules, and the stock classes they load as."""

from transformers import (
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from tokenprune.eval.minivlm import llava, qwen

FAMILIES = {"llava": llava, "qwen": qwen}
CLASSES = {
    "llava": (LlavaForConditionalGeneration, LlavaProcessor),
    "qwen": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
}
