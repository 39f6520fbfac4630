"""`tokenprune play` as people use it: in a real browser, served by a process of its own."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tokenprune.eval.play.examples import examples

from ..support.browser import CHROMIUM, chromium

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs Gradio"),
]

#: Runs the command line, and writes every address that the process connects to or looks up into the file of argument 1.
_SERVER = """
import sys

addresses = open(sys.argv[1], "w", buffering=1)

def note(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        addresses.write(f"{args[1][0] if event == 'socket.connect' else args[0]}\\n")

sys.addaudithook(note)
from tokenprune.cli import main

main(sys.argv[2:])
"""


@contextmanager
def _served(folder, *arguments):
    """The playground's address; afterwards Ctrl-C ends it without complaint."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["play", "--no-browser", "--device", "cpu", "--port", str(port), *arguments]
    with open(folder / "stderr", "w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(folder / "addresses"), *command],
            stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | {"TMPDIR": str(folder)},
        )  # fmt: skip
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            assert line.startswith("Playground: http://127.0.0.1:"), (folder / "stderr").read_text()
            yield line.split()[1]
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
            server.stdout.close()
    assert "Traceback" not in (folder / "stderr").read_text()
    assert list(folder.glob("tokenprune-play-*")) == []  # uploaded and drawn pictures are gone


class _Page:
    """The page in a tab, as somebody uses it."""

    def __init__(self, browser, address, width=1280, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(60_000)
        self.complaints, self.requests = [], []
        self.tab.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(address)
        self.tab.wait_for_selector("#numbers table")

    def changed(self, change):
        """Make a change, and wait until another picture of kept tokens is shown."""
        before = self.source()
        change()
        self.wait_for_another(before)

    def wait_for_another(self, before):
        self.tab.wait_for_function(
            "src => ![undefined, src].includes(document.querySelector('#kept img')?.src)", arg=before
        )

    def source(self):
        return self.tab.evaluate("document.querySelector('#kept img')?.src")

    def picture(self):
        """The picture of kept tokens, (height, width, 3)."""
        content = self.context.request.get(self.source()).body()
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def share_light(self, original):
        """The share of a picture's pixels that are not dimmed."""
        shown = self.picture()
        size = shown.shape[1::-1]
        return float((shown == np.asarray(original.resize(size, Image.Resampling.NEAREST))).all(-1).mean())

    def kept(self):
        """What the picture of kept tokens is called."""
        return self.tab.get_attribute("#kept img", "alt")

    def answers(self):
        return [text.strip() for text in self.tab.locator("#answers section p").all_inner_texts()]

    def numbers(self):
        rows = "table => [...table.tBodies[0].rows].map(r => [...r.cells].map(c => c.innerText.trim()))"
        return {row[0]: row[1:] for row in self.tab.eval_on_selector("#numbers table", rows)}

    def problem(self):
        return self.tab.locator("#problem [role=alert]").inner_text()

    def choose_policy(self, name):
        self.tab.fill("#policies input", name)
        self.tab.locator(f"[role=option][aria-label^='{name} (']").click()
        self.tab.keyboard.press("Escape")


def _it_answers_at_once(page, scenes):
    assert page.answers() == ["cross", "cross"]
    assert page.tab.locator("#answers .right").all_inner_texts() == ["✓ right", "✓ right"]
    numbers = page.numbers()
    assert numbers["Visual tokens at entry"] == ["144", "36", "−75 %"]
    assert all(float(cell) > 0 for name in numbers if "ms" in name for cell in numbers[name][:2] if cell)
    assert page.share_light(scenes[0]) == pytest.approx(36 / 144, abs=0.02)
    assert page.kept() == "Kept tokens in all layers: 36 of 144 tokens. Dropped tokens are dark."


def _an_example_is_asked(page, scenes):
    page.changed(lambda: page.tab.get_by_role("button", name="How many shapes are there?").click())
    assert page.tab.input_value("#question textarea, #question input") == "How many shapes are there?"
    assert page.answers() == ["3", "3"]
    assert page.share_light(scenes[1]) == pytest.approx(36 / 144, abs=0.02)


def _the_slider_is_moved_with_the_mouse_and_with_keys(page, scenes):
    slider = page.tab.locator("#keep input[type=range]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()

    def drag():
        middle = box["y"] + box["height"] / 2
        page.tab.mouse.move(box["x"] + 0.235 * box["width"], middle)
        page.tab.mouse.down()
        page.tab.mouse.move(box["x"] + 0.5 * box["width"], middle, steps=4)
        page.tab.mouse.up()

    page.changed(drag)
    kept = int(page.numbers()["Visual tokens at entry"][1])
    assert 65 <= kept <= 80
    assert page.share_light(scenes[1]) == pytest.approx(kept / 144, abs=0.02)
    slider.focus()
    page.changed(lambda: page.tab.keyboard.press("Home"))
    assert page.kept().startswith("Kept tokens in all layers: 3 of 144 tokens")
    page.changed(lambda: page.tab.locator("#keep button").click())
    assert page.kept().startswith("Kept tokens in all layers: 36 of 144 tokens")


def _policies_compose_and_layers_are_chosen(page, scenes):
    page.changed(lambda: page.choose_policy("fastv"))
    assert page.kept().startswith("Kept tokens in layers 2 to 3: 19 of 144 tokens")
    assert page.numbers()["Visual tokens, mean of layers"] == ["144.0", "36.0", "−75 %"]
    assert "Pruned: divprune+fastv 0.25" in page.tab.inner_text("#answers")
    below = page.tab.get_by_label("layers 0 to 1: 53 of 144 tokens")
    page.changed(below.click)
    assert page.share_light(scenes[1]) == pytest.approx(53 / 144, abs=0.02)


def _options_are_checked_and_used(page):
    options = page.tab.locator("#options").get_by_role("textbox")
    options.fill("layer=9")
    options.press("Enter")
    page.tab.wait_for_selector("#problem [role=alert]")
    assert "decoder layer 9; this model accepts 1 to 3." in page.problem()
    assert "Traceback" not in page.tab.inner_text("body")
    assert page.answers() == []
    page.changed(lambda: (options.fill("layer=3"), options.press("Enter")))
    assert page.kept().startswith("Kept tokens in layer 3: 12 of 144 tokens")
    assert not page.tab.locator("#problem").is_visible()
    page.changed(lambda: page.tab.locator("#policies .token-remove").nth(1).click())  # fastv, and its option with it
    assert options.input_value() == ""
    assert page.answers() == ["3", "3"]


def _pictures_are_removed_and_uploaded(page, folder):
    Image.effect_noise((300, 200), 20).convert("RGB").save(folder / "noise.png")
    (folder / "broken.png").write_bytes(b"no picture")
    page.tab.get_by_label("Remove Image").click()
    page.tab.wait_for_selector("#problem [role=alert]")
    assert "There is no picture" in page.problem()
    page.changed(lambda: page.tab.set_input_files("#picture input[type=file]", folder / "noise.png"))
    noise = Image.open(folder / "noise.png").crop((50, 0, 250, 200))  # of which the model sees the middle
    assert page.picture().shape == (640, 640, 3)
    shown = page.picture()[::3, ::3].astype(float)
    seen = np.asarray(noise.resize((640, 640), Image.Resampling.NEAREST))[::3, ::3].astype(float)
    assert (shown == seen).all(-1).mean() == pytest.approx(36 / 144, abs=0.03)
    page.tab.get_by_label("Remove Image").click()
    page.tab.wait_for_selector("#problem [role=alert]")
    page.tab.set_input_files("#picture input[type=file]", folder / "broken.png")
    page.tab.wait_for_selector("#problem :text('no picture that can be read')")
    assert page.answers() == []


def _questions_are_text_not_code(page):
    page.changed(lambda: page.tab.get_by_role("button", name="What shape is cyan?").click())
    question = page.tab.locator("#question").get_by_role("textbox")
    question.fill("${alert(1)} {{this}} <b>?")
    question.press("Enter")
    page.tab.wait_for_function("document.querySelector('#answers .right') === null")  # nothing is known to be right
    assert len(page.answers()) == 2
    question.fill(" ")
    page.tab.click("#ask")
    page.tab.wait_for_selector("#problem [role=alert]")
    assert page.problem() == "There is no question; type one."


def _it_fits_and_can_be_read(page):
    tab = page.tab
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.viewport_size["width"]
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    fields = "[...document.querySelectorAll('input:not([type=file]), textarea, button')]"
    named = (
        f"{fields}.filter(e => e.offsetParent).map(e => e.ariaLabel || e.innerText || e.title || e.labels?.length || "
        "e.querySelector('img')?.alt)"
    )
    assert all(tab.evaluate(named))
    for selector in (".verdict", ".numbers p", ".answers h3", ".answers .right", ".chosen", "#ask"):
        assert _contrast(tab, selector) >= 4.5, selector


def _contrast(tab, selector):
    """The contrast of a text with what is behind it, as WCAG defines it."""
    colours = """element => {
        const behind = [];
        for (let at = element; at; at = at.parentElement) behind.push(getComputedStyle(at).backgroundColor);
        return [getComputedStyle(element).color, behind.find(c => !/, 0\\)$/.test(c) && c !== 'transparent')];
    }"""

    def luminance(colour):
        parts = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    dark, light = sorted(luminance(colour) for colour in tab.eval_on_selector(selector, colours))
    return (light + 0.05) / (dark + 0.05)


def _people_at_once_get_their_own_answers(first, second, scenes):
    first.changed(lambda: first.tab.get_by_role("button", name="Where is the white diamond?").click())
    before = first.source(), second.source()
    first.choose_policy("fastv")
    second.tab.get_by_role("button", name="What colour is the ring?").click()
    for each, source in zip((first, second), before, strict=True):
        each.wait_for_another(source)
    assert first.answers()[0] == "center left"
    assert second.answers() == ["cyan", "cyan"]
    assert first.kept().startswith("Kept tokens in layers 2 to 3: 19")
    assert second.share_light(scenes[4]) == pytest.approx(36 / 144, abs=0.02)


def test_the_playground_in_a_browser(tmp_path):
    """One test, since a server and a browser take a while to start."""
    scenes = [example.picture for example in examples()]
    with _served(tmp_path) as address, chromium(sync_api) as browser:
        page = _Page(browser, address, scheme="dark")
        _it_answers_at_once(page, scenes)
        _it_fits_and_can_be_read(page)
        _an_example_is_asked(page, scenes)
        _the_slider_is_moved_with_the_mouse_and_with_keys(page, scenes)
        _policies_compose_and_layers_are_chosen(page, scenes)
        _options_are_checked_and_used(page)
        _pictures_are_removed_and_uploaded(page, tmp_path)
        _questions_are_text_not_code(page)
        other = _Page(browser, address, width=400)
        _it_fits_and_can_be_read(other)
        _people_at_once_get_their_own_answers(page, other, scenes)
        for each in (page, other):
            assert each.complaints == []
            assert len(each.requests) > 20
            assert all(url.startswith((address, "data:", "blob:")) for url in each.requests)
        assert set((tmp_path / "addresses").read_text().split()) <= {"127.0.0.1", "::1", "localhost"}
