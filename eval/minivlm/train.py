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
steps, and every draw is seeded. Matrices are trained with Muon, the rest with AdamW. The state is
saved every 200 steps, and the same command goes on with an interrupted run.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import minivlm
from ..files import write_json
from ..machine import pick_device
from .curve import Curve
from .data import QUESTIONS_PER_IMAGE, TYPES, Data, batches, make_data, pair_questions
from .drawing import SHAPES
from .losses import Alignment, Grounding, TowerHeads, answer_loss, answered
from .optimizer import Optimizer
from .packing import PACKED, Packing
from .placing import autocast, drawn_on_host, placed
from .questions import PAIR
from .record import record
from .resume import Checkpoint

logger = logging.getLogger(__name__)

STAGES = ("tower", "language")
Losses = Callable[[int, int, Tensor], tuple[Tensor, dict[str, float]]]
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


def _by_type(correct: Tensor, types: Tensor) -> dict[str, float]:
    return {t: correct[types == i].float().mean().item() for i, t in enumerate(TYPES)}


class Trainer:
    """The two stages of training of a model.

    Args:
        family: module of the embedded model.
        model: the model.
        data: training scenes of each size.
        args: options of the command.
        saved: where the state is saved, and restored from.
    """

    def __init__(self, family: ModuleType, model: Any, data: list[Data], args: argparse.Namespace, saved: Checkpoint):
        self.family, self.model, self.batch = family, model, args.batch
        self.seed, self.fast, self.saved = args.seed, args.fast, saved
        self.device = torch.device(args.device)
        self.data = [placed(part, self.device) for part in data]
        self.autocast = functools.partial(autocast, self.device, not args.fp32)
        self.alignment = Alignment(family)
        self.packing = functools.cache(functools.partial(Packing, family, model))

    def batches(self, stage: int) -> Iterator[tuple[int, Tensor]]:
        """Batches of a stage: index of a size, and indices of scenes."""
        draws = batches(self.data, self.batch, torch.Generator().manual_seed(1000 * self.seed + stage))
        return ((k, i.to(self.device)) for k, i in drawn_on_host(draws))

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
            kinds = part.kinds[i].cpu()
            ids, targets = (each.to(self.device) for each in pair_questions(self.family, kinds[:half], kinds[half:]))
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
        """The alignment loss of visual tokens (B, N, D), without the planes behind them."""
        embeddings = self.model.get_input_embeddings().weight
        return self.alignment.loss(tokens[..., : embeddings.shape[1]], part.labels[i], embeddings, part.size)

    def run(self, stage: str, optimizer: Optimizer, steps: int, own: nn.Module, losses: Losses) -> None:
        """Run a stage, from its start or from the step that was saved last.

        Args:
            stage: of `STAGES`.
            optimizer: of the stage.
            steps: of the stage.
            own: what is trained in this stage only.
            losses: from a step, the index of a size and indices of scenes to the loss and figures for the curve.
        """
        curve, draws = Curve(stage, steps), self.batches(STAGES.index(stage))
        done = self.saved.resume(curve, optimizer, own)
        for step, (k, i) in enumerate(itertools.islice(draws, steps)):
            if step < done:  # draws what was drawn before
                continue
            loss, figures = losses(step, k, i)
            optimizer.step(loss)
            curve.add(step, **figures)
            self.saved.step(step + 1, curve, optimizer, own)
        self.saved.finish(curve)

    def tower(self, heads: TowerHeads, steps: int) -> None:
        """The first stage."""
        named = [*self.family.tower_parameters(self.model), *heads.named_parameters()]

        def losses(step: int, k: int, i: Tensor) -> tuple[Tensor, dict[str, float]]:
            part = self.data[k]
            with self.autocast():
                features, pooled = self.family.tower(self.model, part.images[i])
                tokens, *planes = features.split(heads.width, -1)
                patch, accuracy = heads.patch_loss(tokens, part.labels[i])
                if planes:  # what the decoder has after it added them
                    patch = (patch + heads.patch_loss(sum(planes, tokens), part.labels[i])[0]) / 2
                place = heads.place_loss(tokens, part.size)
                picture = heads.picture_loss(pooled, part.contents[i])
            names = ("colour", "kind", "character", "slot", "key")
            figures = dict(patch=patch.item(), place=place.item(), picture=picture.item())
            return patch + place + picture, figures | dict(zip(names, accuracy, strict=True))

        self.run("tower", Optimizer(named, steps, batched=self.fast), steps, heads, losses)

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

    def language(self, steps: int) -> None:
        """The second stage."""
        features = self.features(self.data)
        if not self.saved.stage:
            attend_to_likes(self.model)
        grounding = Grounding(self.model.config.text_config.hidden_size)
        frozen = {id(p) for _, p in self.family.tower_parameters(self.model)}
        named = [(n, p) for n, p in self.model.named_parameters() if id(p) not in frozen]
        named += grounding.named_parameters()

        def losses(step: int, k: int, i: Tensor) -> tuple[Tensor, dict[str, float]]:
            part, pairs = self.data[k], step % _PAIRS == 0
            with self.autocast():
                tokens = self.family.project(self.model, features[k][i].float())
            answer, halfway, figures = self.answers(tokens, part, i, pairs)
            align = self.align(tokens, part, i)
            loss = answer + 0.3 * align
            if not pairs:
                ground, figures["grounded"] = grounding.loss(halfway, part.named[i])
                loss = loss + 0.3 * ground
            return loss, dict(answer=answer.item(), align=align.item(), **figures)

        self.run("language", Optimizer(named, steps, 0.5, self.fast), steps, grounding, losses)

    @torch.no_grad()
    def validate(self, n: int = 960) -> dict[str, float]:
        """Exact match on `n` validation scenes, teacher-forced, by type of question."""
        data = [placed(part, self.device) for part in make_data(self.family, "validation", n)]
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
    parser.add_argument("--model", choices=("llava", "qwen", "qwen3"), default="llava")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, processor and training.json")
    parser.add_argument("--steps", type=int, nargs=2, default=[2000, 3000], metavar=("TOWER", "LANGUAGE"))
    parser.add_argument("--scenes", type=int, default=40_000, help="training scenes")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where it is trained: cpu (default), cuda, ...")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16 autocast; which is faster depends on the CPU")
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers: a third faster, needs a C++ compiler"
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="skip scores that attention masks forbid, and orthogonalize matrices of one shape together, in float32",
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)  # saturated heads have denormal gradients, with which a CPU is three times as slow
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    with pick_device(args.device):
        _train(args)


