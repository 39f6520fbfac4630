"""Made-up inputs, the same numbers on every machine: draws of numpy's `RandomState`, float64 until the end.

Each function draws in a fixed order, which the recorded picks depend on, and returns float32 arrays by name.
"""

import numpy as np

Arrays = dict[str, np.ndarray]


def single(**arrays: np.ndarray) -> Arrays:
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def picture(
    seed, rows=24, columns=24, width=64, out=96, heads=8, key_width=16, clusters=40, noise=1.0, sharp=1.0, blocks=0.0,
    words=12,
) -> Arrays:  # fmt: skip
    """Tokens of a picture in clusters, behind a tower with CLS, and the words of a question.

    `tokens` (N, width) and `projected` (N, out) are before and behind `projector`. `attention` (heads, N) is that of
    CLS; `keys` (heads, 1 + N, key_width) begin with its key. `blocks` is how much attention differs between the 4 x 4
    parts of the picture.
    """
    draw, n = np.random.RandomState(seed), rows * columns
    cluster = draw.randint(clusters, size=n)
    centres = 2 * draw.randn(clusters, width)
    tokens = centres[cluster] + noise * draw.randn(n, width) + 0.5
    tokens = tokens.astype(np.float32).astype(np.float64)
    projector = draw.randn(width, out) / np.sqrt(width)
    projector = projector.astype(np.float32).astype(np.float64)
    projected = tokens @ projector
    by_head = 0.7 * draw.randn(heads, n)
    shared = sharp * draw.randn(n)
    part = draw.randn(4, 4)[np.arange(rows) * 4 // rows][:, np.arange(columns) * 4 // columns]
    logits = by_head + shared + blocks * part.ravel()
    attention = softmax(np.hstack([draw.randn(heads, 1), logits]))[:, 1:]
    key_of_cls = draw.randn(heads, 1, key_width)
    keys = np.concatenate([key_of_cls, draw.randn(heads, clusters, key_width)[:, cluster]], axis=1)
    keys = keys + 0.7 * draw.randn(heads, n + 1, key_width)
    question = 1.5 * draw.randn(words, out)
    question = question + 0.4 * projected[draw.randint(n, size=words)]
    return single(
        tokens=tokens, projector=projector, projected=projected, attention=attention, keys=keys, words=question
    )


def joined(seed, n=576, width=64, clusters=30, scale=1.0) -> Arrays:
    """`tokens`, `query` and `key` of a tower's last layer with heads joined, (1 + n, width) each, CLS first."""
    draw = np.random.RandomState(seed)
    cluster = draw.randint(clusters, size=n + 1)
    tokens = draw.randn(clusters, width)[cluster] + 0.5 * draw.randn(n + 1, width)
    query = scale * draw.randn(n + 1, width)
    return single(tokens=tokens, query=query, key=scale * draw.randn(n + 1, width) + 0.3 * tokens)


def video(
    seed, frames=8, rows=7, columns=7, width=64, scenes=(0,), low=0.2, step=0.15, even=False, sharp=1.5
) -> Arrays:
    """`tokens` (frames * P, width) of a video whose scenes begin at the given frames, and `attention` (frames, P).

    Noise grows by `step` from frame to frame; with `even` it is as strong in all tokens of a frame.
    """
    draw, size = np.random.RandomState(seed), rows * columns
    looks = draw.randn(len(scenes), size, width)
    offset = 0.5 * draw.randn(width)
    scene = np.searchsorted(scenes, np.arange(frames), side="right") - 1
    strength = (low + step * np.arange(frames)).reshape(-1, 1, 1)
    if not even:
        strength = strength * draw.rand(frames, size, 1)
    tokens = looks[scene] + offset + strength * draw.randn(frames, size, width)
    return single(tokens=tokens.reshape(-1, width), attention=softmax(sharp * draw.randn(frames, size)))


def tower(seed, layers=22, n=576, heads=8, width=16, sharp=4.0, values=0.25) -> Arrays:
    """`query`, `key` and `value` of a tower's layers, (layers, heads, 1 + n, width) each, CLS first."""
    draw = np.random.RandomState(seed)
    common = draw.randn(heads, n + 1, width)

    def layer_by_layer(own, shared):
        return own * draw.randn(layers, heads, n + 1, width) + shared * common

    query, key = sharp * layer_by_layer(0.6, 0.5), layer_by_layer(0.6, 0.5)
    return single(query=query, key=key, value=values * layer_by_layer(0.7, 0.7))


def layer(seed, n=576, heads=4, key_width=24, width=64) -> Arrays:
    """`hidden` (1 + n, width) behind one layer of a tower, and its `key` (heads, 1 + n, key_width); CLS first."""
    draw = np.random.RandomState(seed)
    return single(hidden=draw.randn(n + 1, width), key=draw.randn(heads, n + 1, key_width))


def decoder(seed, layers, system=12, visual=576, text=30, heads=8, head_width=16, width=64, clusters=40) -> Arrays:
    """A prompt of `system`, `visual` and `text` tokens in a decoder.

    `embeds` (M, width) enter it, `hidden` (M, width) is at the first cut, and `query_l` and `key_l` (heads, M,
    head_width) are of the layers l. Tokens that are left keep theirs when others leave.
    """
    draw, m = np.random.RandomState(seed), system + visual + text
    cluster = draw.randint(clusters, size=m)
    centres = 1.5 * draw.randn(clusters, width)
    hidden = centres[cluster] + draw.randn(m, width)
    arrays = {"hidden": hidden, "embeds": 0.35 * draw.randn(m, width)}
    for i in layers:
        of_layer = np.random.RandomState(1000 * seed + i)
        arrays[f"query_{i}"] = 1.2 * of_layer.randn(heads, m, head_width)
        arrays[f"key_{i}"] = of_layer.randn(heads, m, head_width)
    return single(**arrays)


def received(arrays: Arrays, i: int, alive: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(M,) attention that the `alive` tokens receive in layer i from those at `rows` of them: mean over heads, rows."""
    query, key = (arrays[f"{name}_{i}"][:, alive].astype(np.float64) for name in ("query", "key"))
    logits = query[:, rows] @ key.swapaxes(1, 2) / np.sqrt(key.shape[-1])
    later = np.arange(len(alive)) > np.asarray(rows)[:, None]
    return softmax(np.where(later, -np.inf, logits)).astype(np.float32).mean((0, 1))


MAKERS = {each.__name__: each for each in (picture, joined, video, tower, layer, decoder)}


def make(function: str, arguments: dict) -> Arrays:
    return MAKERS[function](**arguments)
