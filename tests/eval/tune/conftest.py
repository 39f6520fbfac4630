"""Prompts for the embedded models, about a scene each."""

import functools

import numpy as np
import pytest
from PIL import Image

from tokenprune.eval import minivlm
from tokenprune.eval.minivlm.questions import all_questions
from tokenprune.eval.minivlm.scenes import draw_scene
from tokenprune.eval.tune import Prompt

SEED = 7_700_000


@functools.cache
def asked(n, name="llava"):
    """The first `n` prompts for an embedded model: a question about a scene each, with its answer."""
    prompts, sizes = [], minivlm.family(name).SIZES
    for i in range(n):
        scene, rng = draw_scene(SEED + i, *sizes[i % len(sizes)]), np.random.default_rng(SEED + i)
        questions = all_questions(scene, rng)
        question = questions[rng.integers(len(questions))]
        prompts.append(Prompt(question.text, (Image.fromarray(scene.image),), answers=(question.answer,)))
    return prompts


@pytest.fixture(scope="session")
def prompts():
    """By how many, and for which embedded model."""
    return asked
