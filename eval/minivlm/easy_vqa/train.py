"""Train the miniature LLaVA for easy-VQA, on a CPU in minutes, in the two stages of the others.

    python -m tokenprune.eval.minivlm.easy_vqa.train --out eval/minivlm/weights/easy-vqa

1. *tower*: the vision tower alone. Every visual token has to tell colour and shape of what it shows, or that it shows
   background, and CLIP's pooled output those of the picture, so that CLS attention is meaningful to the policies that
   read it. What is background follows from the pixels: it has one colour, which is the most frequent.
2. *language*: projector and language model on the features of the frozen tower, most questions of a picture in one
   sequence. With a tower that is trained on the answers, every token of the background tells them, and a policy could
   keep any.

Pictures are mirrored at random. Nothing is pruned in training. Every tenth training picture is left out, for
validation.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import minivlm
from ...files import write_json
from ...machine import pick_device
from .. import llava
from ..curve import Curve
from ..data import IGNORE, QA_LEN, encode_question
from ..drawing import PATCH
from ..losses import answer_loss, answered, named_loss
from ..optimizer import Optimizer
from ..packing import PACKED, Packing
from ..placing import drawn_on_host, placed
from ..record import record
from ..train import attend_to_likes
from .data import TASKS, picture, questions
from .words import COLOURS, SHAPES

_HELD_OUT = 10  # every tenth picture
ROWS = 64 // PATCH  # of visual tokens
QUESTIONS = 12  # of a picture; a few have more


class Data(NamedTuple):
    """Encoded pictures of the training part."""

    images: Tensor  # (n, 64, 64, 3) uint8
    ids: Tensor  # (n, QUESTIONS, QA_LEN) int16
    targets: Tensor  # likewise, IGNORE without a loss
    tasks: Tensor  # (n, QUESTIONS) int8, index into TASKS, -1 for an empty slot
    colours: Tensor  # (n,) index into COLOURS, IGNORE where no question tells it
    shapes: Tensor  # (n,) likewise
    objects: Tensor  # (n, 64) bool: visual tokens whose patch shows part of the shape


def read_data(family: Any) -> Data:
    """All training pictures with up to `QUESTIONS` of their questions."""
    rows = questions("train")
    n = max(number for _, number in rows) + 1
    shape = (n, QUESTIONS)
    ids, targets = np.zeros((*shape, QA_LEN), np.int16), np.full((*shape, QA_LEN), IGNORE, np.int16)
    tasks, told = np.full(shape, -1, np.int8), np.full((2, n), IGNORE)
    filled = np.zeros(n, int)
    for question, number in rows:
        for kind, (task, names) in enumerate((("colour", COLOURS), ("shape", SHAPES))):
            if question.type == task:
                told[kind, number] = names.index(question.answer)
        slot = filled[number]
        if slot < QUESTIONS:
            ids[number, slot], targets[number, slot] = encode_question(family, question.text, question.answer)
            tasks[number, slot] = TASKS.index(question.type)
            filled[number] += 1
    images = np.stack([picture("train", number).image for number in range(n)])
    objects = np.stack([shows_object(image) for image in images])
    return Data(*map(torch.from_numpy, (images, ids, targets, tasks, *told, objects)))


def shows_object(image: np.ndarray) -> np.ndarray:
    """Which patches show part of a shape, bool (64,): those in which a tenth of the pixels are not background.

    Args:
        image: uint8 (64, 64, 3).
    """
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    differs = (image != colours[counts.argmax()]).any(-1)
    rows = len(image) // PATCH
    return differs.reshape(rows, PATCH, rows, PATCH).mean((1, 3)).ravel() > 0.1


class Heads(nn.Module):
    """Classifiers of colour and shape on visual tokens and on CLIP's pooled output, used in training only.

    Args:
        width: of the tower.
    """

    def __init__(self, width: int):
        super().__init__()
        self.patch = nn.ModuleList(nn.Linear(width, len(names) + 1) for names in (COLOURS, SHAPES))
        self.picture = nn.ModuleList(nn.Linear(width, len(names)) for names in (COLOURS, SHAPES))

    def patch_loss(self, features: Tensor, objects: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
        """Loss of visual tokens.

        Args:
            features: (B, 64, D).
            objects: which of them show part of the shape, bool (B, 64).
            told: colours and shapes of the pictures, (B,) each.
        """
        loss = features.new_zeros(())
        for head, names in zip(self.patch, told, strict=True):
            target = torch.where(objects, names[:, None] + 1, 0)  # 0: background
            target = target.masked_fill(names[:, None] == IGNORE, -1)
            loss = loss + named_loss(head(features).flatten(0, 1), target.flatten())
        return loss

    def picture_loss(self, pooled: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
        """Loss of pooled outputs (B, D) against colours and shapes, (B,) each."""
        losses = [
            F.cross_entropy(head(pooled), names, ignore_index=IGNORE)
            for head, names in zip(self.picture, told, strict=True)
        ]
        return losses[0] + losses[1]


class Trainer:
    """The two stages of training.

    Args:
        family: module of the model.
        model: the model.
        data: all training pictures.
        kept: those to train on.
        args: options of the command.
    """

    def __init__(self, family: Any, model: Any, data: Data, kept: Tensor, args: argparse.Namespace):
        self.family, self.model, self.kept, self.args = family, model, kept, args
        self.device = torch.device(args.device)
        self.data = placed(data, self.device)
        self.packing = Packing(family, model, 1, family.SIZES[0], QUESTIONS)

    def batches(self, stage: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of a stage: numbers of pictures, the pictures, and which patches show an object; half of the pictures
        are mirrored."""
        for i, mirrored in drawn_on_host(self._draws(stage)):
            i, mirrored = i.to(self.device), mirrored.to(self.device)
            images, objects = self.data.images[i], self.data.objects[i].unflatten(1, (ROWS, ROWS))
            images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
            yield i, images, torch.where(mirrored[:, None, None], objects.flip(2), objects).flatten(1)

    def _draws(self, stage: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of pictures, and which of them are mirrored."""
        generator = torch.Generator().manual_seed(1000 * self.args.seed + stage)
        for _ in range(self.args.steps[stage]):
            i = self.kept[torch.randperm(len(self.kept), generator=generator)[: self.args.batch]]
            yield i, torch.rand(len(i), generator=generator) < 0.5

    def tower(self) -> list[dict[str, Any]]:
        """The first stage; returns the rows of its curve."""
        heads, steps = Heads(self.model.config.vision_config.hidden_size), self.args.steps[0]
        named = [*llava.tower_parameters(self.model), *heads.named_parameters()]
        optimizer, curve = Optimizer(named, steps, batched=True), Curve("tower", steps)
        for step, (i, images, objects) in enumerate(self.batches(0)):
            features, pooled = self.family.tower(self.model, images)
            told = (self.data.colours[i], self.data.shapes[i])
            patch, picture = heads.patch_loss(features, objects, told), heads.picture_loss(pooled, told)
            optimizer.step(patch + picture)
            curve.add(step, patch=patch.item(), picture=picture.item())
        return curve.rows

    def answers(self, images: Tensor, i: Tensor) -> Tensor:
        """Logits of the questions about pictures `i`, on the features of the frozen tower."""
        with torch.no_grad():
            features = self.family.tower(self.model, images, pooled=False)[0]
        return self.packing(self.model, self.family.project(self.model, features), self.data.ids[i])[0]

    def language(self) -> list[dict[str, Any]]:
        """The second stage; returns the rows of its curve."""
        frozen, steps = {id(p) for _, p in llava.tower_parameters(self.model)}, self.args.steps[1]
        named = [(n, p) for n, p in self.model.named_parameters() if id(p) not in frozen]
        optimizer, curve = Optimizer(named, steps, 0.5, batched=True), Curve("language", steps)
        attend_to_likes(self.model)
        for step, (i, images, _) in enumerate(self.batches(1)):
            logits = self.answers(images, i)
            loss = answer_loss(logits, self.data.targets[i])
            optimizer.step(loss)
            curve.add(step, answer=loss.item(), **_by_task(logits, self.data, i))
        return curve.rows

    @torch.no_grad()
    def validate(self, left_out: Tensor) -> dict[str, float]:
        """Exact match on the pictures `left_out`, teacher-forced, by task."""
        logits = [self.answers(self.data.images[i], i) for i in left_out.split(50)]
        return _by_task(torch.cat(logits), self.data, left_out)


def _by_task(logits: Tensor, data: Data, i: Tensor) -> dict[str, float]:
    right = answered(logits, data.targets[i])
    return {task: right[data.tasks[i] == k].float().mean().item() for k, task in enumerate(TASKS)}


@torch.no_grad()
def validate(family: Any, model: Any, data: Data, left_out: Tensor) -> dict[str, float]:
    """Exact match on the pictures `left_out`, teacher-forced, by task."""
    packing = Packing(family, model, 1, family.SIZES[0], QUESTIONS)
    logits = [
        packing(model, family.project(model, family.tower(model, data.images[i], pooled=False)[0]), data.ids[i])[0]
        for i in left_out.split(50)
    ]
    return _by_task(torch.cat(logits), data, left_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, processor and training.json")
    parser.add_argument("--steps", type=int, nargs=2, default=[600, 1000], metavar=("TOWER", "LANGUAGE"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where it is trained: cpu (default), cuda, ...")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)  # as in the training of the others
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    with pick_device(args.device):
        _train(args)


def _train(args: argparse.Namespace) -> None:
    """Train and save the model; what is made here is on the default device."""
    family = minivlm.family("easy-vqa")
    model = family.build_model()
    model.set_attn_implementation({"text_config": PACKED})
    data, start = read_data(family), time.time()
    numbers = torch.arange(len(data.images), device="cpu")
    trainer = Trainer(family, model, data, numbers[numbers % _HELD_OUT != 0], args)
    curve = [*trainer.tower(), *trainer.language()]
    seconds = time.time() - start
    figures = {k: round(v, 4) for k, v in trainer.validate(numbers[numbers % _HELD_OUT == 0]).items()}
    logging.info("validation: %s", figures)
    args.out.mkdir(parents=True, exist_ok=True)
    with torch.device("cpu"):
        family.save(model.to("cpu"), args.out)
    command = (
        f"python -m {__package__}.train --out eval/minivlm/weights/easy-vqa"
        f" --steps {' '.join(map(str, args.steps))} --batch {args.batch} --seed {args.seed} --threads {args.threads}"
        + f" --device {args.device}"
        * (args.device != "cpu")
    )
    written = record(command, args.device, model, seconds, figures, curve)
    write_json(args.out / "training.json", written)


if __name__ == "__main__":
    main()
