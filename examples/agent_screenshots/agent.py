"""An agent that gets a screenshot in every turn: what its KV cache holds, with and without `history`.

    python examples/agent_screenshots/agent.py

One talk on one KV cache. Each turn adds a screenshot and a question, and reads the answer. The talk is held three
times: with all tokens, with a quarter of each screenshot, and with a quarter of the newest one and a twentieth of the
earlier ones. Screenshots are drawn scenes, and the model is the LLaVA that comes with tokenprune, which was trained for
single questions; how the numbers of tokens and bytes grow does not depend on the model.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

import torch

from tokenprune import pruning
from tokenprune.eval import minivlm
from tokenprune.eval.minivlm.questions import ask
from tokenprune.eval.minivlm.scenes import SEEDS, draw_scene

SETTINGS: dict[str, dict[str, Any] | None] = {
    "all tokens": None,
    "keep=0.25": dict(policy="divprune", keep=0.25),
    "keep=0.25, history=0.05": dict(policy="divprune", keep=0.25, history=0.05),
}


def cached(cache: Any) -> tuple[int, int]:
    """Columns that a KV cache holds in its first layer, and bytes of all layers."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return tensors[0].shape[2], sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def next_turn(ids: torch.Tensor, processor: Any, seed: int) -> dict[str, Any]:
    """Inputs of the next turn: all tokens so far, and the pixels of the new screenshot alone."""
    scene = draw_scene(seed)
    (question,) = ask(scene, seed, n=1)
    text = processor.apply_chat_template(minivlm.prompt(question.text, 1), add_generation_prompt=True)
    new = processor(images=[scene.image], text=[text], return_tensors="pt")
    ids = torch.cat([ids, new["input_ids"]], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": new["pixel_values"]}


@torch.inference_mode()
def talk(model: Any, processor: Any, turns: int) -> list[tuple[int, int]]:
    """Columns and bytes of the KV cache after each turn of a talk."""
    cache, ids = None, torch.zeros(1, 0, dtype=torch.int64)
    held = []
    for turn in range(turns):
        inputs = next_turn(ids, processor, SEEDS["test"] + turn)
        out = model.generate(
            **inputs,
            **({} if cache is None else {"past_key_values": cache}),
            max_new_tokens=3,
            do_sample=False,
            return_dict_in_generate=True,
        )
        cache, ids = out.past_key_values, out.sequences
        held.append(cached(cache))
    return held


def main(arguments: list[str] | None = None) -> dict[str, list[tuple[int, int]]]:
    """Hold the talks and print a table; columns and bytes by setting and turn."""
    parser = argparse.ArgumentParser(description="KV cache of an agent with a screenshot in every turn.")
    parser.add_argument("--turns", type=int, default=8)
    turns = parser.parse_args(arguments).turns
    model, processor = minivlm.load("llava")
    held = {}
    for name, setting in SETTINGS.items():
        with contextlib.nullcontext() if setting is None else pruning(model, **setting):
            held[name] = talk(model, processor, turns)
    lines = [
        "| turn | " + " | ".join(f"{name}: tokens | KiB" for name in held) + " |",
        "|---|" + "---|---|" * len(held),
    ]
    for turn in range(turns):
        cells = [f"{columns} | {size / 1024:.0f}" for columns, size in (each[turn] for each in held.values())]
        lines.append(f"| {turn + 1} | " + " | ".join(cells) + " |")
    sys.stdout.write("\n".join(lines) + "\n")
    return held


if __name__ == "__main__":
    main()
