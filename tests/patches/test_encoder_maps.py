"""Values by token of a vision encoder are given to the visual tokens that are made of them."""

import pytest
import torch

from tokenprune.patches.families.base import EncoderValues
from tokenprune.patches.feature_source import input_lengths
from tokenprune.patches.modules import base_of, named_arguments

from ..families import CASES, facts_of, get_model, small_batch
from ..family_case import feature_arguments

#: Families that blend patches of neighbouring tokens, so that no token has patches of its own.
BLENDED = {"llava_onevision", "llava_next_video"}
READABLE = [name for name in CASES if facts_of(name).encoder is not None and name not in BLENDED]


def kinds(family):
    return ("image", "video")[: 1 + CASES[family].video]


def layer_of(base, attention):
    """The module that holds an attention module, with the residual stream around it."""
    around = next(module for module in base.modules() if any(child is attention for child in module.children()))
    # Before transformers 5.x, a ViT's attention is in a module of projections.
    return layer_of(base, around) if type(around).__name__.endswith("Attention") else around


def every_token(features):
    """(N, D) features of all inputs, of what a feature function returns."""
    features = getattr(features, "pooler_output", features)
    if isinstance(features, torch.Tensor):
        return features.flatten(0, -2)
    if isinstance(features[0], (list, tuple)) or isinstance(features[-1], (list, tuple)):
        return every_token(features[0])  # transformers 4: beside deepstack planes
    return torch.cat([f.flatten(0, -2) for f in features])


def check_map(model, facts, inputs, kind):
    """Attention is silenced, so that patches do not mix. A token depends on those that it is made of, and no other."""
    base = base_of(model)
    attention = facts.encoder.attention(base, "feature")
    entered = []

    def enter(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        entered.append(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def silence(module, args, output):
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    handles = [m.register_forward_hook(silence) for m in base.modules() if type(m) is type(attention)]
    handles.append(layer_of(base, attention).register_forward_pre_hook(enter, with_kwargs=True))
    function = getattr(base, f"get_{kind}_features")
    try:
        named = named_arguments(function, (), feature_arguments(base, inputs, kind))
        features = function(**named)
    finally:
        for handle in handles:
            handle.remove()
    arguments = {k: v for k, v in named.items() if not k.startswith("pixel_values")}
    lengths = input_lengths(facts, base.config, kind, features, arguments)
    tokens = every_token(features)
    made_of = []
    for token in tokens:
        gradients = torch.autograd.grad(token.square().sum(), entered, retain_graph=True, allow_unused=True)
        made_of.append([torch.zeros_like(h) if g is None else g for g, h in zip(gradients, entered, strict=True)])
    pieces = [torch.stack([(gs[i] != 0).any(-1) for gs in made_of], -1).double() for i in range(len(entered))]
    pieces = [p if p.ndim == 3 else p[None] for p in pieces]
    values = torch.cat(pieces, 1 if pieces[0].shape[0] == 1 else 0)
    values = values[:, int(facts.encoder.has_cls(base)) :]
    values = values[..., values.any(1).any(0)]  # newlines are made of nothing
    by_input = torch.cat(facts.encoder.regroup(EncoderValues(base, kind, values, lengths, arguments)))
    torch.testing.assert_close(by_input, torch.diag(by_input.diagonal()), rtol=0, atol=0)
    assert bool((by_input.diagonal() > 0).all())


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in READABLE for kind in kinds(family)])
def test_a_token_gets_the_values_of_its_patches(family, kind):
    check_map(get_model(family), facts_of(family), small_batch(family, kind == "video").inputs, kind)
