"""What a model is asked: a conversation with pictures or videos, and right answers if there are any."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..images import open_image

#: Something that names, is or gives a picture: a file, an address, a PIL image, or a function without arguments that
#: returns one, which is called whenever the picture is needed.
Picture = str | os.PathLike[str] | Image.Image | Callable[[], Image.Image]


@dataclass(frozen=True)
class Prompt:
    """One question, or a conversation that the model is to answer.

    Args:
        question: what is asked about the pictures; empty with `messages`.
        images: its pictures in order, as `Picture` has it. They are opened when they are needed.
        videos: its videos in order: files or addresses, which PyAV decodes when they are needed.
        messages: the conversation as chat templates take it, in place of a question. Parts of type `image` and `video`
            without a source take `images` and `videos` in turn.
        answers: right answers, any of which counts; empty: unknown.

    Raises:
        ValueError: neither a question nor messages, or both; more or fewer places for pictures than pictures.
    """

    question: str = ""
    images: tuple[Picture, ...] = ()
    videos: tuple[str, ...] = ()
    messages: Sequence[Mapping[str, Any]] | None = None
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("images", "videos", "answers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if bool(self.question) == bool(self.messages):
            raise ValueError("a prompt has either a question or messages")
        for kind, given in (("image", self.images), ("video", self.videos)):
            places = sum(1 for part in self._parts() if part.get("type") == kind and not _source(part))
            if self.messages and places != len(given):
                raise ValueError(
                    f"messages have {places} parts of type {kind} without a source, and {len(given)} are given"
                )

    def _parts(self) -> Iterator[Mapping[str, Any]]:
        for message in self.messages or ():
            content = message.get("content", "")
            if not isinstance(content, str):
                yield from content

    def conversation(self) -> list[dict[str, Any]]:
        """Messages with opened pictures, for `apply_chat_template`.

        Raises:
            CommandError: a picture is not there, or is none.
        """
        images, videos = iter(self.images), iter(self.videos)
        if not self.messages:
            content: list[dict[str, Any]] = [{"type": "image", "image": _opened(each)} for each in images]
            content += [{"type": "video", "video": each} for each in videos]
            return [{"role": "user", "content": [*content, {"type": "text", "text": self.question}]}]
        return [
            {
                **message,
                "content": [{"type": "text", "text": message["content"]}]
                if isinstance(message["content"], str)
                else [_filled(part, images, videos) for part in message["content"]],
            }
            for message in self.messages
        ]

    @property
    def has_videos(self) -> bool:
        """Whether there is a video among its parts."""
        return bool(self.videos) or any(part.get("type") == "video" for part in self._parts())

    def sources(self) -> list[Picture]:
        """All its pictures and videos, those in its messages included."""
        named = [_source(part) for part in self._parts() if part.get("type") in ("image", "video")]
        return [*self.images, *self.videos, *(each for each in named if each)]

    def digest(self) -> str:
        """A hash of what is asked and of the content of its files; of what has an address, the address counts."""
        told = json.dumps([self.question, self.messages, self.answers], default=str)
        return hashlib.sha256("".join([told, *map(_digest, self.sources())]).encode()).hexdigest()


def digest(prompts: Sequence[Prompt]) -> str:
    """A hash of all that is asked, in order."""
    return hashlib.sha256("".join(prompt.digest() for prompt in prompts).encode()).hexdigest()


def shared_sources(prompts: Sequence[Prompt]) -> int:
    """How many prompts have a picture or a video that an earlier one has."""
    seen: set[str] = set()
    shared = 0
    for prompt in prompts:
        found = {_digest(each) for each in prompt.sources()}
        shared += bool(found & seen)
        seen |= found
    return shared


def _source(part: Mapping[str, Any]) -> Any:
    """What a part of a message says about where its picture or video is; None: nothing."""
    return next((part[key] for key in (part.get("type", ""), "url", "path") if part.get(key) is not None), None)


def _filled(part: Mapping[str, Any], images: Iterator[Picture], videos: Iterator[str]) -> dict[str, Any]:
    """A part of a message with its picture or video."""
    kind = part.get("type")
    if kind == "image":
        source = _source(part)
        return {"type": "image", "image": _opened(next(images) if source is None else source)}
    if kind == "video":
        source = _source(part)
        return {"type": "video", "video": next(videos) if source is None else source}
    return dict(part)


def _opened(picture: Picture) -> Image.Image:
    if callable(picture):
        picture = picture()
    return picture.convert("RGB") if isinstance(picture, Image.Image) else open_image(picture)


def _digest(source: Picture) -> str:
    if callable(source):
        source = source()
    if isinstance(source, Image.Image):
        return hashlib.sha256(f"{source.mode}{source.size}".encode() + source.tobytes()).hexdigest()
    name = os.fspath(source)
    if not os.path.isfile(name):
        return hashlib.sha256(name.encode()).hexdigest()
    found = hashlib.sha256()
    with open(name, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
