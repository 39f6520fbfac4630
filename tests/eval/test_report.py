"""`tokenprune report`: published figures, and a page that a browser opens without complaint."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from tokenprune import cli
from tokenprune.eval import published
from tokenprune.eval.lmms import grid_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.parametrize("name", published.available())
def test_published_figures_are_facts_with_a_source(name):
    figures = published.load(name)
    assert set(figures) <= {"name", "model", "visual_tokens", "sources", "note"}
    assert figures["sources"] or figures["note"]
    for source in figures["sources"]:
        assert set(source) <= {"paper", "arxiv", "table", "setting", "metrics", "full", "rows"}
        assert source["paper"] and source["table"] and source["setting"]
        assert source["arxiv"] is None or re.fullmatch(r"\d{4}\.\d{5}", source["arxiv"])
        for row in source["rows"]:
            assert set(row) <= {"method", "tokens", "keep", "scores", "relative_average"}
            assert "scores" in row or "relative_average" in row
            assert 40 < row.get("relative_average", 100) <= 110
            if figures["visual_tokens"] and row["tokens"]:
                assert row["tokens"] < figures["visual_tokens"]


def _row(policy, keep, task, value, kept, model="llava-hf/llava-1.5-7b-hf", **more):
    return {
        "model": model, "policy": policy, "keep": keep, "task": task, "group": False, "metric": "exact_match",
        "value": value, "n": 50, "relative": value / 0.62, "n_paired": 50, "difference": value - 0.62,
        "low": value - 0.66, "high": value - 0.6, "visual_tokens": 576, "kept_tokens": kept, "select_ms": 0.2,
        "samples_per_second": 3.0 - kept / 300,
    } | more  # fmt: skip


ROWS = [_row("full", None, "gqa", 0.62, 0)] + [
    _row(policy, keep, "gqa", value, kept)
    for policy, keep, value, kept in (
        ("divprune", "0.25", 0.59, 144),
        ("divprune", "0.098", 0.57, 56),
        ("random", "0.098", 0.5, 56),
    )
]


def test_ours_stand_beside_theirs():
    lines = published.compared(published.load("divprune/llava-1.5-7b"), ROWS)
    gqa = [line for line in lines if line["task"] == "gqa"]
    assert [(line["method"], line["tokens"], line["ours"]) for line in gqa] == [
        ("full", "576", 62.0),
        ("DivPrune", "56", pytest.approx(57.0)),
        ("DivPrune", "192", None),
        ("DivPrune", "128", None),
        ("DivPrune", "64", None),
    ]
    assert all(line["ours"] is None for line in lines if line["task"] != "gqa")
    other = [row | {"model": "elsewhere/llava-1.5-13b-hf"} for row in ROWS]
    assert all(line["ours"] is None for line in published.compared(published.load("divprune/llava-1.5-7b"), other))


def test_scores_are_summed_where_the_paper_does():
    mme = [
        _row("divprune", "192", "mme", value, 192) | {"metric": metric}
        for metric, value in (("mme_cognition_score", 300.0), ("mme_perception_score", 1400.0))
    ]
    lines = published.compared(published.load("divprune/llava-1.5-7b"), mme)
    found = {(line["source"], line["tokens"]): line["ours"] for line in lines if line["task"] == "mme"}
    assert found["RESTORE", "192"] == 1700
    assert found["DivPrune", "56"] is None


def test_markdown_table():
    table = grid_report.markdown(ROWS).splitlines()
    assert table[0] == "| | kept | gqa (exact_match) |"
    assert table[2] == "| full |  | 0.62 |"
    assert table[4] == "| `divprune` 0.098 | 56 | 0.57 (91.9%) |"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "results.json").write_text(json.dumps({"machine": {}, "rows": ROWS}))
    profile = ["--policy", "random", "--keep", "0.25", "--new-tokens", "2", "--rounds", "1"]
    cli.main(["profile", "--model", "embedded", *profile, "--json", str(folder / "profile.json")])
    out = folder / "report.html"
    inputs = ["--eval", str(folder), "--profile", str(folder / "profile.json")]
    cli.main(["report", *inputs, "--title", "Kept <tokens>", "--out", str(out)])
    return out


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]


def test_the_page_needs_no_network(page):
    text = page.read_text()
    links = _Links()
    links.feed(text)
    assert len(links.found) > 8
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert "@import" not in text
    assert "url(" not in text
    assert "Kept &lt;tokens&gt;" in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_in_a_browser(page, width):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
        )
        tab = browser.new_page(viewport={"width": width, "height": 900})
        complaints, requests = [], []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        images = tab.evaluate(
            "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.getBoundingClientRect().width, i.alt])"
        )
        # curves, Pareto, phases, savings, and three pictures for each of two policies and the full model
        assert len(images) == 4 + 9
        assert all(loaded for loaded, _, _ in images)
        assert all(text for _, _, text in images)
        # nothing is cut off: the page itself never scrolls sideways, plots keep a readable width
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert min(w for _, w, _ in images[:4]) >= 300
        assert min(w for _, w, _ in images[4:]) >= 130
        assert tab.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
        values = "[...document.querySelector('table').tBodies[0].rows].map(r => r.cells[4].innerText)"
        assert tab.evaluate(values) == ["0.62", "0.59", "0.57", "0.5"]
        tab.click("table >> nth=0 >> button:text-is('value')")
        assert tab.evaluate(values) == ["0.5", "0.57", "0.59", "0.62"]
        tab.click("table >> nth=0 >> button:text-is('value')")
        assert tab.evaluate(values) == ["0.62", "0.59", "0.57", "0.5"]
        browser.close()
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
