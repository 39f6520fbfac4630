"""Tests. README.md says how they are laid out."""
