"""`tokenprune show`: right pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers.image_utils import load_image

from tokenprune import cli, pruning, pruning_report
from tokenprune.eval import answers, minivlm, show
from tokenprune.eval.panel_sheet import grid
from tokenprune.eval.panels import Panel, Question, Viewer, legend
from tokenprune.eval.pictures import EARLY, EARLY_SHARE, FRAME, dim, fitted, framed, kept_masks, masks, model_crop
from tokenprune.eval.setting import PruningSetting, settings_grid
from tokenprune.patches.packed_tower import no_packed_geometry
from tokenprune.policies import make_policy

from .. import families


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_masks_have_what_the_record_says(name):
    model, batch = families.get_model(name), families.ragged_batch(name)
    with torch.no_grad(), pruning(model, "random", 0.3):
        model(**batch.inputs)
        records = pruning_report(model)
    for record in records:
        masks = kept_masks(record)
        assert [m.shape for m in masks] == list(record.grids)
        places = [i for i in range(record.n_before) if i not in record.separators]
        left = np.flatnonzero(np.concatenate([m.ravel() for m in masks]))
        assert [places[i] for i in left] == [i for i in record.indices if i not in record.separators]


def test_dropped_patches_are_dark():
    image = np.full((7, 10, 3), 200, np.uint8)
    kept = np.array([[True, False], [False, True]])
    dark = dim(image, kept)
    assert (dark[:4, :5] == 200).all()
    assert (dark[4:, 5:] == 200).all()
    assert (dark[:3, 5:] == 36).all()
    assert (dark[4:, :5] == 36).all()


def test_patches_of_lower_layers_are_half_dark():
    image = np.full((8, 8, 3), 200, np.uint8)
    kept, entered = np.array([[True, False], [False, False]]), np.array([[True, True], [False, False]])
    dark = dim(image, kept, entered)
    assert [dark[y, x, 0] for y, x in ((0, 0), (0, 7), (7, 0), (7, 7))] == [200, 100, 36, 36]


def test_merged_patches_have_a_frame():
    image = np.zeros((24, 48, 3), np.uint8)
    drawn = framed(image, np.array([[False, True, False, False], [False, False, False, False]]))
    on_frame = (drawn == FRAME).all(2)
    assert on_frame[0, 12:24].all()
    assert on_frame[11, 12:24].all()
    assert on_frame[:12, 12].all()
    assert on_frame[:12, 23].all()
    assert not on_frame[2:10, 14:22].any()
    assert not on_frame[:, :12].any()
    assert not on_frame[12:].any()


def test_only_what_the_model_sees_is_shown():
    class Processor:
        class image_processor:
            do_center_crop, crop_size = True, {"height": 10, "width": 10}

    assert model_crop(Image.new("RGB", (40, 20)), Processor()).size == (20, 20)
    Processor.image_processor.do_center_crop = False
    assert model_crop(Image.new("RGB", (40, 20)), Processor()).size == (40, 20)


def test_show_draws_policies_side_by_side(tmp_path, capsys):
    Image.new("RGB", (120, 96), "red").save(tmp_path / "red.png")
    out = tmp_path / "kept.png"
    arguments = ["--policy", "divprune,divprune+fastv", "--keep", "0.25,9", "--question", "How many shapes are there?"]
    cli.main(["show", "--image", str(tmp_path / "red.png"), *arguments, "--out", str(out)])
    width, height = Image.open(out).size
    assert width > height / 2
    assert out.name in capsys.readouterr().out
    cli.main(["show", "--out", str(tmp_path / "drawn.png")])
    assert Image.open(tmp_path / "drawn.png").height > 500


def _panels(policies, keeps):
    settings = [PruningSetting(), *settings_grid(policies, keeps, full=False)]
    return [Panel(setting, np.zeros((1, 1, 3), np.uint8), "", None, None, None, 1, 1) for setting in settings]


@pytest.mark.parametrize(
    ("policies", "columns"), [(0, 1), (2, 3), (5, 6), (6, 4), (8, 5), (11, 6), (12, 5), (24, 5), (28, 6)]
)
def test_many_panels_are_wrapped(policies, columns):
    panels = _panels(["random"] * policies, [0.1])
    rows = grid(panels)
    assert [panel for row in rows for panel in row] == panels
    assert max(len(row) for row in rows) == columns


def test_keep_ratios_have_a_row_each():
    panels = sorted(_panels(["divprune", "random"], [0.5, 9]), key=lambda panel: repr(panel.setting.keep) == "9")
    full, *pruned = panels
    assert grid(panels) == [[full, *pruned[:2]], [None, *pruned[2:]]]
    assert [len(row) for row in grid(_panels(["random"] * 6, [0.5, 9]))] == [5, 5, 3]


def _options(tmp_path, *arguments):
    return cli.parser().parse_args(["show", *arguments, "--out", str(tmp_path / "out" / "kept.png")])


@pytest.fixture(scope="module")
def embedded():
    """Asks the embedded LLaVA about a drawn scene, and what it is asked."""
    (sample,) = answers.held_out(1)
    question = Question(Image.fromarray(sample.scene.image), sample.question.text, sample.question.answer)
    return Viewer(*minivlm.load(), 4), question


def test_what_a_panel_says(embedded):
    viewer, question = embedded
    full, divprune, fastv = (
        viewer.look(question, PruningSetting(*setting)) for setting in ((), ("divprune", 0.1), ("fastv@final", 0.1))
    )
    assert [panel.title for panel in (full, divprune, fastv)] == ["full model", "divprune 0.1", "fastv@final 0.1"]
    assert full.kept == "all 144 tokens"
    assert divprune.kept == "14 of 144"
    assert fastv.kept == "14 of 144 at the end, 79 in the mean"  # (2 * 144 + 2 * 14) / 4 layers
    assert [panel.mean for panel in (full, divprune, fastv)] == [144, 14, 79]
    assert full.correct is True
    assert all(panel.correct is (panel.answer == question.expected) for panel in (divprune, fastv))


def test_what_is_bright_half_dark_and_framed(embedded):
    viewer, question = embedded
    full = viewer.look(question, PruningSetting())
    for policy in ("prumerge", "fastv@final", "divprune", "auto"):
        panel = viewer.look(question, PruningSetting(policy, 0.1))
        (kept,), (entered,), (merged,) = (
            masks(panel.record, each) for each in (panel.record.deep_indices or panel.record.indices,
                                                   panel.record.indices, panel.merged)
        )  # fmt: skip
        centers = (np.arange(12) + 0.5) * panel.picture.shape[0] / 12
        at = np.ix_(centers.astype(int), centers.astype(int))
        bright, seen = full.picture[at].astype(int), panel.picture[at]
        for mask, light in ((kept[0], 1), (entered[0] & ~kept[0], 0.5), (~entered[0], 0.18)):
            assert (seen[mask] == (bright[mask] * light).astype(np.uint8)).all()
        assert (merged.sum() > 0) == (policy == "prumerge")
        assert set(panel.merged) <= set(panel.record.indices)
        assert ((panel.picture == FRAME).all(2).any()) == (policy == "prumerge")


def test_merged_tokens_are_those_whose_features_changed(embedded):
    """Against what the policy itself answers."""
    viewer, question = embedded
    viewer.look(question, PruningSetting())
    seen = []

    class Watched(type(make_policy("visionzip"))):
        def select(self, tokens, n_keep):
            selection = super().select(tokens, n_keep)
            same = (selection.features - tokens.features[selection.indices]).abs().amax(1) < 1e-5
            seen.append(selection.indices[~same].tolist())
            return selection

    panel = viewer.look(question, PruningSetting(Watched(), 0.1))
    assert 0 < len(panel.merged) < len(panel.record.indices)
    assert [list(panel.merged)] == seen


def test_the_legend_has_what_occurs(embedded):
    viewer, question = embedded
    full, divprune, fastv = (
        viewer.look(question, PruningSetting(*setting)) for setting in ((), ("divprune", 0.1), ("fastv@final", 0.1))
    )
    texts = lambda panels: " ".join(part.text for part in legend(panels))
    assert "dropped" not in texts([full])
    assert "half dark" not in texts([full, divprune])
    assert "half dark" in texts([full, fastv])
    assert "framed" not in texts([full, divprune, fastv])
    assert {part.mark for part in legend([full])} == {"", "✓", "✗"}


@pytest.mark.skipif(no_packed_geometry() is not None, reason="this transformers has no seam in its towers")
def test_what_left_before_the_encoder_is_blue():
    question = Question(Image.fromarray(answers.held_out(1)[0].scene.image), answers.held_out(1)[0].question.text)
    viewer = Viewer(*minivlm.load("qwen"), 2)
    full = viewer.look(question, PruningSetting())
    panel = viewer.look(question, PruningSetting("grid@pixels+divprune", 0.1))
    record = panel.record
    assert panel.kept == f"{record.n_after} of {record.n_before}, {record.n_by_stage['pixels']} after pixels"
    assert panel.merged == ()
    (kept,), (encoded,) = (masks(record, each) for each in (record.indices, record.kept_after["pixels"]))
    height, width = kept.shape[1:]
    at = np.ix_(
        *((np.arange(n) + 0.5) * side / n for n, side in zip((height, width), panel.picture.shape[:2], strict=True))
    )
    at = tuple(each.astype(int) for each in at)
    bright, seen = full.picture[at].astype(int), panel.picture[at]
    assert (seen[kept[0]] == bright[kept[0]]).all()
    dark = (bright * 0.18).astype(np.uint8)
    assert (seen[encoded[0] & ~kept[0]] == dark[encoded[0] & ~kept[0]]).all()
    blue = (dark * (1 - EARLY_SHARE) + EARLY_SHARE * np.array(EARLY)).astype(np.uint8)
    assert (seen[~encoded[0]] == blue[~encoded[0]]).all()
    assert "dark blue" in " ".join(part.text for part in legend([full, panel]))
    assert [values["tokens_by_stage"] for values in show.as_json([(question, [full, panel])])] == [
        None,
        record.n_by_stage,
    ]


def test_json_has_what_is_drawn(tmp_path):
    options = _options(tmp_path, "--policy", "divprune,fastv@final", "--keep", "0.1,0.5")
    options.json = tmp_path / "shown.json"
    show.run(options, Console(quiet=True))
    values = json.loads(options.json.read_text())
    assert len(values) == 3 * 5
    assert [(each["policy"], each["keep"]) for each in values[:5]] == [
        ("full", 1.0), ("divprune", 0.1), ("fastv@final", 0.1), ("divprune", 0.5), ("fastv@final", 0.5),
    ]  # fmt: skip
    for each in values:
        assert len(each["indices"]) == each["tokens_after"] <= each["tokens_before"] == 144
        assert each["correct"] is (each["answer"] == each["expected"])
        assert each["grids"] == (None if each["policy"] == "full" else [[1, 12, 12]])
    assert values[2]["tokens_mean"] == 79
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    options = _options(tmp_path, "--image", str(tmp_path / "red.png"), "--new-tokens", "2")
    values = show.as_json(show.look(options, options.policy, options.keep, Console(quiet=True)))
    assert {each["correct"] for each in values} == {None}
    assert {each["image"] for each in values} == {str(tmp_path / "red.png")}


def test_answers_are_not_judged_where_the_right_one_is_unknown(tmp_path):
    found = show.rows(
        _options(tmp_path, "--question", "Is it nice?", "--new-tokens", "1"), ["random"], [9], Console(quiet=True)
    )
    assert {panel.correct for _, panels in found for panel in panels} == {None}


def _shown(path, tmp_path, model="embedded"):
    """What `tokenprune show` draws of a picture: panels of the full model and of a pruned one."""
    options = _options(tmp_path, "--image", str(path), "--model", model, "--policy", "divprune", "--new-tokens", "2")
    found = show.rows(options, options.policy, options.keep, Console(quiet=True))
    show.draw(options.out, found)
    assert Image.open(options.out).width > 200
    return found[0][1]


@pytest.mark.parametrize(
    ("size", "model", "drawn"),
    [
        # of a long picture the embedded LLaVA sees the square in its middle
        ((300, 1), "embedded", (640, 640)),
        ((1, 300), "embedded", (640, 640)),
        ((1, 1), "embedded", (640, 640)),
        ((2000, 1), "embedded", (640, 640)),
        # the embedded Qwen all of it, up to its processor's limit of 200:1
        ((190, 1), "embedded-qwen", (640, 3)),
        ((1, 190), "embedded-qwen", (5, 1024)),
        ((1, 1), "embedded-qwen", (640, 640)),
    ],
)
def test_thin_and_tiny_pictures_are_shown(tmp_path, size, model, drawn):
    Image.new("RGB", size, "red").save(tmp_path / "thin.png")
    full, pruned = _shown(tmp_path / "thin.png", tmp_path, model)
    assert full.picture.shape == (*reversed(drawn), 3)
    assert (full.picture == (255, 0, 0)).all()
    assert pruned.picture.shape == full.picture.shape
    assert pruned.title == "divprune 0.1"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_transformers_turns_them(tmp_path, orientation):
    """A corner of its own colour tells all eight ways to lie apart."""
    photo = Image.new("RGB", (64, 32), "white")
    photo.paste("red", (0, 0, 32, 16))
    photo.paste("blue", (32, 0, 64, 16))
    exif = photo.getexif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "phone.png", exif=exif)
    turned = load_image(str(tmp_path / "phone.png"))
    assert turned.size == ((64, 32) if orientation < 5 else (32, 64))
    full, _ = _shown(tmp_path / "phone.png", tmp_path, "embedded-qwen")
    expected = turned.resize(fitted(*turned.size, 640), Image.Resampling.NEAREST)
    assert np.array_equal(full.picture, np.asarray(expected))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_any_mode_are_shown(tmp_path, mode):
    name = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new(mode, (96, 96)).save(name)
    assert len(_shown(name, tmp_path)) == 2


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((64, 64), (320, 320)),
        ((640, 480), (320, 240)),
        ((3, 2), (320, 213)),
        ((10, 16), (320, 512)),
        ((10, 17), (301, 512)),
        ((1, 10_000), (1, 512)),
        ((10_000, 1), (320, 1)),
        ((1, 1), (320, 320)),
    ],
)
def test_pictures_fill_a_column(size, box):
    assert fitted(*size, 320) == box


@pytest.mark.parametrize("size", [(300, 1), (1, 300), (1, 1), (7, 1), (1, 2)])
@pytest.mark.parametrize("crop", [{"height": 336, "width": 336}, {"height": 100, "width": 300}])
def test_what_is_seen_of_a_thin_picture_is_not_empty(size, crop):
    class Processor:
        class image_processor:
            do_center_crop, crop_size = True, crop

    picture = Image.new("RGB", size, "red")
    found = model_crop(picture, Processor())
    assert min(found.size) >= 1
    assert np.asarray(found).min(axis=(0, 1)).tolist() == [255, 0, 0]  # nothing from outside the picture


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "--image", "/nowhere.png"], "/nowhere.png"),
        (["show", "--model", "/nowhere"], "nowhere"),
        (["report", "--eval", "/nowhere"], "/nowhere"),
        (["report", "--profile", __file__], "is no JSON"),
    ],
)
def test_what_is_not_there_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
