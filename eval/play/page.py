"""The page in Gradio: its components, and which event runs what."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from ..setting import POSITIONS
from . import choices, parts
from .examples import Example
from .replies import Replies
from .session import Session

TITLE = "tokenprune playground"
_TINY = " It is tiny: it knows pictures like the examples, and its times say little about those of large models."
_SYSTEM_FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
#: One question runs at a time; of those that wait on one page, only the last is run.
_ASKING: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "trigger_mode": "always_last",
    "show_progress": "minimal",
    "api_visibility": "private",
}
_AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Start:
    """What is chosen when the page opens.

    Attributes:
        policies: names.
        options: of the policies, as text.
        keep: keep ratio.
        positions: as in `apply_pruning`.
    """

    policies: tuple[str, ...]
    options: str
    keep: float
    positions: str


class _Inputs(NamedTuple):
    picture: gr.Image
    question: gr.Textbox
    policies: gr.Dropdown
    options: gr.Textbox
    keep: gr.Slider
    positions: gr.Radio


class _Outputs(NamedTuple):
    problem: gr.HTML
    kept: gr.Image
    layers: gr.Radio
    views: gr.State
    answers: gr.HTML
    numbers: gr.HTML


def theme() -> gr.themes.Base:
    """Gradio's theme with the fonts of the system, so that none is fetched."""
    text, code = _SYSTEM_FONTS
    found = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=text, font_mono=code)
    # Shades of at least 4.5:1 against what is behind them.
    return found.set(
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
    )


def build(session: Session, start: Start) -> gr.Blocks:
    """The page of a session, not yet served."""
    replies, model = Replies(session), session.model
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(
            f"# {TITLE}\n**{session.name}** is a {type(model).__name__} with {session.n_layers} decoder layers, on "
            f"{model.device}. Ask it about a picture, with all visual tokens and with some." + _TINY * session.embedded
        )
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                picture, examples, question = _asking(session)
                policies, note, options, keep, positions = _setting(session, start)
                button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(min_width=300):
                outputs = _results()
        inputs = _Inputs(picture, question, policies, options, keep, positions)
        asked_by = [page.load, button.click, question.submit, options.submit, options.blur]
        asked_by += [keep.release, positions.input, picture.change]
        gr.on(asked_by, replies.ask, list(inputs), list(outputs), **_ASKING)
        prepared = [policies.input(replies.policies, [policies, options], [note, options], **_AT_ONCE)]
        for i, example in enumerate(examples):
            prepared.append(example.click(partial(replies.example, i), None, [picture, question], **_AT_ONCE))
        for event in prepared:
            event.then(replies.ask, list(inputs), list(outputs), **_ASKING)
        outputs.layers.input(replies.kept, [outputs.views, outputs.layers], outputs.kept, **_AT_ONCE)
    page.queue(max_size=64, api_open=False)
    return page


def _asking(session: Session) -> tuple[gr.Image, list[gr.Button], gr.Textbox]:
    """The picture, a button for each example, and the question."""
    first = session.examples[0]
    picture = gr.Image(
        first.picture, label="Picture", type="filepath", image_mode=None, format="png", height=300, elem_id="picture"
    )
    decode = picture.preprocess
    _unchecked(picture, lambda sent: sent.path if sent is not None and sent.path else decode(sent))
    with gr.Row(elem_classes="examples"), tempfile.TemporaryDirectory() as folder:  # Gradio copies the icons
        buttons = [_example_button(each, Path(folder, f"{i}.png")) for i, each in enumerate(session.examples)]
    question = gr.Textbox(first.question, label="Question", max_length=2000, elem_id="question")
    return picture, buttons, question


def _unchecked(component: gr.components.Component, preprocess: Callable[[Any], Any]) -> None:
    """Let a component pass on what it has. `Replies` checks it: its errors are sentences on the page."""
    component.preprocess = preprocess  # type: ignore[assignment, method-assign]


def _example_button(example: Example, icon: Path) -> gr.Button:
    """A button with an example's picture and question."""
    example.picture.save(icon)
    button = gr.Button(example.question, icon=icon, size="sm", min_width=130)
    if button.icon is not None:
        button.keep_in_cache.add(button.icon["path"])  # however long the page is served
    return button


def _setting(session: Session, start: Start) -> tuple[gr.Dropdown, gr.HTML, gr.Textbox, gr.Slider, gr.Radio]:
    """Policies, a note about them, their options, the keep ratio, and positions."""
    policies = gr.Dropdown(
        parts.choices(session.policies),
        value=list(start.policies),
        multiselect=True,
        label="Policies",
        info="One, or several that act at different stages.",
        elem_id="policies",
    )
    note = gr.HTML(parts.chosen([session.policies[name] for name in start.policies]))
    if session.refused:
        with gr.Accordion(f"{len(session.refused)} policies cannot act on this model", open=False):
            gr.HTML(parts.refused(session.refused))
    keep = gr.Slider(
        choices.LEAST_KEEP,
        1,
        value=start.keep,
        step=0.01,
        label="Keep ratio",
        info="Share of visual tokens that stay.",
        elem_id="keep",
    )
    _unchecked(keep, lambda value: value)
    with gr.Row():
        options = gr.Textbox(
            start.options,
            label="Policy options",
            placeholder="layer=3",
            info="Separated by commas.",
            min_width=140,
            elem_id="options",
        )
        positions = gr.Radio(
            list(POSITIONS), value=start.positions, label="Positions", info="Of tokens that stay.", min_width=140
        )
    return policies, note, options, keep, positions


def _results() -> _Outputs:
    """Everything that an answer fills in."""
    return _Outputs(
        problem=gr.HTML("", visible=False, elem_id="problem"),
        kept=gr.Image(
            label="Kept tokens",
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],
            height=400,
            elem_id="kept",
        ),
        layers=gr.Radio(
            [], label="Decoder layers", info="Tokens leave between layers.", visible=False, elem_id="layers"
        ),
        views=gr.State([]),
        answers=gr.HTML("", elem_id="answers"),
        numbers=gr.HTML("", elem_id="numbers"),
    )
