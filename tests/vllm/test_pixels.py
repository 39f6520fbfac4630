"""Policies that choose by pixels: counts that follow the picture, and a vision tower that gets what they keep."""

import numpy as np
import pytest
from PIL import Image

from .stock import Stock
from .support import tokens

PROMPT = "<|im_start|><|vision_start|><|image_pad|><|vision_end|>{} what colour is the {} ?<|im_end|><|im_start|>"


def _flat(rng, height, width):
    """A picture of few colours, most of whose blocks their neighbours predict."""
    picture = np.full((height, width, 3), 90, dtype=np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, height - 12), rng.integers(0, width - 12)
        picture[y : y + 12, x : x + 12] = rng.integers(0, 256, 3)
    return picture


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen", "qwen3_vl"])
def test_counts_follow_the_picture(engine, folder, name):
    rng = np.random.default_rng(0)
    sizes = [[(64, 96)], [(96, 64), (80, 80)], [(48, 112)]]
    cases = [
        (PROMPT.format("<|vision_start|><|image_pad|><|vision_end|>" * (len(s) - 1), word), [_flat(rng, *p) for p in s])
        for word in ("circle", "square")
        for s in sizes
    ]
    where = folder(name)
    stock, started = Stock(where), engine(where, "pixelprune", None)
    taken = []
    started.model.visual.register_forward_pre_hook(lambda module, args: taken.append(len(args[0])))
    for keep in (None, 0.4, 9, 1.0):
        del taken[:]
        more = {} if keep is None else {"mm_processor_kwargs": {"keep": keep}}
        outputs = started.ask(
            [
                {"prompt": text, "multi_modal_data": {"image": [Image.fromarray(i) for i in images]}} | more
                for text, images in cases
            ]
        )
        counts = [sum(token in started.visual for token in out.prompt_token_ids) for out in outputs]
        expected, reports = stock.answers(cases, "pixelprune", keep, reports=True)
        assert tokens(outputs) == expected
        assert counts == [sum(record.n_after for record in report) for report in reports]
        assert sum(taken) == 4 * sum(counts)  # patches that went through the tower
        if keep is None:
            assert len(set(counts)) > 3
            assert all(count < record[0].n_before for count, record in zip(counts, reports, strict=True))


@pytest.mark.parametrize("name", ["qwen", "qwen3_vl"])
def test_frames_of_a_video_that_do_not_change(engine, folder, name):
    """On Qwen3-VL text stands between frames, of which nothing may be left."""
    still = np.zeros((48, 64, 3), dtype=np.uint8)
    moved = still.copy()
    moved[8:24, 8:24] = np.random.default_rng(1).integers(0, 256, (16, 16, 3))
    video = np.stack([still, still, moved, moved] + [still] * 4)
    metadata = {
        "fps": 2.0, "duration": 4.0, "total_num_frames": 8, "frames_indices": list(range(8)),
        "video_backend": "opencv",
    }  # fmt: skip
    text = PROMPT.replace("image_pad", "video_pad").format("", "circle")
    where = folder(name)
    started = engine(where, "rlt", None, videos=1)
    asked = {"prompt": text, "multi_modal_data": {"video": [(video, metadata | {"do_sample_frames": False})]}}
    for more in ({}, {"mm_processor_kwargs": {"keep": 0.3}}):
        (out,) = started.ask([asked | more])
        expected, report = Stock(where).video_answer(text, video, metadata, "rlt", 0.3 if more else None)
        assert tokens([out]) == [expected]
        assert sum(token in started.visual for token in out.prompt_token_ids) == sum(each.n_after for each in report)
