"""The benchmark of policies: what it measures and what it writes."""

import json

import pytest

from tokenprune.eval import bench_policies
from tokenprune.policies.registration import registry


@pytest.mark.parametrize("name", [bench_policies.GRAM, *sorted(registry())])
def test_every_policy_can_be_measured(name):
    if name == "downsample":
        with pytest.raises(ValueError, match="chooses no tokens"):
            bench_policies.selection(name, 64)
    else:
        bench_policies.selection(name, 64)()


def test_quick_results_and_their_page(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("# Title\n\nText.\n")
    for _ in range(2):  # the second time the table is replaced
        options = ["--quick", "--policy", "grid,downsample", "--json", str(results), "--docs", str(page)]
        bench_policies.main(options)
    rows = json.loads(results.read_text())["rows"]
    assert [(row["policy"], row["N"]) for row in rows] == [
        ("downsample", 64),
        ("downsample", 144),
        ("grid", 64),
        ("grid", 144),
    ]
    assert all(row["why"] == "resizes pictures, and chooses no tokens" for row in rows[:2])
    assert all(0 < row["seconds"] < 10 and row["MB"] >= 0 for row in rows[2:])
    text = page.read_text()
    assert text.startswith("# Title\n\nText.\n\n## Selection by number of tokens\n") and text.count("| `grid` |") == 1


def test_what_is_missing_is_added(tmp_path, monkeypatch):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"rows": [{"policy": "grid", "N": 64, "k": 6, "seconds": 1.0, "MB": 2}]}))
    asked = []
    monkeypatch.setattr(
        bench_policies, "measure", lambda *cell: asked.append(cell[:2]) or {"policy": cell[0], "N": cell[1], "why": "-"}
    )
    bench_policies.main(["--missing", "--policy", "grid,random", "--sizes", "64,144", "--json", str(results)])
    assert asked == [("random", 64), ("grid", 144), ("random", 144)]
    assert json.loads(results.read_text())["rows"][0]["seconds"] == 1.0


def test_limits_say_why():
    assert bench_policies.measure("recoverable", 64, 0, 8)["why"] == "over 0 s"
