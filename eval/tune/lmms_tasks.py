"""Prompts from a task of lmms-eval."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from ..errors import CommandError
from ..images import open_image
from ..lmms.harness import load_tasks
from .prompts import Prompt

#: What a name of prompts begins with that are those of a task.
PREFIX = "lmms:"
#: Of what the harness says a task is made.
_IMAGES, _VIDEOS = "image", "video"


def task_prompts(name: str) -> list[Prompt]:
    """The questions that lmms-eval would ask of a task, or of all tasks of a group.

    Pictures stay in the task's data set until they are needed. Targets that are texts, numbers or lists of them are
    right answers. Generation arguments and scores of the task are left out.

    Args:
        name: of the task or group.

    Raises:
        CommandError: lmms-eval is not installed, the data cannot be fetched, or the task does not ask about pictures
            and videos in one turn.
        ValueError: lmms-eval has no such task.
    """
    return [prompt for task in load_tasks(name) for prompt in _of_task(task)]


def _of_task(task: Any) -> Iterator[Prompt]:
    label, docs = task.config.task, task.eval_docs
    if task.config.output_type != "generate_until":
        raise CommandError(
            f"task {label!r} has output type {task.config.output_type!r}; accepted: 'generate_until', tasks that are "
            "answered by text in one turn"
        )
    for i in range(len(docs)):
        doc = docs[i]
        messages = _messages(task, doc)
        images, videos = list[Any](), list[str]()
        told = [{**message, "content": [_part(part) for part in message["content"]]} for message in messages]
        for number, part in enumerate(_visuals(messages)):
            if part["type"] == _IMAGES:
                images.append(functools.partial(_picture, task, i, number))
            elif part["type"] == _VIDEOS and isinstance(part["url"], str):
                videos.append(part["url"])
            else:
                raise CommandError(
                    f"task {label!r}, question {i} has {part['type']} as {type(part['url']).__name__}; accepted: "
                    "pictures, and videos that are files"
                )
        yield Prompt(images=tuple(images), videos=tuple(videos), messages=told, answers=_answers(task, doc))


def _messages(task: Any, doc: Any) -> list[dict[str, Any]]:
    """The conversation, with content as a list of parts, whose pictures and videos have the key `url`."""
    from lmms_eval.protocol import ChatMessages

    return [message.model_dump() for message in ChatMessages(messages=task.doc_to_messages(doc)).messages]


def _visuals(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["content"] if part["type"] != "text"]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a prompt's message: the picture or video comes from its list."""
    return {"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": part["type"]}


def _picture(task: Any, row: int, number: int) -> Image.Image:
    """A picture of a question, by its number among the question's pictures and videos."""
    found = _visuals(_messages(task, task.eval_docs[row]))[number]["url"]
    return found if isinstance(found, Image.Image) else open_image(found)


def _answers(task: Any, doc: Any) -> tuple[str, ...]:
    """Right answers, none if the task has other targets."""
    target = task.doc_to_target(doc)
    listed = target if isinstance(target, list | tuple) else [target]
    return tuple(map(str, listed)) if all(isinstance(each, str | int | float) for each in listed) else ()
