"""Engines, questions and the answers that the Hugging Face path gives to them."""

from __future__ import annotations

import contextlib
from functools import cache

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

        limits = {"image": settings.pop("images", 2)}
        if str(where) != "llava":
            limits["video"] = settings.pop("videos", 0)
        self.llm = LLM(
            str(minivlm.WEIGHTS.get(where, where)), enforce_eager=True, limit_mm_per_prompt=limits,
            **dict(dtype="float32", max_model_len=512, max_num_seqs=8, block_size=BLOCK) | settings,
        )  # fmt: skip

    @property
    def core(self):
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def model(self):
        return self.llm.apply_model(lambda model: model)[0]

    @property
    def is_v2(self) -> bool:
        """Whether the engine runs the model with Model Runner V2."""
        return bool(self.core.vllm_config.use_v2_model_runner)

    @property
    def visual(self) -> set[int]:
        """Ids of placeholder tokens."""
        config = self.llm.llm_engine.vllm_config.model_config.hf_config
        names = ("image_token_index", "image_token_id", "video_token_index", "video_token_id")
        return {getattr(config, name) for name in names if hasattr(config, name)}

    def ask(self, requests, max_tokens=NEW_TOKENS):
        from vllm import SamplingParams

        return self.llm.generate(requests, SamplingParams(temperature=0, max_tokens=max_tokens), use_tqdm=False)

    def log_probs(self, requests) -> torch.Tensor:
        """(N, V) log-probabilities of the first new token."""
        from vllm import SamplingParams

        outputs = self.llm.generate(requests, SamplingParams(temperature=0, max_tokens=1, logprobs=-1), use_tqdm=False)
        rows = [sorted((token, each.logprob) for token, each in o.outputs[0].logprobs[0].items()) for o in outputs]
        return torch.tensor([[value for _, value in row] for row in rows])

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
