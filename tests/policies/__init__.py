"""Tests of `tokenprune.policies`, and one file for each policy."""
