"""Shared by tests of what runs on the embedded models."""

import pytest

from tokenprune.eval.minivlm import load


@pytest.fixture(scope="session")
def embedded():
    """The embedded LLaVA and its processor."""
    return load()
