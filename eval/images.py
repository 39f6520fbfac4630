"""Pictures of users: files, and addresses that are fetched."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import CommandError

if TYPE_CHECKING:
    from PIL import Image

_TIMEOUT = 30.0  # of a fetch, seconds
#: How addresses of pictures and videos begin.
ADDRESSES = ("http://", "https://")


def open_image(source: str | os.PathLike[str]) -> Image.Image:
    """A picture in RGB, turned as its EXIF orientation says.

    Args:
        source: a file, or an address that starts with `http://` or `https://`.

    Raises:
        CommandError: naming the file or address, if it is not there, cannot be read or is no picture.
    """
    from PIL import Image, UnidentifiedImageError
    from transformers.image_utils import load_image

    name = os.fspath(source)
    try:
        if name.startswith(ADDRESSES):
            return load_image(name, timeout=_TIMEOUT)
        with Image.open(name) as image:
            return load_image(image)
    except UnidentifiedImageError as error:
        raise CommandError(f"{name} is no picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise CommandError(f"{name} is too large: {error}") from error
    except Exception as error:
        if name.startswith(ADDRESSES):
            raise CommandError(f"{name} cannot be fetched: {error}") from error
        if isinstance(error, OSError) and error.strerror:  # the operating system's: not there, no right to read
            raise CommandError(f"{name}: {error.strerror}") from error
        if isinstance(error, OSError | SyntaxError | ValueError | EOFError):  # as Pillow raises for broken files
            raise CommandError(f"{name} is broken: {error}") from error
        raise
