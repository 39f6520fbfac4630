"""Tuning from prompts to a recipe."""

from __future__ import annotations

import dataclasses
import datetime
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CommandError
from ..setting import PruningSetting
from ..videos import check_reads_videos
from .asking import Asker
from .candidates import KEEPS, chains_of, describe
from .certify import FINALISTS, Outcome, certify
from .cost import Costs
from .metrics import METRICS, exact_match
from .options import Options
from .progress import Progress
from .prompts import Prompt, digest, shared_sources
from .ranking import Chain
from .recipes import recipe_of_setting
from .risk import interval
from .sequence import Goal, Tested
from .source import ModelSource, deal
from .tuned import Row, Tuned
from .workers import Workers

LEAST = 8  # prompts below which nothing is tried
_RANKING = 0.5  # share of the time that may be used after which no further policy is ranked
_CHOOSING = 5  # rounds of the times of certified settings


class Clock:
    """How long tuning may go on; the first process decides for all.

    Args:
        minutes: None: for ever.
        workers: all processes.
    """

    def __init__(self, minutes: float | None, workers: Workers):
        self.minutes, self.workers, self.started = minutes, workers, time.monotonic()

    def go_on(self, testing: bool) -> bool:
        """Whether there is time left, for the test or for the ranking before it."""
        if self.minutes is None:
            return True
        limit = 60 * self.minutes * (1 if testing else _RANKING)
        return self.workers.agree(lambda: time.monotonic() - self.started < limit)


