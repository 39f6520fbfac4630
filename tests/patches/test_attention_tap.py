"""The tap on one attention module."""

import copy
from types import SimpleNamespace

from torch import nn

from tokenprune import apply_pruning, remove_pruning
from tokenprune.patches.attention_tap import AttentionTap

from ..families import get_model, text_of


def test_a_config_that_somebody_puts_on_a_tapped_module_stays():
    """Taps are taken off by whoever put them there, and nothing else is."""
    model = copy.deepcopy(get_model("llava"))
    attention = text_of(model).layers[1].self_attn
    apply_pruning(model, "fastv@final", 0.3)
    theirs = copy.copy(attention.config)
    del theirs.__dict__["_tokenprune_tap"]
    attention.config = theirs
    remove_pruning(model)
    assert attention.config is theirs


def test_the_tap_that_was_put_on_last_stays_until_it_is_taken_off():
    module = nn.Module()
    stock = SimpleNamespace(_attn_implementation="sdpa")
    module.config = stock
    first, second = (AttentionTap(module, lambda *args: None) for _ in range(2))
    first.attach()
    first.detach()
    first.detach()  # again: nothing to do
    assert module.config is stock
    first.attach()
    second.attach()
    tapped = module.config
    first.detach()
    assert module.config is tapped
    second.detach()
    first.detach()
    assert module.config is stock
