"""`tokenprune report`: published figures, and a page that a browser opens without complaint."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from tokenprune import cli
from tokenprune.eval import published, report
from tokenprune.eval.errors import CommandError
from tokenprune.eval.lmms import grid_report
from tokenprune.eval.profile.report import draw_phases, draw_savings
from tokenprune.eval.report import answer, inputs, measured, tables

from ..support.browser import CHROMIUM, chromium

ROOT = Path(__file__).parents[2]


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


def _bench_row(policy, keep, tokens, right, loss=None, task="all", model="llava"):
    row = {
        "model": model, "policy": policy, "keep": keep, "positions": "original", "task": task, "exact_match": right,
        "n": 600, "low": right - 0.01, "high": right + 0.01 if right < 0.99 else 1.0, "visual_tokens": tokens,
    }  # fmt: skip
    return row if loss is None else row | {"vs_full": -loss, "vs_full_low": -loss - 0.01, "vs_full_high": -loss + 0.01}


#: Lossless at 80 tokens, a loss of 3 to 5 points at 40, of 19 to 21 at 20, and random tokens.
BENCH = [_bench_row("full", 1.0, 160.0, 1.0), _bench_row("full", 1.0, 160.0, 1.0, task="word")] + [
    _bench_row(policy, keep, tokens, 1 - loss, loss, task)
    for policy, keep, tokens, loss in (
        ("auto", 0.25, 80.0, 0.0),
        ("divprune", 0.25, 40.0, 0.04),
        ("divprune", 0.1, 20.0, 0.2),
        ("random", 0.25, 40.0, 0.4),
        ("downsample", 0.25, 40.0, 0.7),
    )
    for task in ("all", "word")
]


def test_the_answer_is_the_cheapest_setting_within_a_tolerance():
    (results,) = measured.of_bench(BENCH)
    found = {tolerance: answer.cheapest(results, tolerance) for tolerance in answer.TOLERANCES}
    labels = {tolerance: each.label for tolerance, each in found.items()}
    assert labels == {0.01: "auto 0.25", 0.02: "auto 0.25", 0.05: "divprune 0.25", 0.1: "divprune 0.25"}
    said = answer.of_results(results)
    assert said.setting == "auto 0.25"
    assert "80 of 160 visual tokens (50 % fewer) and loses 0.0 points (-1.0 to 1.0)." in said.text
    assert [line.loss for line in said.lines][2:] == ["4.0 (3.0 to 5.0)"] * 2


def test_the_answer_says_where_nothing_is_good_enough():
    (results,) = measured.of_bench([BENCH[0], _bench_row("divprune", 0.1, 20.0, 0.8, 0.2)])
    said = answer.of_results(results)
    assert said.setting == ""
    assert "No setting loses at most 10 points with 95 % confidence. divprune 0.1 loses least, 20.0 points" in said.text
    assert [line.setting for line in said.lines] == ["none"] * 4
    (alone,) = measured.of_bench([_bench_row("divprune", 0.1, 20.0, 0.8)])
    assert "full model was not measured" in answer.of_results(alone).text


def test_a_setting_that_saves_nothing_is_no_answer():
    (results,) = measured.of_bench([BENCH[0], _bench_row("divprune", 1.0, 160.0, 1.0, 0.0)])
    assert answer.cheapest(results, 0.1) is None


def test_evaluations_are_relative_to_the_full_model():
    rows = ROWS + [row | {"task": "ai2d"} for row in ROWS]
    (results,) = measured.of_eval(rows)
    half = next(each for each in results.pruned if each.label == "divprune 0.25")
    assert half.tokens == 144
    assert results.full.tokens == 576
    assert half.accuracy.value == pytest.approx(0.59 / 0.62)
    assert half.loss.value == pytest.approx(0.03 / 0.62)
    # two independent tasks, each difference from 0.04 below to 0.02 above
    assert half.loss.high - half.loss.value == pytest.approx(0.04 / 0.62 / 2**0.5)
    assert half.loss.value - half.loss.low == pytest.approx(0.02 / 0.62 / 2**0.5)
    assert set(half.by_task) == {"gqa", "ai2d"}


def test_settings_without_some_of_the_tasks_are_not_compared():
    easy = [row | {"task": "ai2d"} for row in ROWS if row["policy"] != "random"]
    (results,) = measured.of_eval(ROWS + easy)
    random = next(each for each in results.pruned if each.policy == "random")
    assert (random.accuracy, random.loss, random.by_task) == (None, None, {"gqa": 0.5})
    assert all(each.loss is not None for each in results.pruned if each.policy == "divprune")


def test_wrappers_and_arguments_are_not_mixed():
    rows = [row | {"backend": backend, "arguments": ""} for backend in ("a", "b") for row in ROWS]
    found = list(measured.of_eval(rows))
    assert [results.title for results in found] == [
        f"llava-hf/llava-1.5-7b-hf, {backend}, lmms-eval, 1 task" for backend in ("a", "b")
    ]
    assert [len(results.settings) for results in found] == [4, 4]


def test_nothing_is_recommended_without_intervals():
    rows = [row | {"low": None, "high": None} if row["policy"] != "full" else row for row in ROWS]
    (results,) = measured.of_eval(rows)
    assert results.plot(True).curves
    assert answer.cheapest(results, 1.0) is None
    assert "no intervals" in answer.of_results(results).text


def test_evaluations_without_a_full_model_are_means():
    rows = [row | {"relative": None, "difference": None, "low": None, "high": None} for row in ROWS[1:]]
    (results,) = measured.of_eval(rows)
    assert results.full is None
    assert [each.accuracy.value for each in results.pruned] == [0.59, 0.57, 0.5]
    assert results.plot(True).full is None


def test_models_in_one_folder_are_sections_of_their_own():
    found = list(measured.of_bench(BENCH + [row | {"model": "qwen"} for row in BENCH]))
    assert [results.title.split(",")[0] for results in found] == ["llava", "qwen"]
    assert len({len(results.settings) for results in found}) == 1


def test_settings_that_were_not_asked_all_tasks_are_in_the_table_only():
    rows = [row for row in BENCH if row["policy"] != "auto" or row["task"] != "all"]
    (results,) = measured.of_bench(rows)
    auto = next(each for each in results.pruned if each.policy == "auto")
    assert (auto.tokens, auto.accuracy, auto.loss, auto.by_task) == (None, None, None, {"word": 1.0})
    assert [curve.name for curve in results.plot(True).curves] == ["divprune", "random", "downsample"]
    assert answer.of_results(results).setting == "divprune 0.25"
    assert tables.settings(results).rows[-1][0].shown == "auto"


def test_missing_numbers_are_empty_cells():
    assert tables.number(None, ".1f") == tables.number(float("nan"), ".1f") == tables.Cell("", None)
    assert tables.number(0.123, ".1f", 100) == tables.Cell("12.3", 0.123)


PROFILE = {
    "machine": {"device": "CPU", "threads": 1, "torch": "2"}, "model": "m", "layers": 2, "dtype": "torch.float32",
    "settings": {"new_tokens": 8},
    "rows": [dict.fromkeys(inputs.PROFILE.needs, 1.0) | {"policy": "full"}],
}  # fmt: skip
FILES = {
    "bench": {"machine": {}, "rows": BENCH},
    "eval": {"machine": {}, "rows": ROWS},
    "profile": PROFILE,
    "engine": {"machine": {}, "rows": [{"policy": "full", "concurrency": 1, "ttft_ms": 1.0}]},
    "demo": {"machine": {}, "rows": [{"policy": "full", "exact_match": {"all": 1.0}, "prefill_ratio": 1.0}]},
    "show": [{"policy": "full", "indices": []}],
    "empty": {"machine": {}, "rows": []},
}


@pytest.mark.parametrize("kind", [inputs.BENCH, inputs.EVAL, inputs.PROFILE], ids=lambda kind: kind.option)
@pytest.mark.parametrize("file", FILES)
def test_only_what_an_option_is_for_is_taken(tmp_path, kind, file):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(FILES[file]))
    if kind.option == f"--{file}":
        assert inputs.read(path, kind) == FILES[file]
        return
    with pytest.raises(CommandError) as refused:
        inputs.read(path, kind)
    message = str(refused.value)
    assert message.startswith(f"{path} is not {kind.what}: it ")
    assert "\n" not in message
    assert {
        "bench": "it is a benchmark; --bench takes it",
        "eval": "it is an evaluation; --eval takes it",
        "profile": "it is a profile; --profile takes it",
        "engine": "it is a profile of an engine; the report does not take those",
        "demo": "it is the figures of a demo; the report does not take those",
        "show": "and has no rows",
        "empty": "and has no rows",
    }[file] in message


@pytest.mark.parametrize("kind", [inputs.BENCH, inputs.EVAL, inputs.PROFILE], ids=lambda kind: kind.option)
def test_what_a_file_lacks_is_named(tmp_path, kind):
    content = FILES[kind.option.removeprefix("--")]
    path = tmp_path / "file.json"
    for name in kind.needs:
        rows = [*content["rows"][:-1], {key: value for key, value in content["rows"][-1].items() if key != name}]
        path.write_text(json.dumps(content | {"rows": rows}))
        with pytest.raises(CommandError, match=name):
            inputs.read(path, kind)
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "machine"}))
    with pytest.raises(CommandError, match="lacks machine"):
        inputs.read(path, kind)


def test_files_that_are_not_there_or_no_json_are_named(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    for kind in (inputs.BENCH, inputs.EVAL, inputs.PROFILE):
        for name, message in (("broken.json", "is no JSON"), ("picture.png", "is no JSON"), ("gone", "no such file")):
            with pytest.raises(CommandError, match=message) as refused:
                inputs.read(tmp_path / name, kind)
            assert str(tmp_path / name) in str(refused.value)
        with pytest.raises(CommandError, match="is a folder" if kind is inputs.PROFILE else "has no results.json"):
            inputs.read(tmp_path, kind)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "bench").glob("*/results.json")))
def test_committed_benchmarks_enter_the_report(path):
    found = list(measured.of_bench(inputs.read(path.parent, inputs.BENCH)["rows"]))
    assert [results.full.accuracy.value > 0.9 for results in found] == [True]
    assert answer.of_results(found[0]).setting


def test_the_committed_profile_enters_the_report():
    path = ROOT / "eval" / "results" / "profile-llava-1.5-7b-4-layers-auto-cpu.json"
    content = inputs.read(path, inputs.PROFILE)
    said = answer.of_profile("m", content["rows"], content["settings"]["new_tokens"])
    assert said.setting == "divprune 0.111"
    assert "a request takes 61 % less time, its prefill 76 % less" in said.text


def test_bars_start_at_zero_and_shares_end_at_100_percent():
    rows = json.loads((ROOT / "eval" / "results" / "profile-llava-1.5-7b-4-layers-auto-cpu.json").read_text())["rows"]
    bars, shares = Figure().subplots(1, 2)
    draw_phases(bars, rows, 8)
    draw_savings(shares, rows)
    assert bars.get_xlim()[0] == 0
    assert (shares.get_xlim(), shares.get_ylim()) == ((0, 1), (0, 1))


def test_a_report_of_nothing_is_refused(tmp_path):
    arguments = ["report", "--no-gallery", "--out", str(tmp_path / "report.html")]
    with pytest.raises(CommandError, match="nothing to report: give --bench, --eval or --profile"):
        report.run(cli.parser().parse_args(arguments), Console(quiet=True))
    assert not (tmp_path / "report.html").exists()


def test_the_gallery_shows_the_best_policies_that_are_there():
    (results,) = measured.of_bench(BENCH)
    assert report._interesting([results]) == ["auto", "divprune", "random"]
    every = json.loads((ROOT / "docs" / "bench" / "llava" / "results.json").read_text())["rows"]
    (results,) = measured.of_bench(every)
    assert report._interesting([results]) == ["auto", "divprune", "todre", "mmtok", "random"]
    (results,) = measured.of_bench([row | {"policy": "ours"} if row["policy"] == "auto" else row for row in BENCH])
    assert report._interesting([results]) == ["divprune", "random"]
    assert report._interesting([]) == ["divprune", "random"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "results.json").write_text(json.dumps({"machine": {}, "rows": ROWS}))
    (folder / "bench.json").write_text(json.dumps({"machine": {}, "identity": {}, "rows": BENCH}))
    profile = ["--policy", "random", "--keep", "0.25", "--new-tokens", "2", "--rounds", "1"]
    cli.main(["profile", "--model", "embedded", *profile, "--json", str(folder / "profile.json")])
    out = folder / "report.html"
    inputs = ["--bench", str(folder / "bench.json"), "--eval", str(folder), "--profile", str(folder / "profile.json")]
    cli.main(["report", *inputs, "--title", "Kept <tokens>", "--out", str(out)])
    return out


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        names = ("src", "href", "srcset", "action", "xlink:href")
        self.found += [value for name, value in attributes if name in names]
        self.ids += [value for name, value in attributes if name == "id"]


def test_the_page_needs_no_network(page):
    text = page.read_text()
    links = _Links()
    links.feed(text)
    assert len(links.found) > 8
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert len(links.ids) == len(set(links.ids))
    assert "@import" not in text
    assert re.findall(r"url\((?!#chart)", text) == []
    assert "Kept &lt;tokens&gt;" in text
    assert len(text) < 3e6


def test_one_chart_has_all_settings_of_a_model(page):
    text = page.read_text()
    assert text.count('class="curve"') == 2 * (4 + 2)  # wide and narrow; policies of the benchmark, of the evaluation
    assert "divprune\n20 tokens: 80.0% (79.0% to 81.0%)\n40 tokens: 96.0% (95.0% to 97.0%)" in text


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with chromium(sync_api) as started:
        yield started


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_in_a_browser(page, browser, width, scheme):
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    images = tab.evaluate(
        "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.getBoundingClientRect().width, i.alt])"
    )
    # three pictures for each of three policies and the full model
    assert len(images) == 12
    assert all(loaded for loaded, _, _ in images)
    assert all(text for _, _, text in images)
    assert min(w for _, w, _ in images) >= 130
    # two charts of accuracy, phases and savings, in the form for this width
    charts = tab.evaluate("[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)")
    shown = [w for w in charts if w]
    assert len(charts) == 8
    assert len(shown) == 4
    assert min(shown) >= (300 if width == 360 else 500)
    assert max(shown) > 0.9 * width
    letters = "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height).filter(h => h)"
    assert min(tab.evaluate(letters)) > 8
    # nothing is cut off: the page itself never scrolls sideways
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    tab.close()


def test_colours_follow_the_scheme_and_can_be_read(page, browser):
    colours = {}
    for scheme in ("light", "dark"):
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        tab.goto(page.as_uri())
        seen = ["body", ".note", ".right", "svg text", "nav a"]
        colours[scheme] = tab.evaluate(
            """seen => [getComputedStyle(document.body).backgroundColor, ...seen.map(s => {
                const style = getComputedStyle(document.querySelector(s));
                return s.startsWith('svg') ? style.fill : style.color; })]""",
            seen,
        )
        tab.close()

    def luminance(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for paper, *inks in colours.values():
        for ink in inks:  # WCAG 2 asks for 4.5
            low, high = sorted((luminance(paper), luminance(ink)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (paper, ink)
    assert luminance(colours["light"][0]) > 0.9
    assert luminance(colours["dark"][0]) < 0.05


def test_tables_are_sorted_by_mouse_and_keyboard(page, browser):
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(page.as_uri())

    def column(i):
        rows = "[...document.querySelector('.sortable table').tBodies[0].rows]"
        return tab.evaluate(f"{rows}.map(r => r.cells[{i}].innerText)")

    def order(head):
        return tab.get_attribute(f".sortable table >> nth=0 >> th:has(button:text-is('{head}'))", "aria-sort")

    assert column(4) == ["100.0", "100.0", "96.0", "80.0", "60.0", "30.0"]
    assert order("accuracy, %") == "descending"
    tab.click(".sortable table >> nth=0 >> button:text-is('tokens')")
    assert column(2) == ["20", "40", "40", "40", "80", "160"]
    assert (order("tokens"), order("accuracy, %")) == ("ascending", None)
    tab.click(".sortable table >> nth=0 >> button:text-is('tokens')")
    assert column(2) == ["160", "80", "40", "40", "40", "20"]
    # what has no number stays last in either order
    tab.focus(".sortable table >> nth=0 >> button:text-is('loss, points')")
    for expected in (["0.0", "4.0", "20.0", "40.0", "70.0", ""], ["70.0", "40.0", "20.0", "4.0", "0.0", ""]):
        tab.keyboard.press("Enter")
        assert column(6) == expected
    tab.keyboard.press("Space")
    assert order("loss, points") == "ascending"
    aligned = tab.evaluate("[...document.querySelectorAll('td.number')].map(c => getComputedStyle(c).textAlign)")
    assert set(aligned) == {"right"}
    tab.close()


def test_answers_are_marked_in_words(page):
    captions = re.findall(r"<figcaption><b>(.*?)</figcaption>", page.read_text())
    assert len(captions) == 12
    assert all("✓ right" in caption or "✗ wrong" in caption for caption in captions)
    assert any("✗ wrong" in caption for caption in captions)
    assert sum("14 of 144" in caption for caption in captions) == 9  # three policies at a tenth of the tokens
