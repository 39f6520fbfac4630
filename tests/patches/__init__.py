"""Tests of `tokenprune.patches`, by phase of a call."""
