"""Failures of policies are counted for all processes of an engine, and for no other."""

import os
import subprocess
import sys

import pytest

from tokenprune.serve import failures


@pytest.fixture
def engine(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv(failures._ENGINE, raising=False)
    yield tmp_path
    os.environ.pop(failures._ENGINE, None)


def _elsewhere(code):
    """What another process prints, which loads the file alone."""
    load = f"import runpy, types; it = types.SimpleNamespace(**runpy.run_path({failures.__file__!r})); "
    return subprocess.run([sys.executable, "-c", load + code], check=True, capture_output=True, text=True).stdout


def test_a_process_counts_what_others_of_its_engine_have_seen(engine):
    assert failures.count() == 0
    failures.add()  # of no engine
    assert not list(engine.iterdir())
    failures.begin()
    name = os.environ[failures._ENGINE]
    failures.begin()
    assert os.environ[failures._ENGINE] == name
    assert failures.count() == 0
    failures.add()
    _elsewhere("it.add()")
    assert failures.count() == 2
    del os.environ[failures._ENGINE]
    failures.begin()  # another engine
    assert failures.count() == 0


def test_its_file_goes_with_the_process_that_began(engine):
    assert _elsewhere("it.begin(); it.add(); print(it.count())").split() == ["1"]
    assert not list(engine.iterdir())
