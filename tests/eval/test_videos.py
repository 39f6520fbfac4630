"""Videos of users, on a machine that may lack what decodes them; `tests/lmms_eval` decodes some."""

import importlib.util

import numpy as np
import pytest

from tokenprune import Prompt, tune
from tokenprune.eval import minivlm
from tokenprune.eval.errors import CommandError
from tokenprune.eval.videos import check_reads_videos, decode_videos, read_video


def conversation(video):
    return [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": "What?"}]}]


def test_frames_that_are_given_stay():
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    talk = conversation(frames)
    assert decode_videos([talk, [{"role": "user", "content": "Why?"}]]) == {
        "do_sample_frames": False,
        "video_metadata": [None],
    }
    assert talk[0]["content"][0]["video"] is frames
    assert decode_videos([[{"role": "user", "content": "Why?"}]]) == {}


def test_a_video_that_is_not_there():
    with pytest.raises(CommandError, match=r"none\.mp4: no such file"):
        decode_videos([conversation("none.mp4")])


@pytest.mark.skipif(importlib.util.find_spec("av") is not None, reason="about machines without PyAV")
def test_without_pyav(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(CommandError, match=r"a\.mp4 is a video, which needs PyAV to be read: pip install av"):
        read_video(tmp_path / "a.mp4")


def test_models_and_processors_that_take_none():
    model, processor = minivlm.load()
    with pytest.raises(CommandError, match="model type 'llava' takes no videos"):
        tune(model, processor, [Prompt("What?", videos=[f"{i}.mp4"]) for i in range(8)])
    if importlib.util.find_spec("torchvision") is None:
        with pytest.raises(CommandError, match="videos need torchvision"):
            check_reads_videos(minivlm.load_processor("qwen"), "qwen2_5_vl")
