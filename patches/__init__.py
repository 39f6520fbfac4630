"""How pruning reaches into a transformers model: hooks on one instance, and one file of facts per model family.

**A prefill with pictures.** `Pruner.enter_head` copies labels and `logits_to_keep`, if there are some.
`Pruner.enter_base` opens a `ForwardCall` and finds the placeholders (`VisualInputs.of`). The model computes features;
`FeatureTap` notes where they came from, `EncoderCapture` what the policy reads of the encoder, `PixelStage` lets tokens
leave before its first layer, and `EncoderStage` or `PackedStage` inside it. The model merges features into the sequence
and numbers its positions, as always. Then `Pruner.enter_text` asks the policy which tokens stay (`select_tokens`) and
gives the text model the shorter sequence (`prune_text_inputs`). `DecoderStage` may cut again at decoder layers.
`Pruner.leave_text` hangs the `Layout` on the KV cache (`layout_after`, `adopt`), and `Pruner.leave_base` ends the call.

**A decode step.** The cache counts its logical length, pruned columns included, so `generate` goes on as if nothing had
been pruned. `Pruner.enter_text` finds the layout on the cache, and `continue_pruned_cache` reduces the attention mask
to the columns that are there. Under a compiler, `CompiledStep` on the cache takes the place of a `ForwardCall`, which
it cannot follow. Where the base model builds masks, `base_inputs_on_pruned_cache` has done so before.

**A second turn with pictures** is a prefill on a cache that has a layout: `Past.of` says what it holds, and
`prune_text_inputs` joins the two. With `history`, `marked_layout` has noted on the cache where its pictures are, and
`shrink_earlier_pictures` lets tokens of earlier ones leave all layers before anything of the new turn is read.

What is hung on objects that are not ours, all by `Attachment` and all taken off again by `remove_pruning`:

- forward hooks on the head and the modules around it, the base model, the text model; on decoder layers for the decoder
  stage and for FlashAttention; on the vision encoder, its layers, embeddings and projector for what acts or reads
  there;
- `get_image_features`, `get_video_features` of the base model: a `FeatureTap`;
- `prepare_inputs_for_generation`, `_prefill` of the head: stand-ins of `generation.py`;
- `_tokenprune` of the base model: its `Pruner`;
- `config` of attention modules that are read: a copy that names a proxy kernel (`AttentionTap`);
- `_tokenprune_source` on outputs of the vision encoder, and a layout on KV caches, which turn into a subclass of their
  own class: these outlive the pruning, and say so when they are used without it.
"""

from . import families
from .config import Positions
from .families.base import EncoderFacts, EncoderValues, Family, InputFacts, PrunedSequence, VisualShape
from .families.registry import UnsupportedModelError, family_of, register_family, supported_model_types
from .pruner import Pruner
from .report import Cut, PruningReport, Record
from .status import PruningStatus, StageStatus, status_of

__all__ = [
    "Cut",
    "EncoderFacts",
    "EncoderValues",
    "Family",
    "InputFacts",
    "Positions",
    "PrunedSequence",
    "Pruner",
    "PruningReport",
    "PruningStatus",
    "Record",
    "StageStatus",
    "UnsupportedModelError",
    "VisualShape",
    "families",
    "family_of",
    "register_family",
    "status_of",
    "supported_model_types",
]
