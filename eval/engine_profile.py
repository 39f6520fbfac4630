"""`tokenprune profile --engine vllm`: throughput and time to first token under load, pruned and full in turns.

One engine serves both: a request's budget decides, so that scheduler, kernels and machine are the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..serve.settings import KEEP, POLICY

#: Rounds before those that count.
WARM_UP = 1
PROMPT = "what colour is the circle ?"


@dataclass(frozen=True)
class Load:
    """What clients ask for.

    Attributes:
        requests: of a round, each with pictures that no cache has seen.
        images: in each.
        side: height and width of a picture, pixels.
        new_tokens: generated for each.
    """

    requests: int = 32
    images: int = 1
    side: int = 96
    new_tokens: int = 8


@dataclass
class _Times:
    seconds: list[float] = field(default_factory=list)  # of each round
    first: list[float] = field(default_factory=list)  # to the first token, of each round the median
    prompt: int = 0  # tokens of a prompt, as the engine counts them


def folder(config: str, layers: int | None, where: Path) -> tuple[Path, int]:
    """A checkpoint folder without weights for a published shape, and the side of its pictures.

    The embedded models' tokenizers stand in for theirs: what a word is costs nothing.

    Raises:
        ValueError: for a shape that the engine cannot have here.
    """
    from . import minivlm, shapes

    names = {"llava-1.5-7b": "llava", "qwen2.5-vl-7b": "qwen"}
    if config not in names:
        raise ValueError(f"--config {config} has no engine variant; accepted with --engine vllm: {', '.join(names)}")
    source = minivlm.WEIGHTS[names[config]]
    shape = shapes.SHAPES[config]
    settings = shape.build(layers or shape.layers).to_dict()
    ours = json.loads((source / "config.json").read_text())
    settings |= {
        key: value for key, value in ours.items() if key.endswith(("token_id", "token_index", "architectures"))
    }
    text = settings["text_config"]
    text |= {key: value for key, value in ours["text_config"].items() if key.endswith("token_id")}
    (where / "config.json").write_text(json.dumps(settings))
    side = 336 if names[config] == "llava" else 448
    for path in source.iterdir():
        if path.name.startswith(("tokenizer", "chat")):
            (where / path.name).write_text(path.read_text())
        elif "processor" in path.name:
            (where / path.name).write_text(json.dumps(_resized(json.loads(path.read_text()), side)))
    return where, side


def _resized(settings: dict[str, Any], side: int) -> dict[str, Any]:
    """A processor's settings for pictures of `side` and patches of 14 pixels."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key in ("crop_size", "size"):
            found[key] = dict.fromkeys(value, side)
        elif key == "patch_size":
            found[key] = 14
        elif key in ("min_pixels", "max_pixels"):
            found[key] = side * side
        else:
            found[key] = _resized(value, side) if isinstance(value, dict) else value
    return found


class _Server:
    """An engine in the background, and clients that ask it."""

    def __init__(self, model: str, dtype: str, load: Load, concurrency: int, dummy: bool):
        import torch
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from . import minivlm

        self.load = load
        per_picture = 64 + 2 * (load.side // 4) ** 2  # more than any model here makes of it
        self.engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=minivlm.place(model), dtype=dtype, load_format="dummy" if dummy else "auto",  # type: ignore[arg-type]
                enforce_eager=not torch.cuda.is_available(), max_num_seqs=max(concurrency, 8),
                max_model_len=min(self._context(model), 256 + load.images * per_picture + load.new_tokens),
                limit_mm_per_prompt={"image": load.images}, enable_prefix_caching=False, mm_processor_cache_gb=0,
                disable_log_stats=True,
            )
        )  # fmt: skip
        asked: Any = minivlm.prompt(PROMPT, load.images)
        self.prompt = minivlm.load_processor(model).apply_chat_template(asked, add_generation_prompt=True)
        self._drawn = 0

    @staticmethod
    def _context(model: str) -> int:
        from transformers import AutoConfig

        from . import minivlm

        return AutoConfig.from_pretrained(minivlm.place(model)).get_text_config().max_position_embeddings

    def _pictures(self) -> list[Image.Image]:
        self._drawn += 1
        rng = np.random.default_rng(self._drawn)
        shape = (self.load.side, self.load.side, 3)
        return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(self.load.images)]

    async def round(self, keep: float | int, concurrency: int, requests: int, times: _Times) -> None:
        """So many requests, `concurrency` at a time: a client asks again as soon as it has its answer."""
        from vllm import SamplingParams

        waiting = [self._pictures() for _ in range(max(requests, concurrency))]
        n, first = len(waiting), []
        sampling = SamplingParams(temperature=0, max_tokens=self.load.new_tokens, ignore_eos=True)

        async def client() -> None:
            while waiting:
                request = {
                    "prompt": self.prompt,
                    "multi_modal_data": {"image": waiting.pop()},
                    "mm_processor_kwargs": {"keep": keep},
                }
                asked, came = time.perf_counter(), None
                async for out in self.engine.generate(request, sampling, f"{len(waiting)}-{asked}"):  # type: ignore[arg-type]
                    came = came or time.perf_counter() - asked
                    times.prompt = len(out.prompt_token_ids or ())
                first.append(came or 0.0)

        started = time.perf_counter()
        await asyncio.gather(*[client() for _ in range(concurrency)])
        times.seconds.append((time.perf_counter() - started) / n)
        times.first.append(statistics.median(first))


