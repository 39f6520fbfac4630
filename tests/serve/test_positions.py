"""mRoPE positions of the vLLM plugin, without an engine. With one: tests/vllm."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.serve.positions import COLUMNS, Offsets, number, pack, unpack

from ..families import get_model


@given(st.lists(st.integers(0, 65535), min_size=3, max_size=30), st.sampled_from(["bfloat16", "float16", "float32"]))
def test_coordinates_survive_any_dtype(values, dtype):
    coordinates = torch.tensor(values[: len(values) // 3 * 3]).view(-1, 3)
    assert torch.equal(unpack(pack(coordinates, getattr(torch, dtype))), coordinates)


@st.composite
def prompts(draw):
    """Per picture (text before it, (h, w), kept places); text at the end."""
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        h, w = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        kept = draw(st.sets(st.integers(0, h * w - 1), min_size=1))
        parts.append((draw(st.integers(2, 5)), (h, w), sorted(kept)))
    return parts, draw(st.integers(1, 5))


@settings(deadline=None)
@given(prompts(), st.integers(1, 9), st.sampled_from([torch.float32, torch.bfloat16]))
def test_positions_are_those_of_the_whole_prompt(prompt, chunk, dtype):
    """Held to the stock model's numbering of the whole prompt, chunk of a prefill by chunk."""
    parts, tail = prompt
    model = get_model("qwen2_5_vl").model
    config, merge = model.config, model.config.vision_config.spatial_merge_size
    ids, keep, media, offset, embeddings = [], [], [], 0, []
    for text, (h, w), kept in parts:
        ids += [40] * (text - 1) + [config.vision_start_token_id] + [config.image_token_id] * (h * w)
        keep += [True] * text + [i in kept for i in range(h * w)]
        media.append((offset + text, len(kept), max(h, w)))
        offset += text + len(kept)
        places = torch.tensor([(0, i // w, i % w) for i in kept])
        embeddings.append(torch.cat([torch.ones(len(kept), 5, dtype=dtype), pack(places, dtype)], 1))
    ids, keep = ids + [40] * tail, torch.tensor(keep + [True] * tail)
    grids = torch.tensor([(1, h * merge, w * merge) for _, (h, w), _ in parts]) if parts else None
    ids = torch.tensor([ids])
    kinds = (ids == config.image_token_id).int()
    try:
        whole, delta = model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grids)
    except TypeError:  # transformers 4
        whole, delta = model.get_rope_index(ids, image_grid_thw=grids)

    length = int(keep.sum())
    positions, difference = number(length, media)
    visual, table = (ids == config.image_token_id)[0, keep], torch.cat(embeddings) if embeddings else None
    offsets, found, done = Offsets(length, "cpu"), [], 0
    for start in range(0, length, chunk):
        here = visual[start : start + chunk]
        n = int(here.sum())
        part = [table[done : done + n]] if n else []
        assert all(each.shape[1] == 5 for each in offsets.split(part, here))
        found.append(offsets.add(positions[:, start : start + chunk]))
        done += n
    assert torch.equal(torch.cat(found, 1), whole[:, 0, keep])
    assert length + difference == int(whole.max()) + 1 == ids.shape[1] + int(delta)


def test_columns():
    assert pack(torch.tensor([[1, 2, 300]]), torch.float32).tolist() == [[0, 1, 0, 2, 1, 44]]
    assert COLUMNS == 6
