"""The benchmark of starting: what it runs and what it writes."""

import json
import subprocess

import pytest

from tokenprune.eval import bench_startup


def test_results_and_their_page(tmp_path, monkeypatch):
    some = {name: bench_startup.STARTS[name] for name in ("`python -c pass`", "`tokenprune --help`")}
    monkeypatch.setattr(bench_startup, "STARTS", some)
    page, results = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("# Title\n")
    bench_startup.main(["--rounds", "1", "--json", str(results), "--docs", str(page)])
    rows = json.loads(results.read_text())["rows"]
    assert [row["start"] for row in rows] == list(some)
    assert 0 < rows[0]["seconds"] < rows[1]["seconds"]
    assert page.read_text().startswith("# Title\n\n## Start-up\n\n<!-- bench_startup: start -->\nCPU seconds")


def test_a_start_that_fails_is_no_result():
    with pytest.raises(subprocess.CalledProcessError):
        bench_startup.cpu_seconds(["-c", "import no_such_module"])
