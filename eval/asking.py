"""Questions to the embedded models, and their answers under a setting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..api import Positions, pruning, pruning_report
from ..patches import Record
from ..policies import Policy
from .minivlm import prompt
from .minivlm.questions import Question, ask
from .minivlm.scenes import SEEDS, Scene, draw_scene

BATCH = 16
#: What the demo and the harness ask: one picture, six types.
TYPES = ("exists", "colour", "shape", "where", "count", "letter")


@dataclass(frozen=True)
class Sample:
    """A question about one scene or more."""

    scenes: tuple[Scene, ...]
    question: Question

    @property
    def scene(self) -> Scene:
        return self.scenes[0]


@dataclass(frozen=True)
class Setting:
    """A policy at a budget, or the full model (no policy)."""

    policy: Policy | tuple[Policy, ...] | None = None
    keep: float | int = 1.0
    positions: Positions = "original"

    @property
    def name(self) -> str:
        if self.policy is None:
            return "full"
        return "+".join(p.name for p in (self.policy if isinstance(self.policy, tuple) else (self.policy,)))

    def context(self, model: Any) -> contextlib.AbstractContextManager:
        if self.policy is None:
            return contextlib.nullcontext(model)
        return pruning(model, self.policy, self.keep, positions=self.positions)

    def encode(self, processor: Any, samples: Sequence[Sample]) -> Any:
        """Inputs of a batch."""
        return encode(processor, samples, [[scene.image for scene in s.scenes] for s in samples])

    def records(self, model: Any, n: int) -> list[list[Record]]:
        """What was kept of each of the `n` samples of the last batch, one record per picture."""
        out: list[list[Record]] = [[] for _ in range(n)]
        for record in pruning_report(model) if self.policy is not None else ():
            out[record.sample].append(record)
        return out


@dataclass
class Answers:
    """What a setting answered.

    Attributes:
        texts: per sample.
        records: per sample, the pruning records of its pictures.
        kept: visual tokens per sample, a mean over decoder layers.
    """

    texts: list[str] = field(default_factory=list)
    records: list[list[Record]] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)


def held_out(n: int) -> list[Sample]:
    """The first `n` questions of the demo's types about test scenes, which no training has seen."""
    samples: list[Sample] = []
    seed = SEEDS["test"]
    while len(samples) < n:
        scene = draw_scene(seed)
        samples += [Sample((scene,), q) for q in ask(scene, seed, types=TYPES)]
        seed += 1
    return samples[:n]


def encode(processor: Any, samples: Sequence[Sample], images: Sequence[Sequence[np.ndarray]], **kwargs: Any) -> Any:
    """Inputs of a batch, from the pictures of each sample; more arguments go to the processor."""
    texts = [
        processor.apply_chat_template(prompt(s.question.text, len(s.scenes)), add_generation_prompt=True)
        for s in samples
    ]
    flat = [image for some in images for image in some]
    return processor(images=flat, text=texts, padding=True, return_tensors="pt", **kwargs)


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    setting: Setting,
    tick: Callable[[int], None] = lambda n: None,
    batch: int = BATCH,
) -> Answers:
    """Greedy answers through the processor and `generate()`, as a user would ask."""
    out, n_layers = Answers(), len(model.model.language_model.layers)
    for i in range(0, len(samples), batch):
        part = samples[i : i + batch]
        inputs = setting.encode(processor, part)
        with setting.context(model):
            tokens = model.generate(**inputs)
            records = setting.records(model, len(part))
        out.records += records
        given = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
        out.kept += [
            sum(r.mean_tokens(n_layers) for r in some) if some else n for some, n in zip(records, given, strict=True)
        ]
        out.texts += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        tick(len(part))
    return out


def right(samples: Sequence[Sample], answers: Answers) -> np.ndarray:
    """Which answers are exact matches, bool (n,)."""
    return np.array([t.strip() == s.question.answer for t, s in zip(answers.texts, samples, strict=True)])
