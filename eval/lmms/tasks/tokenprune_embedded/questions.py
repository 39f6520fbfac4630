"""The questions of `tokenprune demo` as tasks of the harness, one per type."""

from __future__ import annotations

from typing import Any

import datasets
from lmms_eval.api.task import ConfigurableMessagesTask

from tokenprune.eval.answers import held_out

QUESTIONS = 600  # of all types together, the demo's default


class EmbeddedTask(ConfigurableMessagesTask):
    """Questions of one type, the `dataset_name`. Scenes are drawn, so nothing is downloaded."""

    def __init__(self, config: dict[str, Any], **kwargs: Any) -> None:
        common = {
            "dataset_path": "tokenprune_embedded",
            "output_type": "generate_until",
            "test_split": "test",
            "doc_to_visual": _images,
            "doc_to_text": _question,
            "doc_to_target": "answer",
            "process_results": _score,
            "generation_kwargs": {"max_new_tokens": 8, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        super().__init__(config=common | {k: v for k, v in config.items() if k != "class"}, **kwargs)

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Draw the scenes. `index` is a question's index among those of all types."""
        rows = [
            {"index": i, "image": s.scene.image, "question": s.question.text, "answer": s.question.answer}
            for i, s in enumerate(held_out(QUESTIONS))
            if s.question.type == self.config.dataset_name
        ]
        features = datasets.Features(
            index=datasets.Value("int64"),
            image=datasets.Image(),
            question=datasets.Value("string"),
            answer=datasets.Value("string"),
        )
        split = datasets.Dataset.from_list(rows, features=features)
        self.dataset = datasets.DatasetDict({"test": split})
        self.dataset_no_image = datasets.DatasetDict({"test": split.remove_columns("image")})


def _images(doc: dict[str, Any]) -> list[Any]:
    return [doc["image"]]


def _question(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return doc["question"]


def _score(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    return {"exact_match": float(answers[0].strip() == doc["answer"])}
