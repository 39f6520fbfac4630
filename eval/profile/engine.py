"""`tokenprune profile --engine vllm`: throughput and time to first token under load, full and pruned in turn.

One engine serves all requests, and each request names its keep ratio, so full and pruned ones have the same scheduler,
kernels and machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from ...serve.settings import KEEP, OPTIONS, POLICY
from .. import minivlm
from ..files import console_beside, write_json
from ..machine import describe
from ..policy_names import parse_policy
from ..setting import FULL, PruningSetting, label, settings_grid
from .clocks import CLOCKS
from .engine_checkpoint import Checkpoint, checkpoint_of
from .options import CONCURRENCY, REQUESTS, check

WARM_UP = 1  # rounds before those that count
WARM_CLIENTS = 4  # at most, in these
ROUNDS = 5  # that count, where their number is not given
PROMPT = "what colour is the circle ?"


@dataclass(frozen=True)
class Load:
    """The requests of a round.

    Attributes:
        requests: how many, each with new images, so that no cache holds them.
        images: in each request.
        side: height and width of an image in pixels.
        new_tokens: generated for each request.
        batched_tokens: prompt tokens that the engine takes in a step; None: its default.
        clock: what times are taken by, of `CLOCKS`.
    """

    requests: int = 32
    images: int = 1
    side: int = 96
    new_tokens: int = 8
    batched_tokens: int | None = None
    clock: str = "wall"


@dataclass
class _Times:
    """Measurements of one setting and number of clients.

    Attributes:
        seconds: per round, time by request.
        first: per round, the median of seconds to the first token.
        prompt: tokens of a prompt, as the engine counts them.
    """

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    prompt: int = 0


class _Server:
    """An engine in the background, and clients that send requests to it."""

    def __init__(self, checkpoint: Checkpoint, load: Load, concurrency: int):
        import torch
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.load, self.clock = load, CLOCKS[load.clock]
        model, load_format = checkpoint.model, "dummy" if checkpoint.dummy else "auto"
        per_image = 64 + 2 * (load.side // 4) ** 2  # more tokens than any supported model makes of an image
        self.engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=minivlm.checkpoint_path(model), dtype=checkpoint.dtype, load_format=load_format,  # type: ignore[arg-type]
                enforce_eager=not torch.cuda.is_available(), max_num_seqs=max(concurrency, 8),
                max_model_len=min(self._context(model), 256 + load.images * per_image + load.new_tokens),
                limit_mm_per_prompt={"image": load.images}, max_num_batched_tokens=load.batched_tokens,
                enable_prefix_caching=False, mm_processor_cache_gb=0, disable_log_stats=True,
            )
        )  # fmt: skip
        messages: Any = minivlm.prompt(PROMPT, load.images)
        self.prompt = minivlm.load_processor(model).apply_chat_template(messages, add_generation_prompt=True)
        self._drawn = 0

    @staticmethod
    def _context(model: str) -> int:
        """Longest sequence of a model, in tokens."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(minivlm.checkpoint_path(model)).get_text_config()
        length: int = config.max_position_embeddings
        return length

    def _images(self) -> list[Image.Image]:
        self._drawn += 1
        rng = np.random.default_rng(self._drawn)
        shape = (self.load.side, self.load.side, 3)
        return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(self.load.images)]

    async def round(self, keep: float | int, concurrency: int, requests: int, times: _Times) -> None:
        """Send `requests` requests, at least one per client, from `concurrency` clients, and add the times to `times`.

        A client sends its next request as soon as it has its answer.
        """
        from vllm import SamplingParams

        waiting = [self._images() for _ in range(max(requests, concurrency))]
        n, first = len(waiting), []
        sampling = SamplingParams(temperature=0, max_tokens=self.load.new_tokens, ignore_eos=True)

        async def client() -> None:
            while waiting:
                request = {
                    "prompt": self.prompt,
                    "multi_modal_data": {"image": waiting.pop()},
                    "mm_processor_kwargs": {"keep": keep},
                }
                sent, first_token = self.clock(), None
                async for out in self.engine.generate(request, sampling, f"{len(waiting)}-{sent}"):  # type: ignore[arg-type]
                    first_token = first_token or self.clock() - sent
                    times.prompt = len(out.prompt_token_ids or ())
                first.append(first_token or 0.0)

        started = self.clock()
        await asyncio.gather(*[client() for _ in range(concurrency)])
        times.seconds.append((self.clock() - started) / n)
        times.first.append(statistics.median(first))


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets environment variables for a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def measure(
    checkpoint: Checkpoint,
    settings: Sequence[PruningSetting],
    concurrencies: Sequence[int],
    load: Load,
    rounds: int,
    tick: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Throughput and time to first token of an engine with one policy.

    Args:
        checkpoint: what the engine serves.
        settings: of one policy that an engine can have; the full model is measured with them.
        concurrencies: numbers of clients at a time.
        load: the requests of a round.
        rounds: counted rounds, after `WARM_UP` others. Each runs every setting and number of clients once.
        tick: called after each round of each setting and number of clients.

    Returns:
        Rows of `policy`, `keep`, `concurrency`, `prompt_tokens`, `requests_per_second` and `ttft_ms`, medians over
        rounds; and both relative to the full model, medians of the ratios within a round: `throughput_ratio` (above 1,
        pruning pays) and `ttft_ratio` (below 1, it does).
    """
    policy = settings[0].name
    name, options = parse_policy(policy)
    with _environment(**{POLICY: name, OPTIONS: json.dumps(options), KEEP: "1.0"}):
        server = _Server(checkpoint, load, max(concurrencies))
    keeps: list[Any] = [1.0, *(setting.keep for setting in settings)]
    times = {(keep, clients): _Times() for keep in keeps for clients in concurrencies}

    async def run() -> None:
        for i in range(-WARM_UP, rounds):
            for (keep, clients), counted in times.items():
                if i < 0:
                    await server.round(keep, min(clients, WARM_CLIENTS), 1, _Times())
                else:
                    await server.round(keep, clients, load.requests, counted)
                tick()

    try:
        asyncio.run(run())
    finally:
        server.engine.shutdown()
    return [
        _row(policy, keep, clients, of_setting, times[1.0, clients]) for (keep, clients), of_setting in times.items()
    ]


def _row(policy: str, keep: float | int, clients: int, times: _Times, full: _Times) -> dict[str, Any]:
    return {
        "policy": FULL if times is full else policy,
        "keep": keep,
        "concurrency": clients,
        "prompt_tokens": times.prompt,
        "requests_per_second": 1 / statistics.median(times.seconds),
        "ttft_ms": 1e3 * statistics.median(times.first),
        "throughput_ratio": statistics.median(b / a for a, b in zip(times.seconds, full.seconds, strict=True)),
        "ttft_ratio": statistics.median(a / b for a, b in zip(times.first, full.first, strict=True)),
    }


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Whether pruning pays, by the rows of one policy and keep ratio, and from how many clients on it does not."""
    slower = [row for row in sorted(rows, key=lambda row: row["concurrency"]) if row["throughput_ratio"] < 1]
    if not slower:
        low, high = min(r["throughput_ratio"] for r in rows), max(r["throughput_ratio"] for r in rows)
        return f"pays at every concurrency: {low:.2f} to {high:.2f} times the full model's throughput"
    worst = min(slower, key=lambda row: row["throughput_ratio"])
    return (
        f"stops paying at {slower[0]['concurrency']} clients; at {worst['concurrency']} it has "
        f"{worst['throughput_ratio']:.2f} times the full model's throughput"
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """Run the command.

    Raises:
        OSError: no such checkpoint.
        ValueError: a shape or a policy that an engine cannot have.
    """
    from .engine_report import draw, table

    check(options)
    console = console_beside(options.json, console)
    concurrencies, rounds = options.concurrency or CONCURRENCY, options.rounds or ROUNDS
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, side = checkpoint_of(options, Path(temporary))
        load = Load(
            options.requests or REQUESTS, options.images, side or 96, options.new_tokens, options.batched_tokens,
            options.clock or "wall",
        )  # fmt: skip
        rows: list[dict[str, Any]] = []
        with Progress(console=console, transient=True) as progress:
            steps = (1 + len(options.keep)) * len(concurrencies) * (rounds + WARM_UP)
            task = progress.add_task("rounds", total=steps * len(options.policy))
            tick = lambda: progress.advance(task)
            for policy in options.policy:
                settings = settings_grid([policy], options.keep, full=False)
                rows += measure(checkpoint, settings, concurrencies, load, rounds, tick)
    machine, name = describe(), options.model or options.config
    console.width = max(console.width, 100)  # narrower, figures would be cut
    layers = f", {options.layers} decoder layers" if options.model is None and options.layers else ""
    if options.vision_layers is not None:
        layers += f" and {options.vision_layers} of the vision encoder"
    title = f"{name}{layers}, vLLM, {checkpoint.dtype}, {load.requests} requests a round, {load.new_tokens} new tokens"
    console.print(table(rows, f"{title}; {machine['device']}, {machine['cores']} cores", load.clock))
    verdicts = {
        label(policy, keep): verdict([row for row in rows if (row["policy"], row["keep"]) == (policy, keep)])
        for policy in options.policy
        for keep in options.keep
    }
    for setting, text in verdicts.items():
        console.print(f"[bold]{setting}[/] {text}", highlight=False)
    if options.json:
        import vllm

        head = {
            "machine": machine | {"vllm": vllm.__version__},
            "model": name,
            "layers": options.layers,
            "vision_layers": options.vision_layers,
            "dtype": checkpoint.dtype,
            "load": asdict(load),
        }
        write_json(options.json, {**head, "rounds": rounds, "rows": rows, "verdicts": verdicts})
    if options.plot:
        draw(options.plot, rows, title)
