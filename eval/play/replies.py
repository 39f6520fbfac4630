"""What the page shows next, for what is chosen on it."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from PIL import Image

from ..errors import CommandError
from ..images import open_image
from . import choices, parts
from .drawing import View
from .session import Session

logger = logging.getLogger(__name__)


def opened(path: str) -> Image.Image:
    """A picture in RGB, turned as its EXIF orientation says.

    Raises:
        ValueError: the file is no picture, or is too large.
    """
    try:
        return open_image(path)
    except CommandError as error:
        raise ValueError("this file is no picture that can be read; choose a PNG, JPEG or WebP file") from error


class Replies:
    """Handlers of the page's events. What they return are values of components.

    Args:
        session: the model that answers.
    """

    def __init__(self, session: Session):
        self.session = session

    def ask(
        self, path: str | None, question: str, names: list[str], options: str, keep: float, positions: str
    ) -> list[Any]:
        """Ask full and pruned.

        Args:
            path: file of the picture; None if there is none.
            question: what to ask about it.
            names: of policies.
            options: of policies, as text.
            keep: keep ratio.
            positions: as in `apply_pruning`.

        Returns:
            A problem, the picture of kept tokens, the choice of layers, all pictures of kept tokens, answers, numbers.
        """
        try:
            if path is None:
                raise ValueError("there is no picture; upload one, take one with the camera, or choose an example")
            if not question.strip():
                raise ValueError("there is no question; type one")
            setting = choices.setting(names, options, keep, positions)
            found = self.session.compare(opened(path), question.strip(), setting)
        except (ValueError, TypeError) as error:
            return _problem(str(error) or repr(error))
        except Exception as error:  # whatever a model or a policy does, the page goes on
            logger.exception("no answer from %s", self.session.name)
            return _problem(f"the model could not answer: {error} ({type(error).__name__}; the log has more)")
        last = len(found.views) - 1
        layers = [(view.layers, i) for i, view in enumerate(found.views)]
        return [
            gr.HTML("", visible=False),
            self.kept(found.views, last),
            gr.Radio(layers, value=last, visible=last > 0),
            found.views,
            parts.answers(found),
            parts.numbers(found),
        ]

    def kept(self, views: list[View], i: int | None) -> gr.Image:
        """The picture of the tokens that some layers hold.

        Args:
            views: one for each choice of layers.
            i: which one.
        """
        if i is None or not 0 <= i < len(views):
            return gr.Image(None)
        text = f"Kept tokens in {views[i].layers}"
        return gr.Image(views[i].picture, label=text, alt_text=f"{text}. Dropped tokens are dark.")

    def example(self, i: int) -> tuple[Image.Image, str]:
        """Picture and question of an example."""
        example = self.session.examples[i]
        return example.picture, example.question

    def policies(self, names: list[str], options: str) -> tuple[str, str]:
        """A note about the chosen policies, and the options that fit them."""
        return parts.chosen([self.session.policies[name] for name in names]), choices.fitting(options, names)


def _problem(text: str) -> list[Any]:
    """What `Replies.ask` returns instead of an answer: one sentence."""
    first, *others = text.split()
    sentence = " ".join([first.capitalize() if first.islower() and first.isalpha() else first, *others])
    sentence += "." * (not sentence.endswith((".", "!", "?")))
    return [gr.HTML(parts.message(sentence), visible=True), gr.Image(None), gr.Radio(visible=False), [], "", ""]
