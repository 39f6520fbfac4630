"""Families that have a few tests each, in `test_more_families.py`; by model type.

They are tested on transformers 5.24 and later: older ones lack most of them, and have some in another form.
"""

from __future__ import annotations

from dataclasses import replace

from ..family_case import FamilyCase
from . import gemma, glm, patches, towers

_CASES = {**gemma.CASES, **glm.CASES, **patches.CASES, **towers.CASES}
MORE: dict[str, FamilyCase] = {name: replace(case, since="5.24") for name, case in _CASES.items()}