def measure(
    model: str,
    policy: str,
    keeps: Sequence[float | int],
    concurrencies: Sequence[int],
    load: Load,
    rounds: int,
    dtype: str = "float32",
    dummy: bool = False,
    tick: Any = lambda: None,
) -> list[dict[str, Any]]:
    """Rows of `policy`, `keep`, `concurrency`, `prompt_tokens`, `requests_per_second`, `ttft_ms`, and both as a
    ratio to the full model, `throughput_ratio` (above 1: pruning pays) and `ttft_ratio` (below 1: it does).

    Args:
        model: a checkpoint that vLLM serves.
        policy: a name that the engine can have.
        keeps: budgets beside the full model's 1.0.
        concurrencies: clients at a time.
        load: what they ask for.
        rounds: counted ones; settings take turns within a round, and ratios are medians over rounds.
        dtype: of weights and activations.
        dummy: random weights.
        tick: called after each round of each setting.
    """
    before = os.environ.get(POLICY), os.environ.get(KEEP)
    os.environ[POLICY], os.environ[KEEP] = policy, "1.0"
    try:
        server = _Server(model, dtype, load, max(concurrencies), dummy)
    finally:
        for name, value in zip((POLICY, KEEP), before, strict=True):
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    settings = [1.0, *keeps]
    times = {(keep, clients): _Times() for keep in settings for clients in concurrencies}

    async def run() -> None:
        for i in range(-WARM_UP, rounds):
            for (keep, clients), noted in times.items():
                if i < 0:
                    await server.round(keep, clients, clients, _Times())
                else:
                    await server.round(keep, clients, load.requests, noted)
                tick()

    try:
        asyncio.run(run())
    finally:
        server.engine.shutdown()
    return [_row(policy, keep, clients, noted, times[1.0, clients]) for (keep, clients), noted in times.items()]


def _row(policy: str, keep: float | int, clients: int, noted: _Times, full: _Times) -> dict[str, Any]:
    return {
        "policy": "full" if noted is full else policy,
        "keep": keep,
        "concurrency": clients,
        "prompt_tokens": noted.prompt,
        "requests_per_second": 1 / statistics.median(noted.seconds),
        "ttft_ms": 1e3 * statistics.median(noted.first),
        "throughput_ratio": statistics.median(b / a for a, b in zip(noted.seconds, full.seconds, strict=True)),
        "ttft_ratio": statistics.median(a / b for a, b in zip(noted.first, full.first, strict=True)),
    }


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Of one budget's rows: whether pruning pays, and from how many clients on it does not."""
    lost = [row for row in sorted(rows, key=lambda row: row["concurrency"]) if row["throughput_ratio"] < 1]
    if not lost:
        low, high = min(r["throughput_ratio"] for r in rows), max(r["throughput_ratio"] for r in rows)
        return f"pays at every concurrency: {low:.2f} to {high:.2f} times the full model's throughput"
    worst = min(lost, key=lambda row: row["throughput_ratio"])
    return (
        f"stops paying at {lost[0]['concurrency']} clients; at {worst['concurrency']} it has "
        f"{worst['throughput_ratio']:.2f} times the full model's throughput"
    )


def run(options: Any, console: Any) -> None:
    """The command."""
    from rich.progress import Progress

    from .engine_report import draw, table
    from .machine import describe

    dtype = options.dtype or "float32"
    with tempfile.TemporaryDirectory() as temporary:
        model, side, name = options.model, options.image_size, options.model or options.config
        if model is None:
            place, usual = folder(options.config, options.layers, Path(temporary))
            model, side = str(place), side or usual
        load = Load(options.requests, options.images, side or 96, options.new_tokens)
        rows: list[dict[str, Any]] = []
        with Progress(console=console, transient=True) as progress:
            steps = (1 + len(options.keep)) * len(options.concurrency) * (options.rounds + WARM_UP)
            task = progress.add_task("rounds", total=steps * len(options.policy))
            for policy in options.policy:
                rows += measure(
                    model, policy, options.keep, options.concurrency, load, options.rounds, dtype,
                    options.model is None, lambda: progress.advance(task),
                )  # fmt: skip
    machine = describe()
    console.width = max(console.width, 100)
    layers = f", {options.layers} decoder layers" if options.model is None and options.layers else ""
    title = f"{name}{layers}, vLLM, {dtype}, {load.requests} requests a round, {load.new_tokens} new tokens"
    console.print(table(rows, f"{title}; {machine['device']}, {machine['cores']} cores"))
    verdicts = {
        f"{policy} {keep:g}": verdict([r for r in rows if (r["policy"], r["keep"]) == (policy, keep)])
        for policy in options.policy
        for keep in options.keep
    }
    for setting, words in verdicts.items():
        console.print(f"[bold]{setting}[/] {words}", highlight=False)
    if options.json:
        import vllm

        head = {
            "machine": machine | {"vllm": vllm.__version__},
            "model": name,
            "layers": options.layers,
            "dtype": dtype,
        }
        asked = {"requests": load.requests, "images": load.images, "side": load.side, "new_tokens": load.new_tokens}
        found = {**head, "load": asked, "rounds": options.rounds, "rows": rows, "verdicts": verdicts}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot:
        draw(options.plot, rows, title)
