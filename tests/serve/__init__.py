"""Tests of `tokenprune.serve` that need no engine."""
