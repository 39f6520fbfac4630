"""The worked example: installed as a package, found by its entry point, held to the oracles."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tokenprune import VisualTokens
from tokenprune.policies import registration

from .families import FAMILIES, get_model, ragged_batch
from .oracles import check_against_oracles

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "custom_policy"


@pytest.fixture(scope="module")
def brightest():
    spec = importlib.util.spec_from_file_location("brightest", EXAMPLE / "brightest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["brightest"] = module
    spec.loader.exec_module(module)
    yield module.Brightest
    registration._REGISTRY.pop("brightest")
    del sys.modules["brightest"]


def test_by_hand(brightest):
    tokens = VisualTokens(torch.tensor([[1.0], [9], [8], [2], [3], [1]]))
    assert brightest(blocks=2).select(tokens, 3).indices.tolist() == [1, 2, 4]
    assert brightest(blocks=6).select(tokens, 3).indices.tolist() == [1, 2, 4]
    assert brightest(blocks=3).select(tokens, 2).indices.tolist() == [1, 4]
    with pytest.raises(ValueError, match="blocks=0"):
        brightest(blocks=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_oracle(family, brightest):
    records = check_against_oracles(get_model(family), ragged_batch(family), "brightest", 0.3, "original", blocks=3)
    assert all(r.n_after == max(1, round(0.3 * r.n_before)) for r in records)


SCRIPT = """
from tokenprune import list_policies
from tokenprune.policies import make_policy
assert "brightest" in list_policies()
print(make_policy("brightest", blocks=4))
"""


def test_it_is_found_once_it_is_installed(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(EXAMPLE)]
    subprocess.run(pip, check=True)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "Brightest(blocks=4)"


@pytest.fixture(scope="module")
def with_both_examples(tmp_path_factory):
    """The environment of a process in which the policy and the family of the examples are installed."""
    folder = tmp_path_factory.mktemp("installed")
    for example in (EXAMPLE, EXAMPLE.with_name("custom_family")):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(example)]
        subprocess.run(pip, check=True)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    found = "import tokenprune; print('brightest' in tokenprune.list_policies(), tokenprune.list_supported_models())"
    environment = {**os.environ, "PYTHONPATH": path}
    printed = subprocess.run(
        [sys.executable, "-c", found], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.startswith("True") and "house_llava" in printed
    return environment


@pytest.mark.parametrize(
    "command",
    [
        ["pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/test_docs.py", "tests/policies/test_registry.py"],
        ["tools.docs_tables", "--check"],
    ],
)
def test_the_tables_of_the_project_do_not_change_when_they_are_installed(with_both_examples, command):
    run = subprocess.run(
        [sys.executable, "-m", *command], env=with_both_examples, cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr


def test_screenshots_of_earlier_turns_shrink(capsys):
    spec = importlib.util.spec_from_file_location("agent", ROOT / "examples" / "agent_screenshots" / "agent.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    everything, pruned, shrunk = module.main(["--turns", "3"]).values()
    text = everything[1][0] - 2 * 144  # what the first two turns hold beside their pictures
    assert pruned[1][0] == text + 2 * 36
    assert shrunk[0] == pruned[0]
    assert shrunk[1][0] == text + 36 + 7
    assert all(size == columns * 4096 for columns, size in (*everything, *pruned, *shrunk))
    assert "| 3 | " in capsys.readouterr().out