class Tuning:
    """One run.

    Args:
        model: of a supported type, not pruned.
        processor: of the model, with a chat template.
        prompts: drawn from what the model will be asked.
        options: how to tune.
        work: folder of what was answered; a run that was interrupted goes on from it.
        progress: is told what is being done.

    Raises:
        CommandError: too few prompts, a metric that needs right answers where a prompt has none, no policy that can
            act on the model, videos that the model or its processor does not take.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        prompts: Sequence[Prompt],
        options: Options,
        work: Path,
        progress: Progress,
    ):
        self.model, self.prompts, self.options, self.progress = model, prompts, options, progress
        self.metric, self.score = METRICS[options.metric], options.score or exact_match
        self.notes: list[str] = []
        _check(prompts, options)
        if any(prompt.has_videos for prompt in prompts):
            check_reads_videos(processor, model.config.model_type)
        self.workers = Workers.found()
        batches, self.halves = deal(prompts, options.batch, options.seed)
        self.asker = Asker(model, processor, batches, options, work, self.workers)
        self.costs = Costs(self.asker, options.cost)
        self.goal: Goal = options.goal()
        self.clock = Clock(options.minutes, self.workers)

    def run(self) -> Tuned:
        """Ask, rank, test and choose."""
        options = self.options
        chains = chains_of(
            self.model, options.candidates(), options.keeps or KEEPS, options.positions, self.notes.append
        )
        shared = shared_sources(self.prompts)
        if shared:
            self.notes.append(
                f"{shared} of {len(self.prompts)} prompts have a picture that another one has: they are not "
                "independent, and the certificate counts them as if they were"
            )
        self.progress.begin("answering with all tokens", len(self.prompts))
        self.asker.answer(self.progress.advance)
        source = ModelSource(self.asker, self.halves, self.metric, self.score, self.costs.of, self.progress.advance)
        self.progress.begin("ranking policies", _expected(chains, sum(source.ranking)))
        testing = False

        def go_on(now_testing: bool) -> bool:
            nonlocal testing
            if now_testing and not testing:
                testing = True
                self.progress.begin("testing the best", sum(source.testing) * len(chains[0].settings))
            return self.clock.go_on(now_testing)

        return self._tuned(certify(source, chains, self.goal, go_on))

    def _tuned(self, outcome: Outcome[PruningSetting]) -> Tuned:
        shares = self._shares([each.setting for each in outcome.certified])
        rows, best = list[Row](), None
        for name, chain in outcome.tested.items():
            for each in chain:
                rows.append(self._row(name, each, next(shares) if each.certified else None))
                if each.certified and (best is None or rows[-1].cost < best[1].cost):
                    best = each, rows[-1]
        needed = outcome.prompts_needed()
        tuned = Tuned(
            options=self.options,
            rows=rows,
            recipe=None,
            prompts=len(self.prompts),
            tested=outcome.n,
            prompts_needed=None if needed is None else 2 * needed,  # one half of them ranks
            complete=outcome.complete,
            notes=self.notes,
        )
        measured = self._measured(tuned)
        if best is None:
            return dataclasses.replace(tuned, measured=measured)
        setting, row = best[0].setting, best[1]
        measured = {**self._certificate(row), **self._cost(setting, row), **self._accuracy(setting), **measured}
        recipe = recipe_of_setting(self.model, setting, measured)
        return dataclasses.replace(tuned, recipe=recipe, measured=measured)

    def _shares(self, settings: Sequence[PruningSetting]) -> Iterator[float]:
        """What settings cost, as a share of the full model's."""
        if self.options.cost == "flops":
            yield from map(self.costs.of, settings)
            return
        full, *pruned = self.costs.times([PruningSetting(), *settings], _CHOOSING) if settings else [1.0]
        self._full_ms = full
        yield from (each / full for each in pruned)

    def _row(self, chain: str, tested: Tested[PruningSetting], cost: float | None) -> Row:
        counted, _ = self.costs.counted(tested.setting)
        low, high = interval(tested.losses, self.options.confidence, self.goal.binary)
        return Row(
            chain=chain,
            setting=describe(tested.setting),
            certified=tested.certified,
            risk=tested.risk,
            low=low,
            high=high,
            n=len(tested.losses),
            cost=self.costs.of(tested.setting) if cost is None else cost,
            **{name: round(value, 2) for name, value in counted.means().items()},
        )

    def _certificate(self, row: Row) -> dict[str, Any]:
        options = self.options
        promise = (
            f"With {100 * options.confidence:g} % confidence over the draw of the prompts, the risk is at most "
            f"{options.tolerance:g}; the risk is the mean over prompts of: {self.metric.what}. It holds for prompts "
            "that are exchangeable with those that were given, on this model and with these versions."
        )
        return {
            "certificate": {
                "metric": options.metric,
                "tolerance": options.tolerance,
                "confidence": options.confidence,
                "prompts": len(self.prompts),
                "tested": row.n,
                "risk": row.risk,
                "interval": [row.low, row.high],
                "promise": promise,
            }
        }

    def _cost(self, setting: PruningSetting, row: Row) -> dict[str, Any]:
        """What the full model and the chosen setting cost per prompt."""
        pruned, full = (each.means() for each in self.costs.counted(setting))
        if self.options.cost == "time":
            full["first_token_ms"], pruned["first_token_ms"] = self._full_ms, row.cost * self._full_ms
        return {"cost": {"unit": self.options.cost, "share": row.cost, "full": full, "pruned": pruned}}

    def _accuracy(self, setting: PruningSetting) -> dict[str, Any]:
        """The scores of full and pruned answers on the test prompts that have right answers; empty if none has."""
        batches = [i for group in self.halves.testing for i in group]
        full, pruned = list[float](), list[float]()
        if not any(prompt.answers for i in batches for prompt in self.asker.batches[i]):
            return {}
        for i, answered in zip(batches, self.asker.ask(setting, batches, True), strict=True):
            for prompt, reply, each in zip(self.asker.batches[i], self.asker.replies[i], answered.pruned, strict=True):
                if prompt.answers:
                    full.append(self.score(reply.text, prompt.answers))
                    pruned.append(self.score(reply.text if each.text is None else each.text, prompt.answers))
        return {
            "accuracy": {"full": float(np.mean(full)), "pruned": float(np.mean(pruned)), "labelled_prompts": len(full)}
        }

    def _measured(self, tuned: Tuned) -> dict[str, Any]:
        return {
            "data": {"sha256": digest(self.prompts), "prompts": len(self.prompts)},
            "tested": [dataclasses.asdict(row) for row in tuned.rows],
            "complete": tuned.complete,
            "notes": tuned.notes,
            "made": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }


def _check(prompts: Sequence[Prompt], options: Options) -> None:
    if len(prompts) < LEAST:
        raise CommandError(f"{len(prompts)} prompts are too few, {LEAST} are the least; a few hundred are of use")
    unlabelled = sum(1 for prompt in prompts if not prompt.answers)
    if METRICS[options.metric].of_labels and unlabelled:
        raise CommandError(
            f"{unlabelled} of {len(prompts)} prompts have no right answer, which metric {options.metric} needs; "
            "answer, tokens and kl do without"
        )


def _expected(chains: Sequence[Chain[PruningSetting]], prompts: int) -> int:
    """About how many prompts the ranking will ask: each round asks half of the chains twice as much."""
    steps = math.ceil(math.log2(1 + max(len(chain.settings) for chain in chains)))
    rounds = 1 + max(0, math.ceil(math.log2(len(chains) / FINALISTS)))
    return sum(
        math.ceil(len(chains) / 2**i) * steps * math.ceil(prompts / 2 ** (rounds - 1 - i)) for i in range(rounds)
    )
