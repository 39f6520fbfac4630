"""Train the miniature Qwen2.5-VL for pages, short videos and descriptions, from the weights of `qwen`.

    python -m tokenprune.eval.minivlm.qwen_pages.train --out eval/minivlm/weights/qwen-pages

1. *tower*: the vision tower alone, as for the others: classifiers predict from every visual token what it shows and
   where it is, and in videos which way that moves, or since when a dot has been there.
2. *language*: the language model on the features of the frozen tower. Visual tokens are aligned with the words for
   what they show.

Steps are on pages, short videos and scenes in turn. All of them are drawn when they are needed and seen once. Nothing
is pruned in training. The state is saved every 200 steps, and the same command goes on with an interrupted run.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import minivlm
from ...files import write_json
from ..curve import Curve
from ..losses import Alignment, TowerHeads, answer_loss, answered, named_loss
from ..optimizer import Optimizer
from ..packing import PACKED, Packing
from ..record import record
from ..resume import Checkpoint
from .clips import N_CHANGES
from .data import LENGTHS, QUESTIONS, SIZES, Batch, Kind, make_batch
from .pages import PagePainter
from .questions import TYPES

logger = logging.getLogger(__name__)

Losses = Callable[[Batch, int], tuple[Tensor, dict[str, float]]]
_TURNS: tuple[tuple[Kind, ...], ...] = (("page", "clip", "page", "scene"), ("page", "scene", "clip", "scene"))
_PACE = (0.5, 0.4)  # factor of the learning rates of a training from scratch, by stage
_HEADS_ALONE = 120  # first steps, in which the classifiers alone learn, so that random ones do not change the tower


class Heads(TowerHeads):
    """Classifiers on the vision tower, used in training only; one more for videos than those of scenes.

    Args:
        width: of a visual token.
    """

    def __init__(self, width: int):
        super().__init__(width, PagePainter.kinds)
        self.places_in_time = nn.Linear(width, N_CHANGES)

    def change_loss(self, features: Tensor, changes: Tensor) -> tuple[Tensor, float]:
        """Loss of features (B, N, D) against `Clip.changes` (B, N), and the accuracy where something is."""
        logits, target = self.places_in_time(features).flatten(0, 1), changes.flatten().long()
        named = target > 0
        return named_loss(logits, target), (logits.argmax(1) == target)[named].float().mean().item()


class Trainer:
    """The two stages of training of a model.

    Args:
        model: the model.
        args: options of the command.
        saved: where the state is saved, and restored from.
    """

    def __init__(self, model: Any, args: argparse.Namespace, saved: Checkpoint):
        self.model, self.args, self.saved = model, args, saved
        self.family = minivlm.family("qwen-pages")
        self.alignment = Alignment(self.family)
        self.packing = functools.cache(self._packing)

    def _packing(self, kind: Kind) -> Packing:
        return Packing(self.family, self.model, 1, SIZES[kind], QUESTIONS[kind], LENGTHS[kind])

    def run(self, stage: int, optimizer: Optimizer, own: nn.Module, losses: Losses) -> None:
        """Run a stage, from its start or from the step that was saved last.

        Args:
            stage: its index.
            optimizer: of the stage.
            own: what is trained in this stage only.
            losses: from a batch and a step to the loss and figures for the curve.
        """
        steps, batch = self.args.steps[stage], self.args.batch[stage]
        curve, turns = Curve(("tower", "language")[stage], steps), _TURNS[stage]
        for step in range(self.saved.resume(curve, optimizer, own), steps):
            kind = turns[step % len(turns)]
            loss, figures = losses(make_batch(kind, "train", step * batch, batch, stage), step)
            optimizer.step(loss)
            curve.add(step, **figures)
            self.saved.step(step + 1, curve, optimizer, own)
        self.saved.finish(curve)

    def tower(self, heads: Heads) -> None:
        """The first stage."""

        def losses(batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
            with torch.set_grad_enabled(step >= _HEADS_ALONE):
                features = self.family.tower(self.model, batch.images)[0]
            patch, accuracy = heads.patch_loss(features, batch.labels)
            place = heads.place_loss(features, SIZES[batch.kind][-2:])  # type: ignore[arg-type]
            names = ("colour", "kind", "character", "slot", "key")
            found = dict(zip(names, accuracy, strict=True), patch=patch.item(), place=place.item())
            figures = {f"{batch.kind} {name}": value for name, value in found.items() if value == value}
            loss = patch + place
            if batch.changes is not None:
                change, figures["change"] = heads.change_loss(features, batch.changes)
                loss = loss + 2 * change
            return loss, figures

        named = [*self.family.tower_parameters(self.model), *heads.named_parameters()]
        self.run(0, Optimizer(named, self.args.steps[0], _PACE[0], batched=True), heads, losses)

    def answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features of a batch by the frozen tower, (B * T, N, D), and the logits of its questions."""
        with torch.no_grad():
            features = self.family.tower(self.model, batch.images)[0]
        tokens = features.reshape(len(batch.ids), -1, features.shape[-1])
        return features, self.packing(batch.kind)(self.model, tokens, batch.ids)[0]

    def language(self) -> None:
        """The second stage."""

        def losses(batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
            features, logits = self.answers(batch)
            answer = answer_loss(logits, batch.targets)
            embeddings = self.model.get_input_embeddings().weight
            align = self.alignment.loss(features, batch.labels, embeddings, SIZES[batch.kind][-2:])  # type: ignore[arg-type]
            figures = {f"{batch.kind} answer": answer.item(), "align": align.item()}
            return answer + 0.3 * align, figures | _by_type(answered(logits, batch.targets), batch.types)

        frozen = {id(p) for _, p in self.family.tower_parameters(self.model)}
        named = [(n, p) for n, p in self.model.named_parameters() if id(p) not in frozen]
        self.run(1, Optimizer(named, self.args.steps[1], _PACE[1], batched=True), nn.Module(), losses)

    @torch.no_grad()
    def validate(self, n: int = 640) -> dict[str, float]:
        """Exact match on `n` validation pictures or videos of each kind, teacher-forced, by type of question."""
        hits: dict[str, list[Tensor]] = {name: [] for name in TYPES}
        for kind in SIZES:
            for first in range(0, n, 32):
                batch = make_batch(kind, "validation", first, 32)
                right = answered(self.answers(batch)[1], batch.targets)
                for i, name in enumerate(TYPES):
                    hits[name].append(right[batch.types == i])
        return {name: torch.cat(found).float().mean().item() for name, found in hits.items()}


def _by_type(right: Tensor, types: Tensor) -> dict[str, float]:
    return {name: right[types == i].float().mean().item() for i, name in enumerate(TYPES) if (types == i).any()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, processor and training.json")
    parser.add_argument("--steps", type=int, nargs=2, default=[1100, 2000], metavar=("TOWER", "LANGUAGE"))
    parser.add_argument("--batch", type=int, nargs=2, default=[8, 16], metavar=("TOWER", "LANGUAGE"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)  # as in the training of the others
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    family = minivlm.family("qwen-pages")
    model = family.build_model()
    heads = Heads(model.config.text_config.hidden_size)
    model.set_attn_implementation({"text_config": PACKED})
    args.out.mkdir(parents=True, exist_ok=True)
    saved = Checkpoint(args.out / "checkpoint.pt", model=model, heads=heads)
    trainer = Trainer(model, args, saved)
    stages = (lambda: trainer.tower(heads), trainer.language)
    for stage in range(saved.done["stages"], len(stages)):
        stages[stage]()

    figures = {k: round(v, 4) for k, v in trainer.validate().items()}
    logger.info("validation: %s", figures)
    family.save(model, args.out)
    command = (
        f"python -m {__package__}.train --out eval/minivlm/weights/qwen-pages"
        f" --steps {' '.join(map(str, args.steps))} --batch {' '.join(map(str, args.batch))} --seed {args.seed}"
        f" --threads {args.threads}"
    )
    written = record(command, "cpu", model, saved.done["seconds"], figures, saved.done["curve"])
    write_json(args.out / "training.json", written)
    saved.remove()


if __name__ == "__main__":
    main()
