"""Tests of `tokenprune.ops`, by op."""