def _train(args: argparse.Namespace) -> None:
    """Train and save a model; what is made here is on the default device."""
    family = minivlm.family(args.model)
    model: Any = family.build_model()
    heads = TowerHeads(model.config.text_config.hidden_size)  # the width of the tower's visual tokens too
    if args.compile:
        for layer in family.layers(model):
            layer.compile()
    if args.fast:
        model.set_attn_implementation({"text_config": PACKED})
    args.out.mkdir(parents=True, exist_ok=True)
    saved = Checkpoint(args.out / "checkpoint.pt", model=model, heads=heads)
    if saved.path.exists():
        logger.info("resuming after %d stages and %d steps", saved.done["stages"], saved.stage.get("steps", 0))
    trainer = Trainer(family, model, make_data(family, "train", args.scenes), args, saved)
    stages = (
        lambda: trainer.tower(heads, args.steps[0]),
        lambda: trainer.language(args.steps[1]),
    )
    for stage in range(saved.done["stages"], len(stages)):
        torch.manual_seed(args.seed)  # so that a resumed run equals an uninterrupted one
        stages[stage]()

    figures = {k: round(v, 4) for k, v in trainer.validate().items()}
    logger.info("validation: %s", figures)
    with torch.device("cpu"):
        family.save(model.to("cpu"), args.out)
    steps = " ".join(map(str, args.steps))
    command = (
        f"python -m {__package__}.train --model {args.model} --out eval/minivlm/weights/{args.model}"
        f" --steps {steps} --scenes {args.scenes} --batch {args.batch} --seed {args.seed} --threads {args.threads}"
        + f" --device {args.device}" * (args.device != "cpu")
        + " --fp32" * args.fp32
        + " --compile" * args.compile
        + " --fast" * args.fast
    )
    written = record(command, args.device, model, saved.done["seconds"], figures, saved.done["curve"])
    write_json(args.out / "training.json", written)
    saved.remove()


if __name__ == "__main__":
    main()
