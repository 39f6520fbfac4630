"""What is averaged over the ranks of a tensor-parallel engine."""

from types import SimpleNamespace

import pytest
import torch


@pytest.mark.parametrize("shape", [(2, 9, 1), (2, 9, 8)])
def test_what_is_reduced_lies_in_one_piece(monkeypatch, shape):
    from tokenprune.serve import clip_tower

    def reduce(values):
        assert values.is_contiguous()  # NCCL is handed the bare memory
        return 2 * values

    monkeypatch.setattr(clip_tower, "tensor_model_parallel_all_reduce", reduce)
    monkeypatch.setattr(clip_tower, "get_tensor_model_parallel_world_size", lambda: 2)
    halved = SimpleNamespace(_attention=[SimpleNamespace(num_heads_per_partition=1, num_heads=2)])
    values = torch.rand(shape[0], shape[1] + 1, shape[2])[:, 1:]  # without CLS
    assert not values.is_contiguous()
    assert torch.equal(clip_tower.ClipTower._over_ranks(halved, values), values)
