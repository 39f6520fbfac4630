"""Train the miniature LLaVA for easy-VQA, on a CPU in minutes.

    python -m tokenprune.eval.minivlm.easy_vqa.train --out eval/minivlm/weights/easy-vqa

All of the model is trained at once on the answers to the questions of the training part, most questions of a picture in
one sequence. Pictures are mirrored at random. CLIP's pooled output has to tell colour and shape, so that CLS attention
is meaningful to the policies that read it. Nothing is pruned in training. Every tenth training picture is left out, for
validation.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from ... import minivlm
from ...files import write_json
from ...machine import describe, device_and_threads
from ..curve import Curve
from ..data import IGNORE, QA_LEN, encode_question
from ..losses import answer_loss, answered
from ..optimizer import Optimizer
from ..packing import PACKED, Packing
from .data import TASKS, picture, questions
from .words import COLOURS, SHAPES

_HELD_OUT = 10  # every tenth picture
QUESTIONS = 12  # of a picture; a few have more


class Data(NamedTuple):
    """Encoded pictures of the training part."""

    images: Tensor  # (n, 64, 64, 3) uint8
    ids: Tensor  # (n, QUESTIONS, QA_LEN) int16
    targets: Tensor  # likewise, IGNORE without a loss
    tasks: Tensor  # (n, QUESTIONS) int8, index into TASKS, -1 for an empty slot
    colours: Tensor  # (n,) index into COLOURS, IGNORE where no question tells it
    shapes: Tensor  # (n,) likewise


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
    return Data(*map(torch.from_numpy, (images, ids, targets, tasks, *told)))


class Contents(nn.Module):
    """Classifiers of colour and shape on CLIP's pooled output, used in training only.

    Args:
        width: of the pooled output.
    """

    def __init__(self, width: int):
        super().__init__()
        self.picture = nn.ModuleList(nn.Linear(width, len(names)) for names in (COLOURS, SHAPES))

    def loss(self, pooled: Tensor, colours: Tensor, shapes: Tensor) -> Tensor:
        """Loss of pooled outputs (B, D) against colours and shapes (B,)."""
        losses = [
            F.cross_entropy(head(pooled).float(), target, ignore_index=IGNORE)
            for head, target in zip(self.picture, (colours, shapes), strict=True)
        ]
        return losses[0] + losses[1]


def train(family: Any, model: Any, data: Data, kept: Tensor, args: argparse.Namespace) -> Curve:
    """Train on the pictures `kept`; returns the curve."""
    contents = Contents(model.config.text_config.hidden_size)
    packing = Packing(family, model, 1, family.SIZES[0], QUESTIONS)
    named = [*model.named_parameters(), *contents.named_parameters()]
    optimizer = Optimizer(named, args.steps, pace=0.5, batched=True)
    curve, generator = Curve("easy-vqa", args.steps), torch.Generator().manual_seed(args.seed)
    order: list[Tensor] = []
    for step in range(args.steps):
        if not order:
            shuffled = kept[torch.randperm(len(kept), generator=generator)]
            order = list(shuffled[: len(kept) // args.batch * args.batch].split(args.batch))
        i = order.pop()
        mirrored = torch.rand(len(i), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], data.images[i].flip(2), data.images[i])
        features, pooled = family.tower(model, images)
        logits, _ = packing(model, family.project(model, features), data.ids[i])
        answer = answer_loss(logits, data.targets[i])
        told = contents.loss(pooled, data.colours[i], data.shapes[i])
        optimizer.step(answer + 0.3 * told)
        curve.add(step, answer=answer.item(), contents=told.item(), **_by_task(logits, data, i))
    return curve


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
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_flush_denormal(True)  # as in the training of the others
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    family = minivlm.family("easy-vqa")
    model = family.build_model()
    model.set_attn_implementation({"text_config": PACKED})
    data, start = read_data(family), time.time()
    numbers = torch.arange(len(data.images))
    curve = train(family, model, data, numbers[numbers % _HELD_OUT != 0], args)
    seconds = time.time() - start
    figures = {k: round(v, 4) for k, v in validate(family, model, data, numbers[numbers % _HELD_OUT == 0]).items()}
    logging.info("validation: %s", figures)
    args.out.mkdir(parents=True, exist_ok=True)
    family.save(model, args.out)
    record = {
        "command": f"python -m {__package__}.train --out eval/minivlm/weights/easy-vqa"
        f" --steps {args.steps} --batch {args.batch} --seed {args.seed} --threads {args.threads}",
        "machine": device_and_threads(describe("cpu")),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": sum(p.numel() for p in model.parameters()),
        "wall_minutes": round(seconds / 60, 1),
        "validation_exact_match": figures,
        "curve": curve.rows,
    }
    write_json(args.out / "training.json", record)


if __name__ == "__main__":
    main()
