"""Every architecture that is served: greedy answers are those of the Hugging Face path."""

import numpy as np
import pytest
import torch
from PIL import Image

from .stock import Stock
from .support import tokens

#: What stands for a picture in a prompt.
PICTURES = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "llava": "<image> ", "gemma3": "<boi> no "}
PROMPTS = {
    "qwen": "<|im_start|>{} what colour is the {} ?<|im_end|><|im_start|>",
    "llava": "USER : {} What colour is the {} ? ASSISTANT :",
}
#: Where the engine cuts several pictures of a prompt into tiles, and transformers does not.
ONE_PICTURE = {"llava_onevision"}
SIZES = ([(64, 96)], [(96, 64), (80, 80)], [(48, 112)])
KEEP = (0.3, 7)


def _cases(name):
    """(prompt, pictures)."""
    rng, kind = np.random.default_rng(0), "qwen" if name.startswith("qwen") else "llava"
    picture = PICTURES.get(name, PICTURES[kind])
    return [
        (
            PROMPTS[kind].format(picture * len(sizes), word),
            [rng.integers(0, 256, (*s, 3), dtype=np.uint8) for s in sizes],
        )
        for word in ("circle", "square", "cross")
        for sizes in SIZES
        if len(sizes) == 1 or name not in ONE_PICTURE
    ]


def _requests(cases, keep):
    return [
        {
            "prompt": text,
            "multi_modal_data": {"image": [Image.fromarray(image) for image in images]},
            "mm_processor_kwargs": {"keep": keep},
        }
        for text, images in cases
    ]


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("llava_next", "divprune"),
        ("llava_next", "visionzip"),  # CLS attention, keys and features before the projector, tile by tile
        ("llava_onevision", "divprune"),
        ("llava_onevision", "vispruner"),  # attention received, no CLS
        ("internvl", "divprune"),
        ("internvl", "cdpruner"),  # behind each picture stands a token that is part of the question
        ("gemma3", "divprune"),
        ("gemma3", "cdpruner"),
        ("gemma3", "fopru"),  # attention received, crop by crop
        ("gemma4", "divprune"),
        ("gemma4_unified", "cdpruner"),
        ("gemma4", "cdpruner"),
        ("mistral3", "divprune"),
        ("mistral3", "cdpruner"),
        ("qwen2_vl", "divprune"),
        ("qwen2_vl", "mmtok"),  # patches before the merger
        ("qwen3_vl_moe", "cdpruner"),
    ],
)
def test_pictures(engine, folder, name, policy):
    stock, cases = Stock(folder(name)), _cases(name)
    started = engine(folder(name), policy, KEEP[0])
    for keep in KEEP:
        expected = stock.answers(cases, policy, keep)
        assert tokens(started.ask(_requests(cases, keep))) == expected
        assert len({tuple(answer) for answer in expected}) > 2  # the model does not say one thing whatever it sees


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_linear_attention(engine, folder, name):
    """The engine has it in bfloat16 alone on a CPU, so what is compared is the first token's log-probabilities."""
    stock, cases = Stock(folder(name), torch.bfloat16), _cases(name)
    started = engine(folder(name), "grid", 0.3, dtype="bfloat16", max_logprobs=100)
    found = started.log_probs(_requests(cases, 0.3))
    apart = (found - stock.log_probs(cases, "grid", 0.3, "original")).abs().amax(1)
    assert apart.max() < 0.25
    assert (found - stock.log_probs(cases, "grid", 0.3, "compact")).abs().amax(1).min() > 0.4  # positions matter


def test_patches_that_pad_a_picture(engine, folder):
    """`mmtok` leaves them out, and finds them in the pixels, which the engine has on their way to the tower."""
    stock, cases = Stock(folder("llava")), _cases("llava")
    processor = stock.processor.image_processor
    mean = [int(255 * each) for each in processor.image_mean]
    for _, images in cases:
        for image in images:
            image[: image.shape[0] // 3] = mean
    expected = stock.answers(cases, "mmtok", 20)
    started = engine("llava", "mmtok", 20, images=2)
    assert tokens(started.ask(_requests(cases, 20))) == expected
