"""Videos of users: files, and addresses that are fetched.

They are decoded here, since the decoders that processors support depend on the versions of transformers and
torchvision.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import CommandError
from .images import ADDRESSES
from .processors import check_videos

#: Frames of a video that a model is shown at most, unless another number is given.
FRAMES = 32


def decode_videos(conversations: Sequence[list[dict[str, Any]]], frames: int = FRAMES) -> dict[str, Any]:
    """Replace the videos of conversations, named by a file or an address, by their frames, in place.

    Args:
        conversations: messages as chat templates take them. A video that is an array of frames stays.
        frames: how many are taken of each, evenly spaced; all if there are fewer.

    Returns:
        Options for the processor; empty if there is no video.

    Raises:
        CommandError: PyAV is not installed, or a video is not there or cannot be read; naming it.
    """
    parts = [part for messages in conversations for message in messages for part in _parts(message)]
    metadata: list[Any] = []
    for part in parts:
        if part.get("type") == "video":
            found: Any = None
            if isinstance(part["video"], str | os.PathLike):
                part["video"], found = read_video(part["video"], frames)
            metadata.append(found)
    return {"do_sample_frames": False, "video_metadata": metadata} if metadata else {}


def read_video(source: str | os.PathLike[str], frames: int = FRAMES) -> tuple[np.ndarray, Any]:
    """The frames of a video, uint8 (n, height, width, 3), and what transformers' video processors want to know of it.

    Args:
        source: a file, or an address that starts with `http://` or `https://`.
        frames: how many are taken, evenly spaced; all if there are fewer.

    Raises:
        CommandError: as `decode_videos`.
    """
    from transformers.video_utils import load_video

    name: Any = os.fspath(source)
    if not name.startswith(ADDRESSES) and not os.path.isfile(name):
        raise CommandError(f"{name}: no such file")
    if importlib.util.find_spec("av") is None:
        raise CommandError(f"{name} is a video, which needs PyAV to be read: pip install av")

    def spaced(metadata: Any, **kwargs: Any) -> np.ndarray:
        total = metadata.total_num_frames or _counted(name)  # Matroska files do not say it
        return np.linspace(0, total - 1, min(frames, total)).round().astype(int)

    try:
        found, metadata = load_video(name, backend="pyav", sample_indices_fn=spaced)
    except Exception as error:
        raise CommandError(f"{name} cannot be read as a video: {error}") from error
    return found, metadata


def _counted(name: str) -> int:
    """Number of frames of a video that does not say it."""
    import av

    with av.open(name) as container:
        return sum(1 for _ in container.decode(video=0))


def check_reads_videos(processor: Any, model_type: str) -> None:
    """Check that a processor reads videos.

    Args:
        processor: of a checkpoint.
        model_type: of the checkpoint.

    Raises:
        CommandError: the model takes none, or torchvision is not installed.
    """
    if not hasattr(processor, "video_processor"):
        raise CommandError(f"model type {model_type!r} takes no videos")
    check_videos(processor)


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content", "")
    return [] if isinstance(content, str) else content
