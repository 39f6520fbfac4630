"""Acceptance and speed of pruned drafts: `python -m tokenprune.eval.bench_drafts`.

An embedded model answers its questions alone and with drafts, which propose a fixed number of tokens at once
(`tokenprune.draft`). The texts are compared token by token. Times are CPU time of a single thread, which other work on
the machine does not count in. Answers of one word are too short for proposals; `--min-new-tokens` lets the model write
on behind them.

`--config` measures single steps on the KV cache of a long video instead: see `draft_steps`.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ..drafting import draft
from . import draft_steps, minivlm
from .answers import encode
from .bench import tasks_of
from .bench.tasks import asked, check
from .errors import CommandError
from .files import write_json
from .machine import describe
from .setting import format_keep


@dataclass(frozen=True)
class Writing:
    """How texts are written.

    Attributes:
        max_new_tokens: of `generate`.
        min_new_tokens: of `generate`.
        proposals: tokens that a draft proposes at once.
        own_pixels: whether drafts encode the pictures themselves.
    """

    max_new_tokens: int = 24
    min_new_tokens: int = 0
    proposals: int = 5
    own_pixels: bool = False


@dataclass(frozen=True)
class Measured:
    """Sums over prompts.

    Attributes:
        tokens: that were written.
        calls: of the model.
        proposed: tokens that a draft proposed.
        accepted: of these, tokens that stand in the text.
        seconds: of CPU time.
    """

    tokens: int = 0
    calls: int = 0
    proposed: int = 0
    accepted: int = 0
    seconds: float = 0.0

    def __add__(self, other: Measured) -> Measured:
        return Measured(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def accepted(text: Sequence[int], proposals: Sequence[Sequence[int]]) -> int:
    """How many proposals stand in a text.

    Args:
        text: the new tokens.
        proposals: of each call of the model. A call adds a token of its own behind those that it agrees with.
    """
    count = written = 0
    for proposed in proposals:
        rest = text[written : written + len(proposed)]
        agreed = next((i for i, pair in enumerate(zip(proposed, rest, strict=False)) if pair[0] != pair[1]), len(rest))
        count += agreed
        written += agreed + 1
    return count


@contextlib.contextmanager
def proposals_to(model: Any, prompt: int) -> Iterator[list[list[int]]]:
    """What each call of a model is fed to check, call by call, behind a prompt of so many tokens."""
    calls: list[list[int]] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        fed = kwargs["input_ids"][0].tolist()
        calls.append(fed[1 if calls else prompt :])  # later calls are fed the token that the call before added

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@torch.inference_mode()
def write(model: Any, inputs: Mapping[str, Tensor], writing: Writing, assistant: Any = None) -> tuple[Tensor, Measured]:
    """Write one text greedily.

    Args:
        model: a vision-language model.
        inputs: of one prompt.
        writing: how.
        assistant: a draft; None: the model writes alone.

    Returns:
        the new tokens, (T,), and what they cost.
    """
    how: dict[str, Any] = {"max_new_tokens": writing.max_new_tokens, "min_new_tokens": writing.min_new_tokens}
    if assistant is not None:
        how["assistant_model"] = assistant
        assistant.generation_config.num_assistant_tokens = writing.proposals
        assistant.generation_config.num_assistant_tokens_schedule = "constant"
        assistant.generation_config.assistant_confidence_threshold = 0.0
    prompt = inputs["input_ids"].shape[1]
    with proposals_to(model, prompt) as calls:
        started = time.thread_time()
        text = model.generate(**inputs, do_sample=False, **how)[0, prompt:]
        seconds = time.thread_time() - started
    proposed = sum(map(len, calls))
    return text, Measured(len(text), len(calls), proposed, accepted(text.tolist(), calls), seconds)


def measure(
    model: Any,
    prompts: Sequence[Mapping[str, Tensor]],
    settings: Sequence[tuple[str, float | int]],
    writing: Writing,
) -> list[dict[str, Any]]:
    """Write the texts of all prompts alone and with each draft, in turn for each prompt.

    Args:
        model: an embedded model.
        prompts: inputs, one prompt each.
        settings: policy and keep ratio of each draft.
        writing: how texts are written.

    Returns:
        A row for the model alone (`policy` is None), and one for each draft: `tokens_per_text`, `calls_per_token` of
        the model, `proposed_per_call` and `accepted_per_call`, `accepted` (their ratio), `equal` (the share of texts
        that are the model's own), `ms_per_token` and its `ratio` to the model alone.

    Raises:
        ValueError: as `tokenprune.draft` does.
    """
    drafts = [] if writing.own_pixels else [draft(model, policy, keep) for policy, keep in settings]
    write(
        model, prompts[0], replace(writing, max_new_tokens=2, min_new_tokens=0)
    )  # once, so that weights are in memory
    alone, equal = Measured(), [0] * len(settings)
    found = [Measured()] * len(settings)
    for inputs in track(prompts, description="drafting", transient=True):
        text, spent = write(model, inputs, writing)
        alone += spent
        for i, (policy, keep) in enumerate(settings):
            assistant = draft(model, policy, keep, pixels=inputs) if writing.own_pixels else drafts[i]
            drafted, spent = write(model, inputs, writing, assistant)
            found[i] += spent
            equal[i] += int(torch.equal(text, drafted))
    own = _row(None, None, alone, alone, len(prompts))
    return [
        own,
        *(
            {**_row(policy, keep, spent, alone, len(prompts)), "equal": same / len(prompts)}
            for (policy, keep), spent, same in zip(settings, found, equal, strict=True)
        ),
    ]


def _row(policy: str | None, keep: float | int | None, spent: Measured, alone: Measured, texts: int) -> dict[str, Any]:
    per_token, stock = spent.seconds / spent.tokens, alone.seconds / alone.tokens
    row: dict[str, Any] = {
        "policy": policy,
        "keep": keep,
        "tokens_per_text": round(spent.tokens / texts, 2),
        "calls_per_token": round(spent.calls / spent.tokens, 4),
    }
    if policy is not None:
        row["proposed_per_call"] = round(spent.proposed / spent.calls, 3)
        row["accepted_per_call"] = round(spent.accepted / spent.calls, 3)
        row["accepted"] = round(spent.accepted / max(1, spent.proposed), 4)
    return {**row, "ms_per_token": round(1e3 * per_token, 3), "ratio": round(per_token / stock, 4)}


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `measure` as they are printed."""
    table = Table("draft", "tokens a text", "proposed a call", "accepted", "calls a token", "texts equal", "time")
    for row in rows:
        if row["policy"] is None:
            cells = ["none", f"{row['tokens_per_text']:.1f}", "-", "-", f"{row['calls_per_token']:.2f}", "-"]
        else:
            cells = [
                f"{row['policy']} {format_keep(row['keep'])}",
                f"{row['tokens_per_text']:.1f}",
                f"{row['proposed_per_call']:.1f}",
                f"{row['accepted_per_call']:.1f} ({row['accepted']:.0%})",
                f"{row['calls_per_token']:.2f}",
                f"{row['equal']:.0%}",
            ]
        table.add_row(*cells, f"{row['ratio']:.2f}")
    return table


def prompts_of(name: minivlm.Name, tasks: Sequence[str], samples: int) -> tuple[Any, list[Any]]:
    """An embedded model, and the inputs of the first questions of its tasks, one prompt each.

    Args:
        name: of the model.
        tasks: of `tasks_of(name)`.
        samples: questions per task.

    Raises:
        CommandError: it has no such task, or not as many questions.
    """
    check(name, samples, "test", tasks)
    model, processor = minivlm.load(name)
    questions = [sample for task in tasks for sample in asked(name, task, samples)]
    return model, [encode(processor, [sample], [sample.images]) for sample in questions]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=minivlm.NAMES, default="llava", help="an embedded model (default: llava)")
    parser.add_argument("--tasks", help="of the benchmark, comma-separated (default: all of the model)")
    parser.add_argument("--samples", type=int, default=10, metavar="N", help="questions per task (default: 10)")
    parser.add_argument("--policy", default="grid,divprune", help="of drafts, comma-separated (default: grid,divprune)")
    parser.add_argument("--keep", default="0.1,0.25,0.5,1.0", help="keep ratios (default: 0.1,0.25,0.5,1.0)")
    parser.add_argument("--pixels", action="store_true", help="drafts encode the pictures themselves")
    parser.add_argument("--proposals", type=int, default=5, metavar="N", help="tokens proposed at once (default: 5)")
    parser.add_argument("--max-new-tokens", type=int, default=24, metavar="N", help="of a text (default: 24)")
    parser.add_argument("--min-new-tokens", type=int, default=0, metavar="N", help="of a text (default: 0)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    draft_steps.add_options(parser)
    args = parser.parse_args(argv)
    try:
        keeps = [float(each) for each in args.keep.split(",")]
    except ValueError:
        keeps = [0.0]
    if not all(0 < keep <= 1 for keep in keeps):
        parser.error(f"--keep {args.keep}: ratios in (0, 1], comma-separated, are accepted")
    try:
        if args.config is not None:
            draft_steps.run(args, keeps)
        else:
            _run(args, keeps)
    except CommandError as error:
        parser.error(str(error))


def _run(args: argparse.Namespace, keeps: list[float]) -> None:
    torch.set_num_threads(1)
    tasks = args.tasks.split(",") if args.tasks else list(tasks_of(args.model))
    model, prompts = prompts_of(args.model, tasks, args.samples)
    writing = Writing(args.max_new_tokens, args.min_new_tokens, args.proposals, args.pixels)
    rows = measure(model, prompts, [(p, keep) for p in args.policy.split(",") for keep in keeps], writing)
    if args.json:
        head = {"model": args.model, "tasks": tasks, "samples": args.samples, "proposals": args.proposals}
        limits = {"max_new_tokens": args.max_new_tokens, "min_new_tokens": args.min_new_tokens, "pixels": args.pixels}
        write_json(args.json, {**describe("cpu"), **head, **limits, "rows": rows})
    Console().print(table_of(rows))


if __name__ == "__main__":
    main()
