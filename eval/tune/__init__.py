"""`tokenprune tune`: the cheapest setting whose answers differ from the full model's in few cases, with a guarantee."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import Options
from .progress import Progress, Silent
from .prompts import Prompt
from .tuned import Row, Tuned

__all__ = ["Options", "Progress", "Prompt", "Row", "Tuned", "tune"]


def tune(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    work: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Tuned:
    """Find the cheapest setting that loses at most `tolerance` on prompts like these, with `confidence`.

    The full model answers all prompts. One half of them ranks policies, the other tests the best ones, from safe to
    cheap (docs/tune.md says how). No right answers are needed.

    Args:
        model: a transformers model of a supported type, not pruned.
        processor: of the model, with a chat template.
        prompts: `Prompt`s, drawn at random from what the model will be asked. A few hundred are of use: at a tolerance
            of 0.02 and a confidence of 0.95, none of 149 test prompts may lose anything, and one of 236.
        work: folder of what was answered; a call with the same folder goes on from there. None: nothing is kept.
        progress: is told what is being done.
        **options: those of `Options`: `tolerance`, `confidence`, `policies`, `keeps`, `positions`, `metric`, `score`,
            `cost`, `minutes`, `batch`, `new_tokens`, `frames` and `seed`.

    Returns:
        What was found. Its `recipe` is None if nothing could be certified.

    Raises:
        TypeError: an unknown option.
        ValueError: an option out of range.
        CommandError: too few prompts, a metric that needs right answers where a prompt has none, a picture that cannot
            be read, or no policy that can act on the model.
    """
    from .tuning import Tuning  # imports transformers, which `import tokenprune` does without

    given = Options(**options)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder if work is None else work)
        return Tuning(model, processor, prompts, given, where, progress or Silent()).run()
