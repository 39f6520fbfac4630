"""Decoding under dynamic and static caches: what `bench_caches` reports."""

from tokenprune.eval import bench_caches
from tokenprune.eval.answers import encode, held_out
from tokenprune.eval.minivlm import load


def test_each_cache_and_setting_has_a_row_beside_the_stock_model():
    model, processor = load()
    sample = held_out(1)[0]
    inputs = encode(processor, [sample], [sample.images])
    rows = bench_caches.measure(model, inputs, [("divprune", 1.0), ("divprune", 0.25)], tokens=2, rounds=1)
    assert [(row["cache"], row["keep"]) for row in rows] == [
        ("dynamic", 1.0),
        ("static", 1.0),
        ("dynamic", 0.25),
        ("static", 0.25),
    ]
    assert [row["ratio"] for row in rows if row["keep"] == 1.0] == [1, 1]
