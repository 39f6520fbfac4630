"""Families that have a few tests each, in `test_more_families.py`; by model type."""

from __future__ import annotations

from ..family_case import FamilyCase
from . import gemma, glm, patches, towers

MORE: dict[str, FamilyCase] = {**gemma.CASES, **glm.CASES, **patches.CASES, **towers.CASES}
