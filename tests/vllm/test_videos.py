"""Videos: of Qwen2.5-VL one stretch of tokens, whose temporal coordinates go on by the clock; and of others."""

import numpy as np
import pytest
import torch

from tokenprune import pruning
from tokenprune.eval import minivlm
from tokenprune.policies.registration import registry
from tokenprune.serve.settings import PER_FRAME

from .stock import Stock
from .support import NEW_TOKENS, loaded, tokens

PROMPT = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|> what colour is the {} ?<|im_end|>\n<|im_start|>"
#: Of Gemma 4, of frames of 48 x 72 pixels: 6 x 10 patches of 8 x 8 pixels fit in its least number, 70.
TOKENS_OF_A_FRAME = 60


def _noise(rng, *shape):
    return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)


def _metadata(frames):
    return {
        "fps": 2.0, "duration": frames / 2, "total_num_frames": frames, "frames_indices": list(range(frames)),
        "video_backend": "opencv",
    }  # fmt: skip


def _request(text, video, metadata):
    return {"prompt": text, "multi_modal_data": {"video": [(video, metadata | {"do_sample_frames": False})]}}


@pytest.mark.parametrize("policy", ["divprune", "evs"])  # evs compares frames
def test_answers_are_those_of_the_hugging_face_path(engine, policy):
    from transformers import Qwen2_5_VLProcessor

    processor, model = Qwen2_5_VLProcessor.from_pretrained(minivlm.WEIGHTS["qwen"]), loaded("qwen")[0]
    rng, asked, expected, kept = np.random.default_rng(0), [], [], []
    for word, frames in (("circle", 4), ("square", 6), ("cross", 8)):
        still = rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
        video = np.where(rng.random((frames, 64, 96, 1)) < 0.2, rng.integers(0, 256, (frames, 64, 96, 3)), still)
        video = video.astype(np.uint8)
        text, metadata = PROMPT.format(word), _metadata(frames)
        asked.append(_request(text, video, metadata))
        inputs = processor(
            text=[text], videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
        )
        with pruning(model, policy, 0.3), torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        expected.append(out[0, inputs["input_ids"].shape[1] :].tolist())
        kept.append(round(0.3 * int(inputs["video_grid_thw"].prod()) / 4))
    started = engine("qwen", policy, 0.3, videos=1)
    outputs = started.ask(asked)
    assert [sum(token in started.visual for token in out.prompt_token_ids) for out in outputs] == kept
    assert tokens(outputs) == expected


#: A prompt with a video; `{}` is a word.
PROMPTS = {
    "qwen2_vl": PROMPT,
    "llava_onevision": "USER : <video> What colour is the {} ? ASSISTANT :",
    "internvl": "USER : <video> What colour is the {} ? ASSISTANT :",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_of_other_architectures(engine, folder, name):
    rng, stock, asked, expected = np.random.default_rng(0), Stock(folder(name)), [], []
    for word, frames in (("circle", 2), ("cross", 4)):
        text, video, metadata = PROMPTS[name].format(word), _noise(rng, frames, 24, 24), _metadata(frames)
        asked.append(_request(text, video, metadata))
        expected.append(stock.video_answer(text, video, metadata, "divprune", 0.4)[0])
    assert tokens(engine(folder(name), "divprune", 0.4, videos=1).ask(asked)) == expected


@pytest.mark.parametrize("name", ["gemma4", "gemma4_unified"])
def test_frames_behind_time_stamps(engine, folder, name, monkeypatch):
    policy = registry()["divprune"]()
    policy.per_frame = True
    monkeypatch.setenv(PER_FRAME, "1")
    rng, stock, asked, expected = np.random.default_rng(0), Stock(folder(name)), [], []
    for word, frames in (("circle", 2), ("cross", 3)):
        text = f"USER : <|video|> What colour is the {word} ? ASSISTANT :"
        video, metadata = _noise(rng, frames, 48, 72), _metadata(frames)
        asked.append(_request(text, video, metadata))
        expected.append(stock.video_answer(text, video, metadata, policy, 0.3)[0])
    started = engine(folder(name), "divprune", 0.3, videos=1)
    outputs = started.ask(asked)
    assert tokens(outputs) == expected
    kept = [sum(token in started.visual for token in out.prompt_token_ids) for out in outputs]
    assert kept == [round(0.3 * frames * TOKENS_OF_A_FRAME) for frames in (2, 3)]
