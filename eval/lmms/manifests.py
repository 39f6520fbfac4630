"""Our models for lmms-eval's registry, which calls `manifests` while the harness is being imported."""

from __future__ import annotations

from typing import Any

#: Built-in wrappers of the harness that `builtin.py` prunes: module and class by our name.
BUILTINS = {
    "tokenprune_llava_hf": ("lmms_eval.models.chat.llava_hf", "LlavaHf"),
    "tokenprune_qwen2_5_vl": ("lmms_eval.models.chat.qwen2_5_vl", "Qwen2_5_VL"),
    "tokenprune_qwen3_vl": ("lmms_eval.models.chat.qwen3_vl", "Qwen3_VL"),
}


def manifests() -> list[Any]:
    """The `ModelManifest` of each model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    own = ModelManifest(model_id="tokenprune_hf", chat_class_path="tokenprune.eval.lmms.model.PrunedModel")
    return [own] + [
        ModelManifest(model_id=name, chat_class_path=f"tokenprune.eval.lmms.builtin.{name}") for name in BUILTINS
    ]
