"""The word-level tokenizer of the embedded models."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .questions import WORDS

MAX_LENGTH = 1024  # tokens


def token_ids(special: tuple[str, ...], words: tuple[str, ...] = WORDS) -> dict[str, int]:
    """Token ids by word: a model's special tokens and roles, then the words of questions and answers."""
    return {word: i for i, word in enumerate(special + words)}


def build_tokenizer(
    ids: dict[str, int], image_token: str, pad: str, eos: str, bos: str | None = None, special: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that pads on the left.

    Args:
        ids: token ids by word.
        image_token: the placeholder of visual tokens.
        pad: token that pads.
        eos: token that ends an answer.
        bos: token put before every text; None: none.
        special: further special tokens.
    """
    tokenizer = Tokenizer(models.WordLevel(dict(ids), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",
        pad_token=pad,
        additional_special_tokens=[image_token, *special],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=MAX_LENGTH,
    )
