"""Inputs of policies that are made by hand, and what their answers keep."""

import torch
from hypothesis import strategies as st

from tokenprune import DecoderView, TowerView, VisualTokens
from tokenprune.policies.run import run_policy


def select(policy, tokens, n_keep):
    """The answer for one input, as the library asks for it: videos frame by frame where the policy wants that."""
    return run_policy(policy, [tokens], [n_keep])[0]


def picture(h, w, t=1, **kwargs):
    """A raster of t * h * w random tokens with 4 features each."""
    return VisualTokens(torch.randn(t * h * w, 4), grids=((t, h, w),), **kwargs)


def video(t, h, w, features, **more):
    """A video of t frames; `features` is (t * h * w, D)."""
    return VisualTokens(features, grids=((t, h, w),), kind="video", **more)


def directions(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def picks(selection) -> list[int]:
    """Indices that are kept."""
    return selection.indices.tolist()


def decoder_view(visual, n_keep, attention=None, text=(), layer=2, n_layers=4, **more) -> DecoderView:
    """One row before a decoder layer; `attention` (M, M) is the attention of each column in the layer below."""
    return DecoderView(
        visual=[torch.tensor(v) for v in visual],
        n_keep=n_keep,
        text=torch.tensor(text, dtype=torch.int64),
        last=0 if attention is None else len(attention) - 1,
        received=lambda rows: attention[rows].mean(0),
        keys=more.get("keys", torch.empty(0)),
        hidden=lambda: more["hidden"],
        embeds=lambda: more["embeds"],
        layer=layer,
        n_layers=n_layers,
        lowest=1,
        entered=more.get("entered", [len(v) for v in visual]),
    )


def kept_places(answer) -> list[list[int]]:
    """Indices that the masks of a decoder-stage answer keep, by visual input."""
    return [mask.nonzero()[:, 0].tolist() for mask in answer]


def tower_view(hidden, keys, n_keep, cls=False, cut=0, n_cuts=1, sizes=None, **more) -> TowerView:
    """One picture in a vision tower with one head; `hidden` is (M, D), `keys` (M, d)."""
    heads = {name: more.get(name, keys)[None, None] for name in ("query", "value")}
    return TowerView(
        hidden=hidden[None], key=keys[None, None], **heads, scaling=1.0, cls=cls, n_cuts=n_cuts, cut=cut,
        sizes=torch.ones(1, len(hidden)) if sizes is None else torch.tensor([sizes]),
        n_before=len(hidden), n_keep=n_keep, memory=more.get("memory", {}),
        before=more.get("before"),
    )  # fmt: skip


def repeated(draw, x: torch.Tensor, generator) -> torch.Tensor:
    """The rows of x as they are, or with duplicates, all equal, all zero, or some zero."""
    kind = draw(st.sampled_from(["distinct", "duplicated", "constant", "zero", "some zero"]))
    n = len(x)
    if kind == "duplicated":
        return x[torch.randint(0, max(1, n // 3), (n,), generator=generator)]
    if kind == "constant":
        return x[:1].expand_as(x).clone()
    if kind == "zero":
        return torch.zeros_like(x)
    if kind == "some zero":
        return x.masked_fill(torch.rand(n, 1, generator=generator) < 0.4, 0)
    return x


@st.composite
def exact_features(draw):
    """Vectors of length 2 with entries -1, 0, 1: every cosine is a quarter, exact in any order of summing."""
    n, d = draw(st.integers(1, 20)), draw(st.integers(4, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dimensions = torch.rand(n, d, generator=generator).argsort(1)[:, :4]
    signs = torch.randint(0, 2, (n, 4), generator=generator) * 2.0 - 1
    x = repeated(draw, torch.zeros(n, d).scatter(1, dimensions, signs), generator)
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    return x.to(dtype), draw(st.integers(1, n))
