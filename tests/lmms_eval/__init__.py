"""Tests of the lmms-eval plugin against the real lmms-eval: `make test-eval`."""
