"""Train an embedded model from scratch on procedural scenes, in two stages.

    python -m tokenprune.eval.minivlm.train --model llava --out eval/minivlm/weights/llava

1. *tower*: the vision tower alone. Classifiers predict from every visual token what it shows and where it is, and from
   the pooled CLS output, where there is one, the content of the image, so that CLS attention is meaningful to the
   policies that read it.
2. *language*: projector and language model on the features of the frozen tower, with two auxiliary losses: visual
   tokens align with the embeddings of the words for them, and after half of the layers the name of a shape tells its
   cell. Half of the attention heads start with keys equal to queries.

Nothing is pruned in training. A sequence holds one image and up to sixteen questions, or two images and six questions.
No question attends to another, so an image is encoded once for all of its questions. Stages end after a number of
steps, and every draw is seeded. Matrices are trained with Muon, the rest with AdamW. An interrupted run resumes after
its last finished stage.
"""

from __future__ import annotations

import argparse
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from tqdm.auto import tqdm

from .. import minivlm
from ..files import write_json
from ..machine import describe, device_and_threads
from .data import QUESTIONS_PER_IMAGE, TYPES, Data, batches, make_data, pair_questions
from .drawing import SHAPES
from .losses import Alignment, Grounding, Packing, TowerHeads, answer_loss, answered
from .optimizer import Optimizer
from .questions import PAIR

logger = logging.getLogger(__name__)

_PAIRS = 5  # every fifth step of the language stage is on pairs of images


def attend_to_likes(model: Any) -> None:
    """Start half of the language model's heads with keys equal to queries.

    The product of query and key weights is then near the identity, as in Trockman and Kolter (arXiv 2305.09828), so a
    word attends to the visual tokens that align with it, and a name of two words to those that align with both. From
    random weights that takes long to learn.
    """
    for layer in model.model.language_model.layers:
        query, key = (
            p.weight.detach().unflatten(0, (-1, layer.self_attn.head_dim))
            for p in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        half = len(key) // 2
        likes = key[:half].normal_(std=0.09)  # at this scale, equal tokens have logits some 6 above those of others
        query.unflatten(0, (len(key), -1))[:half] = likes[:, None]  # all heads that share a key


class Curve:
    """Means of the logged figures over every `EVERY` steps."""

    EVERY = 100  # steps

    def __init__(self, stage: str, steps: int):
        self.bar = tqdm(range(steps), desc=stage, mininterval=5)
        self.stage, self.start = stage, time.time()
        self.recent: list[dict[str, float]] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, step: int, **figures: float) -> None:
        """Add the figures of a step."""
        self.recent.append(figures)
        if (step + 1) % self.EVERY:
            return
        names = dict.fromkeys(name for row in self.recent for name in row)
        mean = {k: np.array([row.get(k, np.nan) for row in self.recent]) for k in names}
        row = {"stage": self.stage, "step": step + 1, "seconds": round(time.time() - self.start)}
        self.rows.append(row | {k: round(float(np.nanmean(v)), 4) for k, v in mean.items() if (v == v).any()})
        self.recent = []
        logger.info("%s", self.rows[-1])


def _by_type(correct: Tensor, types: Tensor) -> dict[str, float]:
    return {t: correct[types == i].float().mean().item() for i, t in enumerate(TYPES)}


