"""easy-VQA: a data set of others, and the embedded model that was trained on it."""

import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tokenprune import cli
from tokenprune.eval.answers import answer, exact_matches
from tokenprune.eval.bench.tasks import asked, check
from tokenprune.eval.errors import CommandError
from tokenprune.eval.minivlm import NAMES, easy_vqa, load
from tokenprune.eval.minivlm.data import encode
from tokenprune.eval.minivlm.easy_vqa import data, train
from tokenprune.eval.setting import PruningSetting

trained = pytest.mark.skipif("easy-vqa" not in NAMES, reason="this checkout has no weights of easy-vqa")


@pytest.fixture
def package():
    """The data."""
    pytest.importorskip("easy_vqa")


@pytest.mark.parametrize(
    ("text", "answer", "kind"),
    [
        ("what color is the shape?", "gray", "colour"),
        ("what is the blue shape?", "circle", "shape"),
        ("is there a red shape in the image?", "no", "existence"),
        ("does the image not contain a circle?", "yes", "absence"),
        ("is no teal shape present?", "no", "absence"),
    ],
)
def test_kinds_of_questions(text, answer, kind):
    assert data.kind(text, answer) == kind


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    data.questions.cache_clear()
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(CommandError, match=r"needs the package easy-vqa, .*: pip install easy-vqa$"):
        check("easy-vqa", 4, "test", ["colour"])


@pytest.mark.usefixtures("package")
def test_all_questions_are_read():
    assert {part: len(data.questions(part)) for part in ("train", "test")} == {"train": 38575, "test": 9673}
    for question, _ in data.questions("test"):
        assert all(word in easy_vqa.IDS for word in data.split(f"{question.text} {question.answer}"))
    tokenizer = easy_vqa.build_processor().tokenizer
    for text in {question.text for question, _ in data.questions("test")[:500]}:
        assert encode(text, easy_vqa.IDS) == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", data.TASKS)
def test_a_task_asks_the_same_test_questions_each_time(task):
    some = asked("easy-vqa", task, 40)
    again = asked("easy-vqa", task, 20)
    assert [s.question for s in some][:20] == [s.question for s in again]
    assert all(np.array_equal(a.scene.image, b.scene.image) for a, b in zip(some, again, strict=False))
    rows = data.questions("test")
    for sample in some:
        numbers = [number for question, number in rows if question == sample.question]
        assert any(np.array_equal(data.picture("test", n).image, sample.scene.image) for n in numbers)
    assert {s.question.type for s in some} == {task}
    if task in data.BALANCED:
        assert Counter(s.question.answer for s in some) == {"yes": 20, "no": 20}


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("easy-vqa", 4, "test", ["counting"]), "--tasks counting: easy-vqa has colour, shape, existence, absence"),
        (("llava", 4, "test", ["colour"]), "--tasks colour: llava has attribute"),
        (("easy-vqa", 4, "validation", ["colour"]), "--split validation: easy-vqa has test questions only"),
        (("easy-vqa", 5000, "test", ["colour"]), "--samples 5000: of colour, easy-VQA has 1280 test questions"),
    ],
)
def test_what_it_does_not_have_is_refused(arguments, message):
    with pytest.raises(CommandError, match=message):
        check(*arguments)


@trained
@pytest.mark.usefixtures("package")
def test_answers_test_questions():
    for task in data.TASKS:
        some = asked("easy-vqa", task, 50)
        assert exact_matches(some, answer(*load("easy-vqa"), some, PruningSetting(), batch=50)).mean() >= 0.9


@trained
@pytest.mark.usefixtures("package")
def test_benchmark(tmp_path):
    cli.main(
        [
            "bench",
            "--model",
            "easy-vqa",
            "--policy",
            "divprune",
            "--keep",
            "0.1",
            "--samples",
            "2",
            "--out",
            str(tmp_path),
        ]
    )
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {(row["policy"], row["task"]) for row in rows} == {
        (policy, task)
        for policy in ("full", "random", "grid", "downsample", "divprune")
        for task in (*data.TASKS, "all")
    }
    assert {row["visual_tokens"] for row in rows} == {64, 6, 4}  # smaller pictures have 2 x 2


def test_what_patches_show():
    image = np.full((64, 64, 3), 240, np.uint8)
    image[8:20, 30:40] = 9  # rows 1 and 2 of patches; columns 3, in part, and 4
    assert train.shows_object(image).nonzero()[0].tolist() == [11, 12, 19, 20]


@pytest.mark.usefixtures("package")
def test_training_learns(tmp_path, monkeypatch):
    some = [row for row in data.questions("train") if row[1] < 40]
    monkeypatch.setattr(train, "questions", lambda part: some)
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), "--steps", "4", "4", "--batch", "8"])
    monkeypatch.setattr(train.Curve, "EVERY", 2)
    threads = torch.get_num_threads()
    try:
        train.main()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "training.json").read_text())
    first, second, third, last = record["curve"]
    assert second["patch"] < first["patch"] and last["answer"] < third["answer"]
    assert set(record["validation_exact_match"]) == set(data.TASKS)
    assert type(LlavaForConditionalGeneration.from_pretrained(tmp_path)) is LlavaForConditionalGeneration
