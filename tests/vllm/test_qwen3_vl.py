"""Qwen3-VL: pictures of several sizes, deepstack planes, videos frame by frame behind their time stamps."""

import numpy as np
import pytest
import torch
from PIL import Image

from tokenprune import pruning
from tokenprune.policies.registration import registry
from tokenprune.serve.settings import PER_FRAME

from .support import NEW_TOKENS, tokens

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def _noise(rng, *shape):
    return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)


def _text(visual, words):
    return f"<|im_start|>{visual} what colour is the {words} ?<|im_end|><|im_start|>"


@pytest.fixture(scope="module")
def stock(folder):
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    model = Qwen3VLForConditionalGeneration.from_pretrained(folder("qwen3_vl"), dtype=torch.float32).eval()
    return model, Qwen3VLProcessor.from_pretrained(folder("qwen3_vl"))


def _expected(stock, policy, keep, **inputs):
    model, processor = stock
    inputs = processor(return_tensors="pt", **inputs)
    with pruning(model, policy, keep), torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    grids = inputs.get("video_grid_thw", inputs.get("image_grid_thw"))
    return out[0, inputs["input_ids"].shape[1] :].tolist(), int(grids.prod(-1).sum()) // 4


@pytest.mark.parametrize("policy", ["divprune", "cdpruner"])
def test_pictures(engine, folder, stock, policy):
    rng = np.random.default_rng(0)
    cases = [
        (_text(PICTURE * len(sizes), word), [_noise(rng, *size) for size in sizes])
        for word in ("circle", "square", "cross")
        for sizes in ([(64, 96)], [(96, 64), (80, 80)], [(48, 112)])
    ]
    started = engine(folder("qwen3_vl"), policy, 0.3)
    outputs = started.ask(
        [
            {"prompt": text, "multi_modal_data": {"image": [Image.fromarray(i) for i in images]}}
            for text, images in cases
        ]
    )
    expected = [_expected(stock, policy, 0.3, text=[text], images=[images]) for text, images in cases]
    assert tokens(outputs) == [answer for answer, _ in expected]
    assert len({tuple(answer) for answer, _ in expected}) > 2  # the model does not say one thing whatever it sees


def test_videos(engine, folder, stock, monkeypatch):
    policy = registry()["divprune"]()
    policy.per_frame = True
    rng = np.random.default_rng(1)
    cases = [(_text(VIDEO, word), _noise(rng, frames, 64, 96)) for word, frames in (("circle", 4), ("square", 6))]
    monkeypatch.setenv(PER_FRAME, "1")
    started = engine(folder("qwen3_vl"), "divprune", 0.3, videos=1)
    asked, expected = [], []
    for text, video in cases:
        metadata = {
            "fps": 2.0, "duration": len(video) / 2, "total_num_frames": len(video),
            "frames_indices": list(range(len(video))), "video_backend": "opencv", "do_sample_frames": False,
        }  # fmt: skip
        asked.append({"prompt": text, "multi_modal_data": {"video": [(video, metadata)]}})
        told = {name: value for name, value in metadata.items() if name != "do_sample_frames"}
        expected.append(
            _expected(stock, policy, 0.3, text=[text], videos=[video], video_metadata=[told], do_sample_frames=False)
        )
    outputs = started.ask(asked)
    assert tokens(outputs) == [answer for answer, _ in expected]
    for out, (_, whole) in zip(outputs, expected, strict=True):
        assert sum(token in started.visual for token in out.prompt_token_ids) == round(0.3 * whole)
    monkeypatch.delenv(PER_FRAME)
    with pytest.raises(ValueError, match=f"{PER_FRAME}=1"):
        engine(folder("qwen3_vl"), "divprune", 0.3, videos=1).ask(asked[:1])
