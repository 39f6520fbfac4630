"""Questions to the embedded models, and their answers under a setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..patches import Record
from .minivlm import prompt
from .minivlm.questions import Question, ask
from .minivlm.scenes import SEEDS, draw_scene
from .setting import PruningSetting

BATCH = 16
#: Types of questions of the demo and of the embedded tasks of lmms-eval: about one image each.
TYPES = ("exists", "colour", "shape", "where", "count", "letter")


@dataclass(frozen=True)
class Sample:
    """A question about one scene or more, or about what else has an `image`, which may be a video's frames."""

    scenes: tuple[Any, ...]
    question: Question

    @property
    def scene(self) -> Any:
        """The first scene."""
        return self.scenes[0]

    @property
    def images(self) -> list[np.ndarray]:
        """One image per scene, uint8 (height, width, 3), or a video, (frames, height, width, 3)."""
        return [scene.image for scene in self.scenes]

    @property
    def is_video(self) -> bool:
        """Whether the question is about a video."""
        return self.scene.image.ndim == 4


@dataclass
class Answers:
    """A model's answers under a setting.

    Attributes:
        texts: per sample.
        records: per sample, the pruning records of its images.
        kept: visual tokens per sample, averaged over decoder layers.
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
        samples += [Sample((scene,), question) for question in ask(scene, seed, types=TYPES)]
        seed += 1
    return samples[:n]


def encode(processor: Any, samples: Sequence[Sample], images: Sequence[Sequence[np.ndarray]], **kwargs: Any) -> Any:
    """Model inputs of a batch of questions.

    Args:
        processor: of an embedded model.
        samples: the questions, all about images or all about a video each.
        images: of each sample, uint8 (height, width, 3), or (frames, height, width, 3).
        **kwargs: further arguments for the processor, which videos do not need.
    """
    if samples[0].is_video:
        from .minivlm.qwen_pages.inputs import clip_inputs

        return clip_inputs(processor, [s.question.text for s in samples], [of_sample[0] for of_sample in images])
    texts = [
        processor.apply_chat_template(prompt(s.question.text, len(s.scenes)), add_generation_prompt=True)
        for s in samples
    ]
    flat = [image for of_sample in images for image in of_sample]
    return processor(images=flat, text=texts, padding=True, return_tensors="pt", **kwargs)


def question_inputs(model: Any, processor: Any, picture: Any, question: str) -> Any:
    """Model inputs of a question about a picture, a PIL image in RGB, by the chat template of any checkpoint."""
    message = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}
    return processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device, model.dtype)


def encode_for(setting: PruningSetting, processor: Any, samples: Sequence[Sample]) -> Any:
    """Model inputs of a batch of questions under a setting."""
    images, kwargs = setting.prepare(processor, [sample.images for sample in samples])
    return encode(processor, samples, images, **kwargs)


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    setting: PruningSetting,
    tick: Callable[[int], None] = lambda count: None,
    batch: int = BATCH,
) -> Answers:
    """Greedy answers, by the processor and `generate()`.

    Args:
        model: an embedded model, not pruned.
        processor: its processor.
        samples: the questions.
        setting: how the model is pruned.
        tick: receives the number of questions answered, after each batch.
        batch: questions in one call of `generate()`.
    """
    answers, n_layers = Answers(), len(model.model.language_model.layers)
    for i in range(0, len(samples), batch):
        part = samples[i : i + batch]
        inputs = encode_for(setting, processor, part)
        with setting.context(model):
            tokens = model.generate(**inputs)
            records = _by_sample(setting.records(model), len(part))
        answers.records += records
        known = [model.config.image_token_id, getattr(model.config, "video_token_id", model.config.image_token_id)]
        placeholders = torch.isin(inputs["input_ids"], torch.tensor(known)).sum(1).tolist()
        answers.kept += [
            sum(record.mean_tokens(n_layers) for record in of_sample) if of_sample else n
            for of_sample, n in zip(records, placeholders, strict=True)
        ]
        answers.texts += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        tick(len(part))
    return answers


def _by_sample(records: Sequence[Record], n: int) -> list[list[Record]]:
    """The records of each of the `n` samples of a batch."""
    grouped: list[list[Record]] = [[] for _ in range(n)]
    for record in records:
        grouped[record.sample].append(record)
    return grouped


def exact_matches(samples: Sequence[Sample], answers: Answers) -> np.ndarray:
    """Which answers are exactly right, bool (n,)."""
    return np.array([t.strip() == s.question.answer for t, s in zip(answers.texts, samples, strict=True)])
