"""`tokenprune profile --engine vllm` on the embedded model: what it counts, not how fast it is."""

import json

from tokenprune import cli


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    where = tmp_path / "found.json"
    load = ["--requests", "3", "--rounds", "1", "--concurrency", "1,2", "--new-tokens", "2"]
    files = ["--json", str(where), "--plot", str(tmp_path / "found.png")]
    cli.main(["profile", "--engine", "vllm", "--model", "embedded", "--keep", "0.25,9", *load, *files])
    found = json.loads(where.read_text())
    counts = {(row["policy"], row["keep"], row["concurrency"]): row["prompt_tokens"] for row in found["rows"]}
    text = counts["full", 1.0, 1] - 144
    assert counts == {
        ("full" if keep == 1.0 else "divprune", keep, clients): text + kept
        for keep, kept in ((1.0, 144), (0.25, 36), (9, 9))
        for clients in (1, 2)
    }
    assert all(row["ttft_ms"] > 0 and row["requests_per_second"] > 0 for row in found["rows"])
    assert set(found["verdicts"]) == {"divprune 0.25", "divprune 9"}
    assert (tmp_path / "found.png").exists()
    assert "times the full model's throughput" in capsys.readouterr().out
