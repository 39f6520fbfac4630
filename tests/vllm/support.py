"""Engines, questions and the answers that the Hugging Face path gives to them."""

from __future__ import annotations

import contextlib
import json
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from tokenprune import pruning
from tokenprune.eval import minivlm
from tokenprune.eval.answers import Sample, encode, held_out
from tokenprune.eval.minivlm import prompt
from tokenprune.serve.settings import KEEP, OPTIONS, POLICY

HERE = (POLICY, KEEP, OPTIONS)
#: The engine counts 1-D positions by the tokens that are there.
POSITIONS = {"llava": "compact", "qwen": "original"}
NEW_TOKENS = 8
BLOCK = 32


@cache
def loaded(name):
    return minivlm.load(name)


def pairs(n: int) -> list[Sample]:
    """Questions about the second of two pictures, so to speak: one-picture questions behind another picture."""
    samples = held_out(4 * n)
    return [Sample((samples[-1 - i].scene, samples[i].scene), samples[i].question) for i in range(n)]


def answers(name, samples, policy=None, keep=1.0, **options) -> list[list[int]]:
    """Greedy tokens of the Hugging Face path, row by row; as in the engine, nothing leaves in the decoder."""
    model, processor = loaded(name)
    context = contextlib.nullcontext()
    if policy:
        context = pruning(model, [policy], [keep], positions=POSITIONS[name], **options)
    found = []
    with context, torch.inference_mode():
        for sample in samples:
            inputs = encode(processor, [sample], [[scene.image for scene in sample.scenes]])
            out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            found.append(out[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def requests(name, samples, **processing) -> list[dict]:
    """The same questions for the engine."""
    processor = loaded(name)[1]
    return [
        {
            "prompt": processor.apply_chat_template(
                prompt(sample.question.text, len(sample.scenes)), add_generation_prompt=True
            ),
            "multi_modal_data": {"image": [Image.fromarray(scene.image) for scene in sample.scenes]},
            **({"mm_processor_kwargs": processing} if processing else {}),
        }
        for sample in samples
    ]


class Engine:
    """An offline engine in this process."""

    def __init__(self, where, **settings):
        from vllm import LLM

        images = settings.pop("images", 2)
        limits = {"image": images} if "llava" in str(where) else {"image": images, "video": settings.pop("videos", 0)}
        self.llm = LLM(
            str(minivlm.WEIGHTS.get(where, where)), enforce_eager=True, dtype="float32", max_model_len=512,
            max_num_seqs=8, limit_mm_per_prompt=limits, block_size=BLOCK, **settings,
        )  # fmt: skip

    @property
    def core(self):
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def model(self):
        return self.llm.apply_model(lambda model: model)[0]

    @property
    def visual(self) -> set[int]:
        """Ids of placeholder tokens."""
        config = self.llm.llm_engine.vllm_config.model_config.hf_config
        names = ("image_token_index", "image_token_id", "video_token_id")
        return {getattr(config, name) for name in names if hasattr(config, name)}

    def ask(self, requests, max_tokens=NEW_TOKENS):
        from vllm import SamplingParams

        return self.llm.generate(requests, SamplingParams(temperature=0, max_tokens=max_tokens), use_tqdm=False)

    def blocks_of(self, request) -> int:
        """KV blocks that a request holds once its prompt has been computed."""
        from vllm import SamplingParams

        engine, pool = self.llm.llm_engine, self.core.scheduler.kv_cache_manager.block_pool
        before = pool.get_num_free_blocks()
        engine.add_request("blocks", request, SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True))
        engine.step()
        used = before - pool.get_num_free_blocks()
        while engine.has_unfinished_requests():
            engine.step()
        return used

    def stop(self):
        from vllm.distributed import cleanup_dist_env_and_memory

        self.core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()


def tokens(outputs) -> list[list[int]]:
    return [list(out.outputs[0].token_ids) for out in outputs]


def qwen3_vl(folder: Path) -> Path:
    """A small Qwen3-VL with random weights and the embedded Qwen2.5-VL's tokenizer."""
    import shutil

    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    source = minivlm.WEIGHTS["qwen"]
    ids = {key: value for key, value in json.loads((source / "config.json").read_text()).items() if key.endswith("_id")}
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "rope_theta": 10000.0, "mrope_interleaved": True}
    text = dict(
        vocab_size=91, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=1024, rope_parameters=rope, eos_token_id=1,
    )  # fmt: skip
    vision = dict(
        depth=3, hidden_size=64, intermediate_size=96, num_heads=2, patch_size=4, temporal_patch_size=2,
        spatial_merge_size=2, out_hidden_size=64, num_position_embeddings=144, deepstack_visual_indexes=[0, 1],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids))
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.5 if "lm_head" in name else 0.15)
    model.save_pretrained(folder)
    for path in source.glob("*"):
        if path.name.startswith(("tokenizer", "chat", "preprocessor", "video_pre")):
            shutil.copy(path, folder)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(
            path.read_text().replace("Qwen2_5_VLProcessor", "Qwen3VLProcessor").replace("Qwen2VLVideo", "Qwen3VLVideo")
        )
    Qwen3VLProcessor.from_pretrained(folder)
    return folder
