"""The networks of Section 3, slow and literal: one image, one position, one head at a time; weights by name.

Written from the paper's text and equations. Nothing here is imported from `dpar`, nothing is batched, packed or fused.
"""

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Angles = list[float] | None  # one an adjacent pair of channels; None for a class token or start vector: no position


def frequencies(pairs: int) -> list[float]:
    """10000^(-(i-1)/pairs), i = 1 .. pairs: with pairs = d/4 Eq. 8's omega, with pairs = d/16 Eq. 9's alpha."""
    return [10000.0 ** (-(i - 1) / pairs) for i in range(1, pairs + 1)]


def token_angles(row: int, column: int, d: int) -> list[float]:
    """Eq. 8."""
    return [w * row for w in frequencies(d // 4)] + [w * column for w in frequencies(d // 4)]


def patch_angles(first: int, last: int, columns: int, d: int, scheme: str) -> list[float]:
    """Eq. 9 and Table 9, for a patch from raster index `first` to `last`."""
    row, start, end = first // columns, first % columns, last % columns
    if scheme == "2d":
        return token_angles(row, start, d)
    angles = [w * row for w in frequencies(d // 4)]
    if scheme == "dynamic":
        for y in (start, end, end, start):
            angles += [w * y for w in frequencies(d // 16)]
    elif scheme == "dynamic_no_redundancy":
        for y in (start, end):
            angles += [w * y for w in frequencies(d // 8)]
    else:
        raise AssertionError(scheme)
    return angles


def rotated(x: Tensor, angles: Angles) -> Tensor:
    """One head's query or key with each adjacent pair of channels turned."""
    if angles is None:
        return torch.zeros_like(x)
    turned = []
    for i, angle in enumerate(angles):
        a, b, c, s = x[2 * i], x[2 * i + 1], math.cos(angle), math.sin(angle)
        turned += [a * c - b * s, a * s + b * c]
    return torch.stack(turned)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum() / len(x) + 1e-5) * weight


def mixed(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """softmax(q k / sqrt(d)) v for one query of one head."""
    scores = [(query * key).sum() / math.sqrt(len(query)) for key in keys]
    largest = max(score.item() for score in scores)
    powers = [torch.exp(score - largest) for score in scores]
    total = sum(powers)
    return sum(power / total * value for power, value in zip(powers, values, strict=True))


def attention(x: list[Tensor], angles: list[Angles], weights: Weights, name: str, heads: int) -> list[Tensor]:
    """Causal self-attention of one sequence."""
    width = len(x[0])
    d = width // heads
    qkv = [weights[f"{name}.wqkv.weight"] @ h for h in x]
    heads_out = []
    for head in range(heads):
        span = slice(head * d, (head + 1) * d)
        q = [rotated(h[:width][span], angle) for h, angle in zip(qkv, angles, strict=True)]
        k = [rotated(h[width : 2 * width][span], angle) for h, angle in zip(qkv, angles, strict=True)]
        v = [h[2 * width :][span] for h in qkv]
        heads_out.append([mixed(q[i], k[: i + 1], v[: i + 1]) for i in range(len(x))])
    return [weights[f"{name}.wo.weight"] @ torch.cat(parts) for parts in zip(*heads_out, strict=True)]


def feed_forward(x: Tensor, weights: Weights, name: str) -> Tensor:
    a, b = weights[f"{name}.w1.weight"] @ x, weights[f"{name}.w3.weight"] @ x
    return weights[f"{name}.w2.weight"] @ (a / (1 + torch.exp(-a)) * b)


def block(x: list[Tensor], angles: list[Angles], weights: Weights, name: str, heads: int) -> list[Tensor]:
    """One transformer layer over one sequence."""
    normed = [rms_norm(h, weights[f"{name}.attention_norm.weight"]) for h in x]
    x = [h + a for h, a in zip(x, attention(normed, angles, weights, f"{name}.attention", heads), strict=True)]
    return [
        h + feed_forward(rms_norm(h, weights[f"{name}.ffn_norm.weight"]), weights, f"{name}.feed_forward") for h in x
    ]


def depth(weights: Weights, name: str) -> int:
    """Layers under `name`."""
    return len({key[len(name) + 1 :].split(".")[0] for key in weights if key.startswith(f"{name}.")})


def llamagen_logits(weights: Weights, tokens: list[int], label: int | None, columns: int, heads: int) -> Tensor:
    """[T, V] with a class, [T - 1, V] without."""
    d = weights["tok_embeddings.weight"].shape[1] // heads
    x = [weights["tok_embeddings.weight"][token] for token in tokens[:-1]]
    angles: list[Angles] = [token_angles(t // columns, t % columns, d) for t in range(len(tokens) - 1)]
    if label is not None:
        x = [weights["cls_embedding.embedding_table.weight"][label], *x]
        angles = [None, *angles]
    for i in range(depth(weights, "layers")):
        x = block(x, angles, weights, f"layers.{i}", heads)
    return torch.stack([weights["output.weight"] @ rms_norm(h, weights["norm.weight"]) for h in x])


def patch_spans(starts: list[bool]) -> list[tuple[int, int]]:
    """First and last token of each patch."""
    opens = [t for t, start in enumerate(starts) if start]
    return list(zip(opens, [t - 1 for t in opens[1:]] + [len(starts) - 1], strict=True))


def cross_attention(query: Tensor, states: list[Tensor], weights: Weights, name: str, heads: int) -> Tensor:
    """One patch gathers from its own tokens (Eq. 5)."""
    d = len(query) // heads
    q = weights[f"{name}.wq.weight"] @ rms_norm(query, weights[f"{name}.query_norm.weight"])
    normed = [rms_norm(h, weights[f"{name}.token_norm.weight"]) for h in states]
    k = [weights[f"{name}.wk.weight"] @ h for h in normed]
    v = [weights[f"{name}.wv.weight"] @ h for h in normed]
    parts = []
    for head in range(heads):
        span = slice(head * d, (head + 1) * d)
        parts.append(mixed(q[span], [key[span] for key in k], [value[span] for value in v]))
    return query + weights[f"{name}.wo.weight"] @ torch.cat(parts)


def encode(
    weights: Weights,
    x: list[Tensor],
    angles: list[Angles],
    spans: list[tuple[int, int]],
    heads: int,
    pooling: str = "max",
) -> tuple[list[Tensor], list[Tensor]]:
    """States of x_0 .. x_{T-2} and of all patches but the last (Eqs. 4-5)."""
    patches: list[Tensor] = []
    for i in range(depth(weights, "encoder.layers")):
        x = block(x, angles, weights, f"encoder.layers.{i}.block", heads)
        gathered = []
        for m, (first, last) in enumerate(spans[:-1]):
            own = x[first : last + 1]
            pooled = torch.stack(own).amax(0) if pooling == "max" else sum(own) / len(own)
            query = patches[m] if i else pooled
            gathered.append(cross_attention(query, own, weights, f"encoder.layers.{i}.cross_attention", heads))
        patches = gathered
    return x, patches


def dpar_logits(
    weights: Weights,
    tokens: list[int],
    label: int,
    starts: list[bool],
    columns: int,
    heads: int,
    scheme: str,
    pooling: str = "max",
) -> Tensor:
    """Algorithm 1, lines 4-6, for one image: [T, V]."""
    d = weights["tok_embeddings.weight"].shape[1] // heads
    spans = patch_spans(starts)
    cells: list[Angles] = [token_angles(t // columns, t % columns, d) for t in range(len(tokens) - 1)]
    embedded = [weights["tok_embeddings.weight"][token] for token in tokens[:-1]]
    states, patches = encode(weights, embedded, cells, spans, heads, pooling)

    x = [weights["cls_embedding.embedding_table.weight"][label], *patches]
    places: list[Angles] = [None, *(patch_angles(first, last, columns, d, scheme) for first, last in spans[:-1])]
    for i in range(depth(weights, "patch_transformer.layers")):
        x = block(x, places, weights, f"patch_transformer.layers.{i}", heads)

    h = [weights["start"], *states]
    for i in range(depth(weights, "decoder.layers")):
        name = f"decoder.layers.{i}"
        for m, (first, last) in enumerate(spans):
            known = weights[f"{name}.projection.weight"] @ rms_norm(x[m], weights[f"{name}.norm.weight"])
            h = [a + known if first <= t <= last else a for t, a in enumerate(h)]
        h = block(h, [None, *cells], weights, f"{name}.block", heads)
    return torch.stack([weights["decoder.output.weight"] @ rms_norm(a, weights["decoder.norm.weight"]) for a in h])
