"""The rooms under the playground: choosing a setting, asking, drawing, and what people read."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenprune import list_policies, pruning, pruning_report
from tokenprune.eval.answers import Sample, answer, held_out
from tokenprune.eval.errors import CommandError
from tokenprune.eval.minivlm.questions import Question
from tokenprune.eval.play import choices, measure, parts, server
from tokenprune.eval.play.drawing import as_seen, views
from tokenprune.eval.play.session import Session
from tokenprune.eval.setting import PruningSetting
from tokenprune.patches.packed_tower import no_packed_geometry

from .. import families

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs Gradio")


def _session(name="embedded"):
    return Session(name, torch.float32, torch.device("cpu"), new_tokens=8)


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    """Times are taken once, which saves time here."""
    monkeypatch.setattr(measure, "ROUNDS", 1)


@pytest.fixture(scope="module")
def session():
    return _session()


@pytest.fixture(scope="module")
def qwen():
    return _session("embedded-qwen")


@pytest.fixture(scope="module")
def replies(session):
    pytest.importorskip("gradio", reason="needs Gradio")
    from tokenprune.eval.play.replies import Replies

    return Replies(session)


def _chosen(*names, options="", keep=0.25, positions="original"):
    return choices.setting(names, options, keep, positions)


# Choosing


@pytest.mark.parametrize(
    ("names", "options", "made"),
    [
        (["fastv"], "", "FastV(layer=2)"),
        (["fastv"], " layer = 3 ", "FastV(layer=3)"),
        (["fastv"], "fastv:layer=3", "FastV(layer=3)"),
        (["dart"], "layer=1, pivots=8", "DART(layer=1, pivots=8)"),
        (["fopru"], "strategy=row,include_cls_query=False", "FoPru(strategy='row', include_cls_query=False)"),
        (["divprune", "fastv"], "layer=3", "DivPrune() FastV(layer=3)"),
        (["fopru", "fastv"], "layer=3, strategy='row'", "FoPru(strategy='row', include_cls_query=True) FastV(layer=3)"),
        (["pyramiddrop"], "schedule=(0.25, 0.5)", "PyramidDrop(schedule=Schedule(depths=(0.25, 0.5), counts=None))"),
    ],
)
def test_options_go_to_the_policy_that_has_them(names, options, made):
    assert " ".join(map(repr, _chosen(*names, options=options).policies)) == made


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], "", "no policy is chosen"),
        (["divprune"], "layer=3", "unknown option 'layer'"),
        (["fastv"], "layer", "is no option"),
        (["fastv"], "layer=", "is no option"),
        (["fastv"], "layer=1.5", "layer=1.5 must be a whole number"),
        (["fastv"], "layer=3, layer=4", "is given twice"),
        (["fastv"], "dart:layer=3", "not chosen; chosen: fastv"),
        (["divprune", "fastv"], "size=3", "divprune takes none; fastv takes layer"),
        (["fastv", "dart"], "layer=3", "write fastv:layer=3"),
    ],
)
def test_bad_options_are_named(names, options, message):
    with pytest.raises(ValueError, match=message):
        _chosen(*names, options=options)


def test_the_slider_at_its_end_keeps_all_tokens_not_one():
    assert _chosen("random", keep=1).keep == 1.0
    assert isinstance(_chosen("random", keep=1).keep, float)


@pytest.mark.parametrize(
    ("options", "names", "left"),
    [
        ("layer=3, pivots=8", ["fastv"], "layer=3"),
        ("layer=3, pivots=8", ["dart"], "layer=3, pivots=8"),
        ("fastv:layer=3, dart:pivots=(1,2)", ["dart"], "dart:pivots=(1,2)"),
        ("layer", ["divprune"], "layer"),
        ("layer=3", [], ""),
        ("", ["fastv"], ""),
    ],
)
def test_options_of_policies_no_longer_chosen_go(options, names, left):
    assert choices.fitting(options, names) == left


def test_a_composition_of_the_command_line_fills_the_page_in():
    names, options = choices.chosen("divprune+dart:layer=1:pivots=8")
    assert (names, options) == (("divprune", "dart"), "dart:layer=1, dart:pivots=8")
    assert repr(_chosen(*names, options=options).policies) == "(DivPrune(), DART(layer=1, pivots=8))"


def test_policies_that_cannot_act_on_the_model_are_left_out_with_the_reason(session, qwen):
    assert list(session.policies) == list_policies()
    assert session.refused == {}
    assert set(qwen.refused) - {"flowcut", "ipcv"} == {"downsample", "tome"}
    assert ({"flowcut", "ipcv"} <= {*qwen.refused}) == (no_packed_geometry() is not None)
    assert sorted([*qwen.policies, *qwen.refused]) == list_policies()
    assert all("qwen2_5_vl" in reason for reason in qwen.refused.values())
    for name in qwen.refused:
        with pytest.raises(ValueError, match="qwen2_5_vl"):
            qwen.compare(qwen.examples[0].picture, "What shape is cyan?", _chosen(name))


# Asking


@pytest.mark.parametrize("names", [["divprune"], ["pyramiddrop@final"], ["divprune", "fastv"]])
def test_answers_and_numbers_are_those_of_the_pruned_model(session, names):
    example, setting = session.examples[1], _chosen(*names)
    found = session.compare(example.picture, example.question, setting)
    scene = next(s.scene for s in held_out(120) if np.array_equal(s.scene.image, np.asarray(example.picture)))
    sample = Sample((scene,), Question("count", example.question, example.answer))
    for outcome, under in ((found.full, PruningSetting()), (found.pruned, setting)):
        expected = answer(session.model, session.processor, [sample], under)
        assert outcome.answer == expected.texts[0].strip()
        assert outcome.answer_tokens == 2  # a word and the end
        assert outcome.total_ms >= outcome.prefill_ms + outcome.vision_ms > 0
    assert found.mean == answer(session.model, session.processor, [sample], setting).kept[0]
    assert found.tokens == 144
    assert found.full.kv_cache_bytes > found.pruned.kv_cache_bytes
    assert found.full.rounds == found.pruned.rounds
    assert found.right == example.answer
    with pytest.raises(ValueError, match="no pruning"):
        pruning_report(session.model)  # the shared model is as it was


def test_the_kv_cache_is_that_of_the_tokens_that_are_left(session):
    found = session.compare(session.examples[0].picture, "What shape is cyan?", _chosen("vtw", keep=0.5))
    text = session.model.config.text_config
    of_token = 2 * 4 * text.num_key_value_heads * text.head_dim
    assert found.full.kv_cache_bytes - found.pruned.kv_cache_bytes == 144 * 2 * of_token  # gone from half of 4 layers


def test_a_question_of_ones_own_has_no_right_answer(session):
    assert session.compare(session.examples[0].picture, "What shape is red?", _chosen("random")).right is None


def _prefills(session, ask):
    """How often the text model is called by a function with more than one token."""
    calls = []
    text = session.model.model.language_model
    handle = text.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["inputs_embeds"].shape[1] > 1), with_kwargs=True
    )
    try:
        ask()
    finally:
        handle.remove()
    return sum(calls)


@pytest.fixture
def forgetful(session):
    """The session, with nothing asked before."""
    session._pairs.clear()
    session._full.clear()
    return session


def test_what_was_asked_before_is_not_asked_again(forgetful, monkeypatch):
    session = forgetful
    picture, question = session.examples[0].picture, session.examples[0].question
    assert _prefills(session, lambda: session.compare(picture, question, _chosen("random"))) == 4
    assert _prefills(session, lambda: session.compare(picture.copy(), question, _chosen("random"))) == 0
    assert _prefills(session, lambda: session.compare(picture, question, _chosen("random", keep=0.5))) == 4
    monkeypatch.setattr("tokenprune.eval.play.session._SLOW_MS", 0)  # a slow full model answers once
    assert _prefills(session, lambda: session.compare(picture, question, _chosen("random", keep=0.1))) == 2
    assert _prefills(session, lambda: session.compare(picture, "What shape is red?", _chosen("random"))) == 4


def test_not_everything_is_remembered(forgetful, monkeypatch):
    session = forgetful
    monkeypatch.setattr("tokenprune.eval.play.session._REMEMBERED", 2)
    ask = lambda keep: session.compare(session.examples[0].picture, "What?", _chosen("random", keep=keep))
    for keep in (0.1, 0.2, 0.3):
        ask(keep)
    assert _prefills(session, lambda: ask(0.3)) == 0
    assert _prefills(session, lambda: ask(0.1)) == 4


def test_times_are_medians_of_rounds_in_turns(session, monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 3)
    monkeypatch.setattr(measure, "_SECONDS", 60)
    answers = []
    ask = lambda: session.compare(session.examples[2].picture, "What shape is red?", _chosen("random"))
    assert _prefills(session, lambda: answers.append(ask())) == 2 + 2 * 3  # one of each to warm up
    (found,) = answers
    assert found.full.rounds == found.pruned.rounds == 3
    assert "medians of 3 runs of each, in turns" in parts.numbers(found)


def test_people_who_ask_at_once_do_not_disturb_each_other(forgetful):
    asked = [
        (example, _chosen(*names, keep=keep))
        for example in forgetful.examples[:2]
        for names in (["divprune"], ["fastv@final"], ["divprune", "pyramiddrop"])
        for keep in ((0.1, 0.4) if names == ["divprune"] else (0.1,))
    ]
    ask = lambda what: forgetful.compare(what[0].picture, what[0].question, what[1])
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(ask, asked))
    forgetful._pairs.clear()
    for what, found in zip(asked, at_once, strict=True):
        alone = ask(what)
        assert found.setting is what[1]
        assert found.pruned.answer == alone.pruned.answer
        for record, expected in zip(found.pruned.records, alone.pruned.records, strict=True):
            assert (record.indices, record.cuts) == (expected.indices, expected.cuts)


# Drawing


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["divprune"], ["all layers: 36 of 144 tokens"]),
        (["divprune", "fastv"], ["layers 0 to 1: 53 of 144 tokens", "layers 2 to 3: 19 of 144 tokens"]),
        (
            ["pyramiddrop@final"],
            [f"layer {layer}: {n} of 144 tokens" for layer, n in enumerate((144, 91, 57, 36))],
        ),
        (["vtw@final"], ["layers 0 to 1: 144 of 144 tokens", "layers 2 to 3: 0 of 144 tokens"]),
    ],
)
def test_the_tokens_of_each_layer_are_drawn(session, names, layers):
    white = Image.new("RGB", (96, 96), "white")
    found = session.compare(white, "How many shapes are there?", _chosen(*names))
    assert [view.layers for view in found.views] == layers
    for view in found.views:
        light = np.asarray(view.picture)[..., 0] == 255
        kept = int(view.layers.split()[-4])
        assert light.mean() == pytest.approx(kept / 144, abs=0.02)
    (record,) = found.pruned.records
    first = np.asarray(found.views[0].picture)
    side = len(first) / 12
    centers = ((np.arange(12) + 0.5) * side).astype(int)
    assert np.flatnonzero(first[centers][:, centers, 0] == 255).tolist() == record.indices


def test_a_picture_is_drawn_as_the_model_sees_it(session, qwen):
    assert as_seen(Image.new("RGB", (400, 100)), session.processor).size == (640, 640)  # the square in its middle
    assert as_seen(Image.new("RGB", (400, 100)), qwen.processor).size == (640, 160)


def test_a_picture_whose_token_grid_is_unknown_stays_light(session):
    found = session.compare(session.examples[0].picture, "What shape is cyan?", _chosen("random"))
    seen = as_seen(session.examples[0].picture, session.processor)
    record = found.pruned.records[0].__class__(**{**vars(found.pruned.records[0]), "grids": None})
    (view,) = views(seen, record, session.n_layers)
    assert np.array_equal(np.asarray(view.picture), np.asarray(seen))


def test_a_thumbnail_and_its_crops_are_drawn_side_by_side():
    model, batch = families.get_model("llava_next"), families.ragged_batch("llava_next")
    with torch.no_grad(), pruning(model, ["random", "fastv"], 0.3):
        model(**batch.inputs)
        record = next(r for r in pruning_report(model) if len(r.grids or ()) > 1)
    seen = Image.new("RGB", (60, 40), "white")
    drawn = views(seen, record, model.config.get_text_config().num_hidden_layers)
    assert [view.picture.size for view in drawn] == [(60 * len(record.grids), 40)] * (1 + len(record.cuts))


# What people read


def test_text_of_others_is_no_html(session):
    found = session.compare(session.examples[0].picture, "<b>?</b>", _chosen("random"))
    hostile = found.full.__class__(**{**vars(found.full), "answer": "<script>alert(1)</script>"})
    shown = parts.answers(found.__class__(**{**vars(found), "full": hostile}))
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "<b>" not in parts.message("<b>")


def test_answers_are_marked_where_the_right_one_is_known(session):
    example = session.examples[0]
    found = session.compare(example.picture, example.question, _chosen("random"))
    wrong = found.__class__(**{**vars(found), "right": "nothing of it"})
    unknown = found.__class__(**{**vars(found), "right": None})
    assert parts.answers(found).count("✓ right") == 2
    assert parts.answers(wrong).count("✗ wrong") == 2
    assert "right" not in parts.answers(unknown)
    assert "wrong" not in parts.answers(unknown)


def _cells(shown):
    rows = [row.split("</tr>")[0] for row in shown.split("<tr")[1:]]
    return {
        row.split("</th>")[0].split(">")[-1]: [cell.split("</td>")[0] for cell in row.split("<td>")[1:]]
        for row in rows[1:]
    }


def test_the_table_has_what_was_measured(session):
    example = session.examples[0]
    found = session.compare(example.picture, example.question, _chosen("divprune", "fastv"))
    cells = _cells(parts.numbers(found))
    assert cells["Visual tokens at entry"] == ["144", "53", "−63 %"]
    assert cells["Visual tokens, mean of layers"] == ["144.0", "36.0", "−75 %"]
    assert cells["KV cache, KiB"][:2] == [f"{o.kv_cache_bytes / 1024:.0f}" for o in (found.full, found.pruned)]
    assert cells["Prefill, ms"][:2] == [f"{o.prefill_ms:.1f}" for o in (found.full, found.pruned)]
    assert cells["of it selection, ms"] == ["", f"{found.pruned.select_ms:.1f}", ""]
    assert cells["Answer tokens"] == ["2", "2", "0 %"]


# Replies to events


def _asked(replies, path, question="What shape is cyan?", names=("divprune",), options="", keep=0.25):
    return replies.ask(path, question, list(names), options, keep, "original")


@pytest.fixture
def file(session, tmp_path):
    session.examples[0].picture.save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


def test_a_reply_fills_all_outputs(replies, file):
    problem, kept, layers, drawn, answers, numbers = _asked(replies, file, names=["divprune", "fastv"])
    assert problem.visible is False
    assert kept.alt_text == "Kept tokens in layers 2 to 3: 19 of 144 tokens. Dropped tokens are dark."
    assert (layers.visible, layers.value) == (True, 1)
    assert [label for label, _ in layers.choices] == [view.layers for view in drawn]
    assert "cross" in answers
    assert "KiB" in numbers
    assert replies.kept(drawn, 0).label == "Kept tokens in layers 0 to 1: 53 of 144 tokens"


@needs_gradio
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": None}, "There is no picture; upload one, take one with the camera, or choose an example."),
        ({"path": __file__}, "This file is no picture that can be read; choose a PNG, JPEG or WebP file."),
        ({"question": "  "}, "There is no question; type one."),
        ({"names": []}, "No policy is chosen; choose one, or several that act at different stages."),
        ({"names": ["divprune", "random"]}, "Only one policy can act at the vision stage, got [DivPrune(), Random"),
        ({"names": ["fastv"], "options": "layer=99"}, "wants to drop tokens before decoder layer 99"),
        ({"names": ["fastv"], "options": "layer=x"}, "layer=&#x27;x&#x27; must be a whole number"),
        ({"keep": 0}, "The keep ratio 0 is not between 0.02 and 1."),
        ({"keep": 7}, "The keep ratio 7 is not between 0.02 and 1."),
        ({"keep": None}, "The keep ratio None is not between 0.02 and 1."),
    ],
)
def test_what_is_wrong_is_a_sentence_on_the_page(replies, file, change, sentence):
    problem, kept, layers, drawn, answers, numbers = _asked(replies, **{"path": file, **change})
    assert problem.visible
    assert sentence in problem.value
    assert problem.value.endswith(".</p>")
    assert "Traceback" not in problem.value
    assert (kept.value, layers.visible, drawn, answers, numbers) == (None, False, [], "", "")


@needs_gradio
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"<svg></svg>", b"GIF89a"])
def test_a_broken_picture_is_a_sentence_on_the_page(replies, tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    assert "no picture that can be read" in _asked(replies, str(tmp_path / "broken.png"))[0].value


@needs_gradio
def test_a_picture_cut_short_is_a_sentence_on_the_page(replies, tmp_path):
    Image.effect_noise((200, 200), 99).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    assert "no picture that can be read" in _asked(replies, str(tmp_path / "cut.jpg"))[0].value


@needs_gradio
def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    from tokenprune.eval.play.replies import opened

    picture, exif = Image.new("RGBA", (30, 20), "red"), Image.Exif()
    exif[274] = 6  # the camera was held upright
    picture.save(tmp_path / "phone.png", exif=exif)
    assert (opened(str(tmp_path / "phone.png")).size, opened(str(tmp_path / "phone.png")).mode) == ((20, 30), "RGB")


@needs_gradio
def test_what_nobody_expected_is_a_sentence_too_and_is_logged(replies, file, caplog):
    def fail(module, args):
        raise RuntimeError("out of\nmemory")

    handle = replies.session.model.model.language_model.register_forward_pre_hook(fail)
    try:
        with caplog.at_level(logging.ERROR):
            problem = _asked(replies, file, keep=0.33)[0].value
    finally:
        handle.remove()
    assert "The model could not answer: out of memory (RuntimeError; the log has more)." in problem
    assert "Traceback" in caplog.text
    assert not _asked(replies, file, keep=0.33)[0].visible  # and it goes on


# Serving


def _options(**changes):
    given = dict(
        model="embedded", policy="divprune", keep=0.25, positions="original", new_tokens=8, device="cpu", dtype=None,
        host="127.0.0.1", port=None, share=False, no_browser=True,
    )  # fmt: skip
    return argparse.Namespace(**(given | changes))


def _refusal(**changes):
    with pytest.raises(CommandError) as error, server.served(_options(**changes)):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_gradio_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _refusal() == "the playground needs Gradio: pip install '.[play]' in a checkout of tokenprune"


@needs_gradio
def test_a_port_that_is_taken_is_named_before_the_model_loads(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(Session, "__init__", lambda *args: pytest.fail("loaded a model"))
        assert f"cannot listen on port {port} of 127.0.0.1" in _refusal(port=port)
        assert "192.0.2.1" in _refusal(host="192.0.2.1", port=port)  # an address of nobody


@needs_gradio
def test_pictures_of_examples_stay_as_long_as_the_page(session):
    from gradio.route_utils import delete_files_created_by_app

    from tokenprune.eval.play import page

    blocks = page.build(session, page.Start(("divprune",), "", 0.25, "original"))
    icons = [block.icon["path"] for block in blocks.blocks.values() if getattr(block, "icon", None)]
    assert len(icons) == len(session.examples)
    delete_files_created_by_app(blocks, age=0)
    assert all(Path(icon).exists() for icon in icons)


def test_the_next_free_port_is_taken(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(server, "_PORTS", range(port, min(port + 50, 65535)))
        assert port < server.free_port("127.0.0.1", None) < port + 50


@needs_gradio
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "fastw"}, "--policy fastw: unknown policy 'fastw'. Did you mean 'fastv'?"),
        ({"policy": "fastv:size=3"}, "unknown option 'size'"),
        ({"model": "/nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_served_is_one_line(changes, message):
    assert message in _refusal(**changes)


@needs_gradio
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("fastv:layer=99", "decoder layer 99"),
        ("divprune+random", "only one policy can act at the vision stage"),
        ("tome", "qwen2_5_vl"),
    ],
)
def test_what_does_not_fit_the_model_is_one_line_before_the_page_opens(qwen, monkeypatch, policy, message):
    monkeypatch.setattr("tokenprune.eval.play.session.Session", lambda *args: qwen)  # which is loaded already
    assert message in _refusal(policy=policy)
