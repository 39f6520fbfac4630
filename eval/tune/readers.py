"""Prompts from files, JSON lines, a folder of pictures or a Hugging Face dataset on disk, and from lmms-eval."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import CommandError
from .lmms_tasks import PREFIX, task_prompts
from .prompts import Prompt

#: Asked about the pictures of a folder in turn, one about each.
QUESTIONS = (
    "What is shown in this picture? Answer in one sentence.",
    "What text can be read in this picture?",
    "How many people are in this picture?",
    "What is the main colour of this picture?",
    "What is in the background of this picture?",
)
_DATASET = ("dataset_info.json", "state.json")  # files of a dataset on disk
_SPLITS = "dataset_dict.json"
_LINES = (".jsonl", ".json", ".ndjson")
#: Keys of a row by what they give; the first that is there counts.
_KEYS = {
    "question": ("question", "prompt"),
    "messages": ("messages", "conversation"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "answers": ("answers", "answer"),
}


def read_prompts(source: str | Path, question: str | None = None) -> list[Prompt]:
    """The prompts of a file or folder, or of a task of lmms-eval.

    Args:
        source: JSON lines, a folder of pictures, or a folder that `Dataset.save_to_disk` wrote. A row has `question` or
            `messages`, and may have `image` or `images`, `video` or `videos`, and `answer` or `answers`. Paths in JSON
            lines are relative to their file. `lmms:NAME` is a task or a group of tasks.
        question: about each picture of a folder; None: those of `QUESTIONS` in turn.

    Raises:
        CommandError: there is no such file or folder, nothing is in it, or a row is no prompt; naming the row. Or as
            `lmms_tasks.task_prompts`.
        ValueError: lmms-eval has no such task.
        ImportError: a dataset, and the package datasets is not installed.
    """
    if isinstance(source, str) and source.startswith(PREFIX):
        return task_prompts(source.removeprefix(PREFIX))
    path = Path(source)
    if path.is_dir() and (path / _SPLITS).is_file():
        splits = sorted(each.name for each in path.iterdir() if (each / _DATASET[0]).is_file())
        raise CommandError(f"{path} has several splits; name one: {', '.join(str(path / each) for each in splits)}")
    if path.is_dir() and all((path / name).is_file() for name in _DATASET):
        prompts = list(_of_dataset(path))
    elif path.is_dir():
        prompts = _of_pictures(path, question)
    elif path.is_file():
        prompts = list(_of_lines(path))
    else:
        raise CommandError(f"{path}: no such file or folder")
    if not prompts:
        raise CommandError(f"{path} has no prompts")
    return prompts


def some_of(prompts: Sequence[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """So many prompts at random; None, or as many as there are: all, in order."""
    if count is None or count >= len(prompts):
        return list(prompts)
    chosen = np.random.default_rng(seed).choice(len(prompts), count, replace=False)
    return [prompts[i] for i in sorted(chosen)]


def _of_pictures(folder: Path, question: str | None) -> list[Prompt]:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not files:
        raise CommandError(f"{folder} has no pictures, and is no dataset that `save_to_disk` wrote")
    return [
        Prompt(QUESTIONS[i % len(QUESTIONS)] if question is None else question, (path,)) for i, path in enumerate(files)
    ]


def _of_lines(path: Path) -> Iterator[Prompt]:
    place: Callable[[Any], Any] = lambda source: (
        path.parent / source if isinstance(source, str) and not re.match(r"\w+:", source) else source
    )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is no text: {error}; accepted: {', '.join(_LINES)}, or a folder") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CommandError(f"{path}, line {number} is no JSON object: {error}") from None
        yield _prompt(row, f"{path}, line {number}", place)


def _of_dataset(path: Path) -> Iterator[Prompt]:
    import datasets

    dataset = datasets.load_from_disk(str(path))
    pictures = [name for name in (*_KEYS["images"],) if name in dataset.column_names]
    told = dataset.remove_columns(pictures)  # pictures stay on disk until they are needed
    stored = dataset.select_columns(pictures).with_format("arrow")
    for i in range(len(dataset)):
        row = dict(told[i])
        found = {name: each for name in pictures if (each := stored[i][name][0].as_py()) is not None}
        for name in list(found)[:1]:
            count = len(found[name]) if isinstance(found[name], list) else 1
            row["images"] = [functools.partial(_picture, dataset, i, name, number) for number in range(count)]
        yield _prompt(row, f"{path}, row {i}", lambda source: source)


def _picture(dataset: Any, row: int, column: str, number: int) -> Image.Image:
    found = dataset[row][column]
    return found[number] if isinstance(found, list) else found


def _prompt(row: Any, where: str, place: Callable[[Any], Any]) -> Prompt:
    """The prompt of a row.

    Args:
        row: as it was read.
        where: it was read, for messages.
        place: gives the source of a picture as it is opened.
    """
    if not isinstance(row, Mapping):
        raise CommandError(f"{where} is no JSON object")
    given = {name: next((row[key] for key in keys if row.get(key) is not None), None) for name, keys in _KEYS.items()}
    several = {name: _listed(given[name]) for name in ("images", "videos", "answers")}
    messages = given["messages"]
    if messages is not None:
        messages = [
            {**message, "content": [_placed(part, place) for part in message["content"]]}
            if isinstance(message, Mapping) and isinstance(message.get("content"), list)
            else message
            for message in messages
        ]
    try:
        return Prompt(
            question=given["question"] or "",
            images=tuple(map(place, several["images"])),
            videos=tuple(str(place(each)) for each in several["videos"]),
            messages=messages,
            answers=tuple(map(str, several["answers"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CommandError(f"{where}: {error}; a row has question or messages, and image or images") from None


def _placed(part: Any, place: Callable[[Any], Any]) -> Any:
    """A part of a message whose file is named as it is opened."""
    if not isinstance(part, Mapping) or part.get("type") not in ("image", "video"):
        return part
    return {key: place(value) if key in ("image", "video", "path") else value for key, value in part.items()}


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
