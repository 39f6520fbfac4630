"""A miniature LLaVA that ships with the package: real transformers classes, trained here, 3 MB.

`load()` gives model and processor; `scenes` and `questions` draw what it can be asked about; `train`
made the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

#: Folder that `from_pretrained` takes, of the model and of the processor.
WEIGHTS = Path(__file__).parent / "weights"
#: It reads places off position ids: renumbering costs it most of "where" and "count" (docs/minivlm.md).
POSITIONS: Literal["original"] = "original"


def load() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The embedded model in float32 on the CPU, and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(WEIGHTS)
