"""Train the miniature LLaVA from scratch on procedural scenes, in three stages.

    python -m tokenprune.eval.minivlm.train --out eval/minivlm/weights

1. *tower*: the CLIP tower alone; every patch of the feature layer names its colour, shape and
   letter, and the pooled CLS output lists what is in the picture (so that CLS attention means
   something to the policies that read it);
2. *language*: projector and Llama on the frozen tower's features, with an auxiliary loss that aligns
   projected visual tokens with the embeddings of the words that name them;
3. *joint*: everything together, all losses.

Nothing is ever pruned in training. One sequence holds one picture and up to eight questions, each
blind to the others, so a picture is encoded once for eight answers. Lengths are in steps, not in
minutes, and every draw is seeded. Matrices are trained with Muon, the rest with AdamW.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from tqdm.auto import tqdm

from .model import N_VISUAL, PIXEL_MEAN, PIXEL_STD, build_model, build_processor, save
from .questions import QUESTION_TYPES, TOKEN_ID, ask
from .scenes import COLOUR_NAMES, COLUMNS, GRID, LETTERS, ROWS, SEEDS, SHAPES, draw_scene

logger = logging.getLogger(__name__)

QUESTIONS_PER_IMAGE = 8
QA_LEN = 13  # longest question with its answer, in tokens
_PREFIX = "USER:"  # what precedes the picture
_SUFFIX = " ASSISTANT:"


# ---------------------------------------------------------------- data


@dataclass
class Data:
    """Encoded scenes: images (n, 96, 96, 3) uint8, patch labels, questions and picture-level targets."""

    images: Tensor
    labels: Tensor  # (n, 3, 144) int8
    ids: Tensor  # (n, 8, QA_LEN) int16
    targets: Tensor  # (n, 8, QA_LEN) int16, -100 where no loss
    types: Tensor  # (n, 8) int8, -1 for an empty slot
    contents: Tensor  # (n, n_contents) uint8


def _contents(scene) -> np.ndarray:
    """Which colour-shape pairs and colour-letter pairs the picture holds."""
    pairs = np.zeros((len(COLOUR_NAMES), len(SHAPES) + len(LETTERS)), np.uint8)
    for s in scene.shapes:
        pairs[COLOUR_NAMES.index(s.colour), SHAPES.index(s.kind)] = 1
    for t in scene.tiles:
        pairs[COLOUR_NAMES.index(t.colour), len(SHAPES) + LETTERS.index(t.letter)] = 1
    return pairs.ravel()


@functools.cache
def _tokenizer():
    return build_processor().tokenizer


def _encode(job: tuple[int, bool]):
    seed, crowded = job
    scene = draw_scene(seed, crowded)
    tokenizer = _tokenizer()
    ids = np.full((QUESTIONS_PER_IMAGE, QA_LEN), TOKEN_ID["<pad>"], np.int16)
    targets = np.full_like(ids, -100)
    types = np.full(QUESTIONS_PER_IMAGE, -1, np.int8)
    for i, q in enumerate([] if crowded else ask(scene, seed, QUESTIONS_PER_IMAGE)):
        asked = tokenizer(f"{q.text}{_SUFFIX}", add_special_tokens=False).input_ids
        answer = tokenizer(q.answer, add_special_tokens=False).input_ids + [TOKEN_ID["</s>"]]
        ids[i, : len(asked) + len(answer)] = asked + answer
        targets[i, len(asked) : len(asked) + len(answer)] = answer
        types[i] = QUESTION_TYPES.index(q.type)
    return scene.image, scene.labels.reshape(3, -1), ids, targets, types, _contents(scene)


def make_data(split: str, n: int, workers: int = 2) -> Data:
    """Draw and encode the first `n` scenes of a split."""
    jobs = [(SEEDS[split] + i, split == "crowded") for i in range(n)]
    with ProcessPoolExecutor(workers) as pool:
        rows = list(tqdm(pool.map(_encode, jobs, chunksize=64), total=n, desc=f"drawing {split}"))
    return Data(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(n, generator=generator)[: n // size * size].view(-1, size)


def _pixels(images: Tensor) -> Tensor:
    return (images.permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


# ---------------------------------------------------------------- losses


class TowerHeads(nn.Module):
    """Training-only classifiers on the vision tower; not shipped."""

    def __init__(self, width: int):
        super().__init__()
        sizes = (len(COLOUR_NAMES) + 1, len(SHAPES) + 2, len(LETTERS) + 1)
        self.patch = nn.ModuleList(nn.Linear(width, n) for n in sizes)
        self.picture = nn.Linear(width, len(COLOUR_NAMES) * (len(SHAPES) + len(LETTERS)))

    def patch_loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """Loss of (B, 144, D) features against (B, 3, 144) labels, and accuracy on labelled patches."""
        loss, accuracy = features.new_zeros(()), []
        for i, head in enumerate(self.patch):
            logits, target = head(features).flatten(0, 1), labels[:, i].flatten().long()
            weight = logits.new_ones(logits.shape[1])
            weight[0] = 0.2  # most patches are background
            loss = loss + F.cross_entropy(logits, target, weight, ignore_index=-1)
            named = target > 0
            accuracy.append((logits.argmax(1) == target)[named].float().mean().item())
        return loss, accuracy

    def picture_loss(self, pooled: Tensor, contents: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(self.picture(pooled), contents.float(), reduction="none")
        return loss.sum(1).mean() / 6


_WORDS = [torch.tensor([TOKEN_ID[w] for w in words]) for words in (COLOUR_NAMES, SHAPES, LETTERS)]
_PLACES = [
    (torch.tensor([TOKEN_ID[w] for w in ROWS]), torch.arange(N_VISUAL) // GRID // 4),
    (torch.tensor([TOKEN_ID[w] for w in COLUMNS]), torch.arange(N_VISUAL) % GRID // 4),
]


def alignment_loss(tokens: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
    """Projected visual tokens (B, 144, D) should point at the embeddings of the words for them."""

    def similarity(words: Tensor) -> Tensor:
        e = embeddings[words]
        return (F.rms_norm(tokens, tokens.shape[-1:]) @ F.rms_norm(e, e.shape[-1:]).T / 6).flatten(0, 1)

    loss = tokens.new_zeros(())
    for i, words in enumerate(_WORDS):
        logits = F.pad(similarity(words), (1, 0))  # class 0, background: logit 0
        target = labels[:, i].flatten().long()
        target = target.masked_fill(target > len(words), -1)  # a tile is a shape without a word
        weight = logits.new_ones(logits.shape[1])
        weight[0] = 0.2
        loss = loss + F.cross_entropy(logits, target, weight, ignore_index=-1)
    for words, place in _PLACES:
        loss = loss + 0.5 * F.cross_entropy(similarity(words), place.repeat(len(tokens)))
    return loss


class Packing:
    """Mask and positions of one picture followed by eight questions that do not see each other."""

    def __init__(self) -> None:
        prefix = build_processor().tokenizer(_PREFIX).input_ids
        self.prefix = torch.tensor(prefix)
        start = len(prefix) + N_VISUAL
        block = torch.full((start + QUESTIONS_PER_IMAGE * QA_LEN,), -1)
        block[start:] = torch.arange(QUESTIONS_PER_IMAGE).repeat_interleave(QA_LEN)
        order = torch.arange(len(block))
        seen = (order[None] <= order[:, None]) & ((block[None] == -1) | (block[None] == block[:, None]))
        self.mask = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        answers = (start + torch.arange(QA_LEN)).repeat(QUESTIONS_PER_IMAGE)
        self.positions = torch.cat([torch.arange(start), answers])[None]

    def logits(self, model, tokens: Tensor, ids: Tensor) -> Tensor:
        """Next-token logits of the questions, (B, 8, QA_LEN, V)."""
        embed = model.get_input_embeddings()
        prefix = embed(self.prefix).expand(len(ids), -1, -1)
        hidden = model.model.language_model(
            inputs_embeds=torch.cat([prefix, tokens, embed(ids.flatten(1).long())], 1),
            attention_mask=self.mask,
            position_ids=self.positions,
            use_cache=False,
        ).last_hidden_state
        return model.lm_head(hidden[:, prefix.shape[1] + tokens.shape[1] :]).unflatten(1, ids.shape[1:])


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :, :-1].flatten(0, 2), targets[:, :, 1:].flatten().long(), ignore_index=-100)


def answered(logits: Tensor, targets: Tensor) -> Tensor:
    """Exact match per question, end of answer included (B, 8): what greedy decoding would score."""
    target = targets[:, :, 1:].long()
    return ((logits[:, :, :-1].argmax(-1) == target) | (target == -100)).all(-1)


# ---------------------------------------------------------------- training


class Optimizer:
    """Muon for hidden matrices, AdamW for the rest, one warm-up and linear decay for both."""

    def __init__(self, named, steps: int, scale: float = 1.0):
        named = [(name, p) for name, p in named if p.requires_grad]
        special = ("embed", "lm_head", "position", "patch.", "picture.")
        matrices = [p for n, p in named if p.ndim == 2 and not any(s in n for s in special)]
        chosen = {id(p) for p in matrices}
        self.rest = [p for _, p in named if id(p) not in chosen]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=0.02 * scale, weight_decay=0.02),
            torch.optim.AdamW(self.rest, lr=3e-3 * scale, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        schedule = lambda i: min(1, (i + 1) / (0.03 * steps)) * min(1, max(0.02, (1 - i / steps) / 0.55))
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, schedule) for o in self.optimizers]

    def step(self, loss: Tensor) -> None:
        for o in self.optimizers:
            o.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.rest, 1.0)
        for o, s in zip(self.optimizers, self.schedules, strict=True):
            o.step()
            s.step()


class Curve:
    """Means of the logged figures over each stretch of steps."""

    def __init__(self, stage: str, steps: int, every: int = 50):
        self.bar = tqdm(range(steps), desc=stage, mininterval=5)
        self.stage, self.every, self.start = stage, every, time.time()
        self.recent: list[dict[str, float]] = []
        self.rows: list[dict] = []

    def add(self, step: int, **figures: float) -> None:
        self.recent.append(figures)
        if (step + 1) % self.every:
            return
        mean = {k: float(np.nanmean([r.get(k, np.nan) for r in self.recent])) for k in self.recent[-1]}
        self.recent = []
        row = {"stage": self.stage, "step": step + 1, "seconds": round(time.time() - self.start)}
        self.rows.append(row | {k: round(v, 4) for k, v in mean.items()})
        logger.info("%s", self.rows[-1])


def _by_type(correct: Tensor, types: Tensor) -> dict[str, float]:
    return {t: correct[types == i].float().mean().item() for i, t in enumerate(QUESTION_TYPES)}


def _tower(model, images: Tensor, full: bool = True) -> tuple[Tensor, Tensor | None]:
    """Features of the layer that feeds the projector, and the pooled CLS output."""
    tower = model.model.vision_tower
    if full:
        out = tower(_pixels(images), output_hidden_states=True)
        return out.hidden_states[-2][:, 1:], out.pooler_output
    hidden = tower.pre_layrnorm(tower.embeddings(_pixels(images)))
    for layer in tower.encoder.layers[:-1]:  # what lies above the feature layer is not needed
        hidden = layer(hidden, None)
    return hidden[:, 1:], None


def train_tower(model, heads, data: Data, crowded: Data, steps: int, batch: int, generator) -> list[dict]:
    tower = model.model.vision_tower
    named = list(tower.named_parameters()) + list(heads.named_parameters())
    optimizer, curve = Optimizer(named, steps), Curve("tower", steps)
    natural_batches = _batches(len(data.images), batch, generator)
    crowded_batches = _batches(len(crowded.images), batch, generator)
    for step in curve.bar:
        natural = step % 4 == 3 or step > 0.8 * steps
        source, i = (data, next(natural_batches)) if natural else (crowded, next(crowded_batches))
        features, pooled = _tower(model, source.images[i], full=natural)
        loss, accuracy = heads.patch_loss(features, source.labels[i])
        figures = dict(patch=loss.item(), colour=accuracy[0], shape=accuracy[1], letter=accuracy[2])
        figures["picture"] = float("nan")
        if natural:
            picture = heads.picture_loss(pooled, source.contents[i])
            figures["picture"] = picture.item()
            loss = loss + picture
        optimizer.step(loss)
        curve.add(step, **figures)
    return curve.rows


def train_language(model, data: Data, steps: int, batch: int, generator) -> list[dict]:
    with torch.no_grad():
        features = torch.cat([_tower(model, images)[0].half() for images in data.images.split(128)])
    named = [(n, p) for n, p in model.named_parameters() if "vision_tower" not in n]
    optimizer, curve, packing = Optimizer(named, steps), Curve("language", steps), Packing()
    batches = _batches(len(features), batch, generator)
    for step in curve.bar:
        i = next(batches)
        tokens = model.model.multi_modal_projector(features[i].float())
        align = alignment_loss(tokens, data.labels[i], model.get_input_embeddings().weight)
        logits = packing.logits(model, tokens, data.ids[i])
        answer = answer_loss(logits, data.targets[i])
        optimizer.step(answer + 0.3 * align)
        correct = _by_type(answered(logits, data.targets[i]), data.types[i])
        curve.add(step, answer=answer.item(), align=align.item(), **correct)
    return curve.rows


def train_joint(model, heads, data: Data, steps: int, batch: int, generator) -> list[dict]:
    named = list(model.named_parameters()) + list(heads.named_parameters())
    optimizer, curve, packing = Optimizer(named, steps, scale=0.5), Curve("joint", steps), Packing()
    batches = _batches(len(data.images), batch, generator)
    for step in curve.bar:
        i = next(batches)
        features, pooled = _tower(model, data.images[i])
        patch, _ = heads.patch_loss(features, data.labels[i])
        picture = heads.picture_loss(pooled, data.contents[i])
        tokens = model.model.multi_modal_projector(features)
        align = alignment_loss(tokens, data.labels[i], model.get_input_embeddings().weight)
        logits = packing.logits(model, tokens, data.ids[i])
        answer = answer_loss(logits, data.targets[i])
        optimizer.step(answer + 0.3 * (align + patch + picture))
        correct = _by_type(answered(logits, data.targets[i]), data.types[i])
        curve.add(step, answer=answer.item(), patch=patch.item(), picture=picture.item(), **correct)
    return curve.rows


@torch.no_grad()
def validate(model, n: int = 500) -> dict[str, float]:
    """Exact match on validation scenes, teacher-forced, per type and over all questions."""
    data, packing = make_data("validation", n), Packing()
    parts = []
    for i in torch.arange(n).split(50):
        tokens = model.model.multi_modal_projector(_tower(model, data.images[i])[0])
        parts.append(answered(packing.logits(model, tokens, data.ids[i]), data.targets[i]))
    correct = torch.cat(parts)
    return _by_type(correct, data.types) | {"all": correct[data.types >= 0].float().mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, processor and training.json")
    parser.add_argument("--steps", type=int, nargs=3, default=[800, 1600, 500], metavar=("TOWER", "LANGUAGE", "JOINT"))
    parser.add_argument("--scenes", type=int, default=24_000, help="training scenes (and as many crowded ones)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    start = time.time()

    data, crowded = make_data("train", args.scenes), make_data("crowded", args.scenes)
    model: Any = build_model()
    heads = TowerHeads(model.config.vision_config.hidden_size)
    checkpoint = args.out / "checkpoint.pt"
    args.out.mkdir(parents=True, exist_ok=True)
    curve = train_tower(model, heads, data, crowded, args.steps[0], args.batch, generator)
    curve += train_language(model, data, args.steps[1], args.batch, generator)
    torch.save(model.state_dict(), checkpoint)
    logger.info("after language: %s", validate(model))
    curve += train_joint(model, heads, data, args.steps[2], args.batch, generator)

    figures = {k: round(v, 4) for k, v in validate(model).items()}
    logger.info("validation: %s", figures)
    save(model, args.out)
    checkpoint.unlink()
    record = {
        "command": "python -m tokenprune.eval.minivlm.train --out eval/minivlm/weights --steps "
        + " ".join(map(str, args.steps))
        + f" --scenes {args.scenes} --batch {args.batch} --seed {args.seed} --threads {args.threads}",
        "machine": f"{platform.machine()}, {args.threads} CPU threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "wall_minutes": round((time.time() - start) / 60, 1),
        "validation_exact_match": figures,
        "curve": curve,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