class Trainer:
    """The two stages of training of a model.

    Args:
        family: module of the embedded model.
        model: the model.
        data: training scenes of each size.
        batch: sequences of a step.
        seed: of the order of scenes.
        bf16: whether to use bfloat16 autocast.
    """

    def __init__(self, family: ModuleType, model: Any, data: list[Data], batch: int, seed: int, bf16: bool):
        self.family, self.model, self.data, self.batch = family, model, data, batch
        self.bf16, self.seed = bf16, seed
        self.alignment = Alignment(family)
        self.packing = functools.cache(functools.partial(Packing, family, model))

    def autocast(self) -> torch.autocast:
        """A context of bfloat16 autocast, if it is used."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    def batches(self, stage: int) -> Iterator[tuple[int, Tensor]]:
        """Batches of a stage: index of a size, and indices of scenes."""
        return batches(self.data, self.batch, torch.Generator().manual_seed(1000 * self.seed + stage))

    def answers(self, tokens: Tensor, part: Data, i: Tensor, pairs: bool) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Answers of a batch.

        Args:
            tokens: visual tokens of the images, (B, N, D).
            part: scenes of one size.
            i: indices of the images' scenes in it.
            pairs: whether to ask about the first half of the images paired with the second, or about single images.

        Returns:
            The loss, hidden states of the questions after half of the layers, and exact match by type of question.
        """
        if pairs:
            half = len(i) // 2
            ids, targets = pair_questions(self.family, part.kinds[i[:half]], part.kinds[i[half:]])
            tokens = torch.cat([tokens[:half], tokens[half:]], 1)
            packing = self.packing(2, part.size, len(SHAPES))
            types = torch.full(ids.shape[:2], TYPES.index(PAIR))
        else:
            ids, targets, types = part.ids[i], part.targets[i], part.types[i]
            packing = self.packing(1, part.size, QUESTIONS_PER_IMAGE)
        with self.autocast():
            logits, halfway = packing(self.model, tokens, ids)
        return answer_loss(logits, targets), halfway, _by_type(answered(logits, targets), types)

    def align(self, tokens: Tensor, part: Data, i: Tensor) -> Tensor:
        """The alignment loss of visual tokens (B, N, D)."""
        return self.alignment.loss(tokens, part.labels[i], self.model.get_input_embeddings().weight, part.size)

    def tower(self, heads: TowerHeads, steps: int) -> list[dict[str, Any]]:
        """The first stage; returns the rows of its curve."""
        named = [*self.family.tower_parameters(self.model), *heads.named_parameters()]
        optimizer, curve, draws = Optimizer(named, steps), Curve("tower", steps), self.batches(0)
        for step in curve.bar:
            k, i = next(draws)
            part = self.data[k]
            with self.autocast():
                features, pooled = self.family.tower(self.model, part.images[i])
                patch, accuracy = heads.patch_loss(features, part.labels[i])
                place = heads.place_loss(features, part.size)
                picture = heads.picture_loss(pooled, part.contents[i])
            optimizer.step(patch + place + picture)
            names = ("colour", "kind", "character", "slot", "key")
            losses = dict(patch=patch.item(), place=place.item(), picture=picture.item())
            curve.add(step, **losses, **dict(zip(names, accuracy, strict=True)))
        return curve.rows

    @torch.no_grad()
    def features(self, data: list[Data]) -> list[Tensor]:
        """The tower's features of all scenes, float16 (n, N, D) for each size."""
        out = []
        for part in data:
            with self.autocast():
                chunks = [
                    self.family.tower(self.model, x, pooled=False)[0].half() for x in part.images.split(self.batch)
                ]
            out.append(torch.cat(chunks))
        return out

    def language(self, steps: int) -> list[dict[str, Any]]:
        """The second stage; returns the rows of its curve."""
        features = self.features(self.data)
        attend_to_likes(self.model)
        grounding = Grounding(self.model.config.text_config.hidden_size)
        frozen = {id(p) for _, p in self.family.tower_parameters(self.model)}
        named = [(n, p) for n, p in self.model.named_parameters() if id(p) not in frozen]
        optimizer = Optimizer([*named, *grounding.named_parameters()], steps, pace=0.5)
        curve, draws = Curve("language", steps), self.batches(1)
        for step in curve.bar:
            k, i = next(draws)
            part, pairs = self.data[k], step % _PAIRS == 0
            with self.autocast():
                tokens = self.family.project(self.model, features[k][i].float())
            answer, halfway, figures = self.answers(tokens, part, i, pairs)
            align = self.align(tokens, part, i)
            loss = answer + 0.3 * align
            if not pairs:
                ground, figures["grounded"] = grounding.loss(halfway, part.named[i])
                loss = loss + 0.3 * ground
            optimizer.step(loss)
            curve.add(step, answer=answer.item(), align=align.item(), **figures)
        return curve.rows

    @torch.no_grad()
    def validate(self, n: int = 960) -> dict[str, float]:
        """Exact match on `n` validation scenes, teacher-forced, by type of question."""
        data = make_data(self.family, "validation", n)
        hits: dict[str, list[float]] = {t: [] for t in TYPES}
        for part, features in zip(data, self.features(data), strict=True):
            for i in torch.arange(len(features) // 2 * 2).split(32):
                with self.autocast():
                    tokens = self.family.project(self.model, features[i].float())
                for pairs in (False, True):
                    for name, share in self.answers(tokens, part, i, pairs)[2].items():
                        if share == share:
                            hits[name].append(share)
        return {name: float(np.mean(shares)) for name, shares in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("llava", "qwen"), default="llava")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, processor and training.json")
    parser.add_argument("--steps", type=int, nargs=2, default=[2000, 3000], metavar=("TOWER", "LANGUAGE"))
    parser.add_argument("--scenes", type=int, default=40_000, help="training scenes")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast; which is faster depends on the CPU")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers: a third faster, needs a C++ compiler"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)  # saturated heads have denormal gradients, with which a CPU is three times as slow
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    family = minivlm.family(args.model)
    model: Any = family.build_model()
    heads = TowerHeads(model.config.text_config.hidden_size)  # the width of the tower's visual tokens too
    if args.compile:
        for layer in family.layers(model):
            layer.compile()
    checkpoint = args.out / "checkpoint.pt"
    args.out.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = {"stages": 0, "curve": [], "seconds": 0.0}
    if checkpoint.exists():
        done = torch.load(checkpoint)
        model.load_state_dict(done.pop("model"))
        heads.load_state_dict(done.pop("heads"))
        logger.info("resuming after %d stages", done["stages"])
    trainer = Trainer(family, model, make_data(family, "train", args.scenes), args.batch, args.seed, not args.fp32)
    stages = (
        lambda: trainer.tower(heads, args.steps[0]),
        lambda: trainer.language(args.steps[1]),
    )
    for stage in range(done["stages"], len(stages)):
        torch.manual_seed(args.seed)  # so that a resumed run equals an uninterrupted one
        start = time.time()
        done["curve"] += stages[stage]()
        done["seconds"] += time.time() - start
        done["stages"] = stage + 1
        torch.save({**done, "model": model.state_dict(), "heads": heads.state_dict()}, checkpoint)

    figures = {k: round(v, 4) for k, v in trainer.validate().items()}
    logger.info("validation: %s", figures)
    family.save(model, args.out)
    steps = " ".join(map(str, args.steps))
    record = {
        "command": f"python -m {__package__}.train --model {args.model} --out eval/minivlm/weights/{args.model}"
        f" --steps {steps} --scenes {args.scenes} --batch {args.batch} --seed {args.seed} --threads {args.threads}"
        + " --fp32" * args.fp32
        + " --compile" * args.compile,
        "machine": device_and_threads(describe("cpu")),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": sum(p.numel() for p in model.parameters()),
        "wall_minutes": round(done["seconds"] / 60, 1),
        "validation_exact_match": figures,
        "curve": done["curve"],
    }
    write_json(args.out / "training.json", record)
    checkpoint.unlink()


if __name__ == "__main__":
    main()
