"""Pictures of users: files and addresses, and what is said of those that cannot be used."""

import functools
import http.server
import io
import threading

import numpy as np
import pytest
from PIL import Image

from tokenprune.eval.errors import CommandError
from tokenprune.eval.images import open_image


@pytest.fixture
def folder(tmp_path):
    photo = Image.new("RGB", (64, 32), "red")
    exif = photo.getexif()
    exif[0x0112] = 6  # lies on its side
    photo.save(tmp_path / "photo.jpg", exif=exif)
    whole = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "broken.jpg").write_bytes(whole[:400])
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(noise, "png")
    (tmp_path / "broken.png").write_bytes(noise.getvalue()[:3000])
    damaged = bytearray(noise.getvalue())
    damaged[200:210] = bytes(10)
    (tmp_path / "damaged.png").write_bytes(damaged)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    return tmp_path


@pytest.fixture
def address(folder):
    """The folder, served on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_and_an_address_are_the_same_picture(folder, address):
    pictures = [
        open_image(folder / "photo.jpg"),
        open_image(str(folder / "photo.jpg")),
        open_image(f"{address}/photo.jpg"),
    ]
    for picture in pictures:
        assert picture.mode == "RGB" and picture.size == (32, 64)
        assert np.array_equal(np.asarray(picture), np.asarray(pictures[0]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.jpg", "No such file or directory"),
        (".", "Is a directory"),
        ("broken.jpg", "broken.jpg is broken: "),
        ("broken.png", "broken.png is broken: "),
        ("damaged.png", "damaged.png is broken: "),
        ("text.png", "text.png is no picture"),
        ("empty.png", "empty.png is no picture"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(folder, name, message):
    with pytest.raises(CommandError, match=message) as error:
        open_image(folder / name)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken.jpg", "cannot be fetched"), ("text.png", "is no picture"), ("nowhere.jpg", "is no picture")],
)
def test_an_address_that_cannot_be_used_is_named(address, name, message):
    with pytest.raises(CommandError, match=f"{address}/{name} {message}"):
        open_image(f"{address}/{name}")


def test_an_address_where_nobody_answers():
    with pytest.raises(CommandError, match=r"http://127\.0\.0\.1:9/x\.png cannot be fetched: "):
        open_image("http://127.0.0.1:9/x.png")


def test_a_bomb(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(CommandError, match=r"photo\.jpg is too large"):
        open_image(folder / "photo.jpg")
