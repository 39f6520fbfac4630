"""Omni models: pictures and videos lose tokens, audio does not, also where it stands inside a video."""

import pytest
import torch

from tokenprune import pruning, pruning_report
from tokenprune.patches.modules import base_of

from ..builders import IMAGE, PATCH, VIDEO, VISION_END, VISION_START
from ..families import MORE, Batch, get_model
from ..oracles import check_against_oracles, generate, keep_mask, native_short

AUDIO, AUDIO_START, AUDIO_END = 98, 96, 97
_THINKERS = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
#: Those that the installed transformers can run with images and videos in one batch.
OMNI = [name for name in _THINKERS if name in MORE and MORE[name].video and MORE[name].mixed]
FRAMES = 12  # of an audio's spectrogram


def prompt(model, inside):
    """Two left-padded rows: an audio, an image, and text; a video with its audio, and text.

    Args:
        model: a thinker.
        inside: whether the audio of the video stands inside of it, between the tokens of its two frames.
    """
    generator = torch.Generator().manual_seed(0)
    patches = 3 * 2 * PATCH * PATCH
    pixels = dict(
        pixel_values=torch.randn(24, patches, generator=generator, dtype=torch.float64),
        image_grid_thw=torch.tensor([[1, 4, 6]]),
        pixel_values_videos=torch.randn(32, patches, generator=generator, dtype=torch.float64),
        video_grid_thw=torch.tensor([[2, 4, 4]]),
        video_second_per_grid=torch.tensor([2.0]),
        input_features=torch.randn(2, 8, FRAMES, generator=generator, dtype=torch.float64),
        feature_attention_mask=torch.ones(2, FRAMES, dtype=torch.long),
    )
    with torch.no_grad():
        heard = base_of(model).get_audio_features(pixels["input_features"], pixels["feature_attention_mask"])
    audio = [AUDIO] * (len(getattr(heard, "last_hidden_state", heard)) // 2)
    text = torch.randint(3, 89, (20,), generator=generator).tolist()
    image, frame = [IMAGE] * 6, [VIDEO] * 4
    sound = [AUDIO_START, *audio, AUDIO_END]
    clip = [AUDIO_START, *frame, *audio, *frame, AUDIO_END] if inside else [*frame, *frame]
    rows = [
        [1, *text[:3], *sound, VISION_START, *image, VISION_END, *text[3:6]],
        [1, *text[6:8], VISION_START, *clip, VISION_END, *([] if inside else sound), *text[8:]],
    ]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    inputs = dict(input_ids=ids, attention_mask=(ids != 0).long(), use_audio_in_video=inside, **pixels)
    visuals = [(0, (ids[0] == IMAGE).nonzero()[:, 0].tolist(), "image")]
    visuals.append((1, (ids[1] == VIDEO).nonzero()[:, 0].tolist(), "video"))
    return Batch(inputs, visuals)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("family", OMNI)
def test_audio_stays(family, inside):
    """In its order, beside what is left of the frames around it."""
    model = get_model(family)
    batch = prompt(model, inside)
    for policy, changed in (("fopru", False), ("recoverable", True)):
        records = check_against_oracles(model, batch, policy, 0.4, "original", changed, steps=3)
        assert [r.grid for r in records] == [(1, 2, 3), (2, 2, 2)]
        assert [(r.n_before, r.n_after) for r in records] == [(6, 2), (8, 3)]
        kept = keep_mask(batch, records)
        assert bool(kept[batch.inputs["input_ids"] == AUDIO].all())


@pytest.mark.parametrize("family", OMNI)
def test_a_question_after_a_video_with_sound(family):
    """A second turn on the cache of the first, with positions as they were."""
    model = get_model(family)
    batch = prompt(model, inside=True)
    with pruning(model, "fopru", 0.4):
        first = model.generate(
            **batch.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True,
            suppress_tokens=[IMAGE, VIDEO, AUDIO, AUDIO_START, VISION_START],
        )  # fmt: skip
        kept = keep_mask(batch, pruning_report(model))
        more = torch.randint(3, 89, (2, 4), generator=torch.Generator().manual_seed(1))
        ids = torch.cat([first.sequences, more], 1)
        added = ids.shape[1] - kept.shape[1]
        mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, added), value=1)
        turn = dict(input_ids=ids, attention_mask=mask)
        run = generate(model, turn, 3, past_key_values=first.past_key_values)
    full = Batch({**batch.inputs, **turn}, batch.visuals)
    kept = torch.nn.functional.pad(kept, (0, added), value=True)
    expected = native_short(model, full, kept, "original", 3)
    assert torch.equal(run.tokens, expected.tokens)
    torch.testing.assert_close(run.logits, expected.logits, rtol=0, atol=1e-5)
