"""`tokenprune show`: right pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers.image_utils import load_image

from tokenprune import cli, pruning, pruning_report
from tokenprune.eval import show
from tokenprune.eval.pictures import dim, fitted, kept_masks, model_crop

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


def _shown(path, tmp_path, model="embedded"):
    """What `tokenprune show` draws of a picture: panels of the full model and of a pruned one."""
    arguments = ["show", "--image", str(path), "--model", model, "--policy", "divprune", "--new-tokens", "2"]
    options = cli.parser().parse_args([*arguments, "--out", str(tmp_path / "out" / "kept.png")])
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
    assert "divprune 0.1: " in pruned.title


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
