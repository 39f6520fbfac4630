"""Families that have a few tests each, in `test_more_families.py`; by model type."""

from __future__ import annotations

from ..family_case import FamilyCase
from . import glm, patches, towers

MORE: dict[str, FamilyCase] = {**glm.CASES, **patches.CASES, **towers.CASES}
