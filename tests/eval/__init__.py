"""Tests of `tokenprune.eval`: the embedded models and the commands."""
