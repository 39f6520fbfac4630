"""Which architectures of vLLM are served pruned, and what is known of each without importing the engine."""

from __future__ import annotations

from dataclasses import dataclass

from ..policies.types import EncoderSpec

#: What can be read of a CLIP or SigLIP tower inside the engine; of a Qwen tower nothing.
CLIP = EncoderSpec(layer="feature", keys="mean", features=True)

#: A tower with a CLS token of which nothing is read.
UNHEARD = EncoderSpec(rows=None)


@dataclass(frozen=True)
class Architecture:
    """One architecture that is served.

    Attributes:
        path: of the class that prunes it, `module:class` as vLLM's registry has it.
        title: what documentation calls it.
        mrope: whether tokens keep their coordinates in the whole input; otherwise those that are kept are counted.
        videos: whether videos are taken beside pictures.
        readable: what can be read of its vision tower; None: nothing, and the tower has no CLS token.
        pixels: whether policies are served that choose by pixels.
    """

    path: str
    title: str
    mrope: bool = False
    videos: bool = False
    readable: EncoderSpec | None = None
    pixels: bool = False


def _qwen(path: str, title: str) -> Architecture:
    return Architecture(f"tokenprune.serve.{path}", title, mrope=True, videos=True, pixels=True)


#: By the name that a checkpoint's config has.
SERVED = {
    "LlavaForConditionalGeneration": Architecture("tokenprune.serve.llava:PrunedLlava", "LLaVA-1.5", readable=CLIP),
    "LlavaNextForConditionalGeneration": Architecture(
        "tokenprune.serve.llava_next:PrunedLlavaNext", "LLaVA-NeXT", readable=CLIP
    ),
    "LlavaOnevisionForConditionalGeneration": Architecture(
        "tokenprune.serve.llava_onevision:PrunedLlavaOnevision", "LLaVA-OneVision", videos=True, readable=CLIP
    ),
    "InternVLForConditionalGeneration": Architecture(
        "tokenprune.serve.internvl:PrunedInternVL", "InternVL", videos=True, readable=UNHEARD
    ),
    "Gemma3ForConditionalGeneration": Architecture("tokenprune.serve.gemma3:PrunedGemma3", "Gemma 3", readable=CLIP),
    "Gemma4ForConditionalGeneration": Architecture("tokenprune.serve.gemma4:PrunedGemma4", "Gemma 4", videos=True),
    "Gemma4UnifiedForConditionalGeneration": Architecture(
        "tokenprune.serve.gemma4_unified:PrunedGemma4Unified", "Gemma 4 (no encoder)", videos=True
    ),
    "Mistral3ForConditionalGeneration": Architecture("tokenprune.serve.mistral3:PrunedMistral3", "Mistral 3"),
    "Qwen2VLForConditionalGeneration": _qwen("qwen2_vl:PrunedQwen2VL", "Qwen2-VL"),
    "Qwen2_5_VLForConditionalGeneration": _qwen("qwen2_5_vl:PrunedQwen2_5_VL", "Qwen2.5-VL"),
    "Qwen3VLForConditionalGeneration": _qwen("qwen3_vl:PrunedQwen3VL", "Qwen3-VL"),
    "Qwen3VLMoeForConditionalGeneration": _qwen("qwen3_vl_moe:PrunedQwen3VLMoe", "Qwen3-VL (experts)"),
    "Qwen3_5ForConditionalGeneration": _qwen("qwen3_5:PrunedQwen3_5", "Qwen3.5"),
    "Qwen3_5MoeForConditionalGeneration": _qwen("qwen3_5:PrunedQwen3_5Moe", "Qwen3.5 (experts)"),
}
