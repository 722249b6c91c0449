"""The VQ autoencoder once more: from the names in LlamaGen's files, one small step at a time, in float64."""

import math
from itertools import product

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]


def official_state(
    *,
    channels: int,
    multipliers: tuple[int, ...],
    blocks: int,
    z_channels: int,
    vocab_size: int,
    code_dim: int,
    seed: int | None,
) -> State:
    """Random tensors under every name of an official file, each with the shape it has there; zeros without a seed."""
    rng = np.random.default_rng(seed)
    state: State = {}

    def add(name: str, *shape: int, mean: float = 0.0) -> None:
        if seed is None:
            state[name] = torch.zeros(1, dtype=torch.float64).expand(shape)
        else:
            scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
            state[name] = torch.from_numpy(rng.normal(size=shape) * scale + mean)

    def conv(name: str, wide_in: int, wide_out: int, kernel: int) -> None:
        add(f"{name}.weight", wide_out, wide_in, kernel, kernel)
        add(f"{name}.bias", wide_out)

    def norm(name: str, wide: int) -> None:
        add(f"{name}.weight", wide, mean=1.0)
        add(f"{name}.bias", wide)

    def residual(name: str, wide_in: int, wide_out: int) -> None:
        norm(f"{name}.norm1", wide_in)
        conv(f"{name}.conv1", wide_in, wide_out, 3)
        norm(f"{name}.norm2", wide_out)
        conv(f"{name}.conv2", wide_out, wide_out, 3)
        if wide_in != wide_out:
            conv(f"{name}.nin_shortcut", wide_in, wide_out, 1)

    def attention(name: str, wide: int) -> None:
        norm(f"{name}.norm", wide)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", wide, wide, 1)

    def middle(name: str, wide: int) -> None:
        residual(f"{name}.mid.0", wide, wide)
        attention(f"{name}.mid.1", wide)
        residual(f"{name}.mid.2", wide, wide)

    last = len(multipliers) - 1
    conv("encoder.conv_in", 3, channels, 3)
    wide = channels
    for level, multiplier in enumerate(multipliers):
        for block in range(blocks):
            residual(f"encoder.conv_blocks.{level}.res.{block}", wide, channels * multiplier)
            wide = channels * multiplier
            if level == last:
                attention(f"encoder.conv_blocks.{level}.attn.{block}", wide)
        if level != last:
            conv(f"encoder.conv_blocks.{level}.downsample.conv", wide, wide, 3)
    middle("encoder", wide)
    norm("encoder.norm_out", wide)
    conv("encoder.conv_out", wide, z_channels, 3)
    conv("decoder.conv_in", z_channels, wide, 3)
    middle("decoder", wide)
    for place, multiplier in enumerate(reversed(multipliers)):
        for block in range(blocks + 1):
            residual(f"decoder.conv_blocks.{place}.res.{block}", wide, channels * multiplier)
            wide = channels * multiplier
            if place == 0:
                attention(f"decoder.conv_blocks.{place}.attn.{block}", wide)
        if place != last:
            conv(f"decoder.conv_blocks.{place}.upsample.conv", wide, wide, 3)
    norm("decoder.norm_out", wide)
    conv("decoder.conv_out", wide, 3, 3)
    add("quantize.embedding.weight", vocab_size, code_dim)
    add("quantize.codebook_used", 65536)
    conv("quant_conv", z_channels, code_dim, 1)
    conv("post_quant_conv", code_dim, z_channels, 1)
    return state


def nearest_codes(latents: np.ndarray, codebook: np.ndarray) -> list[int]:
    """Of each latent, the first row of the codebook at the least distance, all of length 1."""
    codes = []
    for latent in latents.astype(np.float64):
        latent = latent / max(math.sqrt(float((latent**2).sum())), 1e-12)
        best, least = -1, math.inf
        for code, row in enumerate(codebook.astype(np.float64)):
            row = row / max(math.sqrt(float((row**2).sum())), 1e-12)
            distance = sum((float(a) - float(b)) ** 2 for a, b in zip(latent, row, strict=True))
            if distance < least:
                best, least = code, distance
        codes.append(best)
    return codes


def _conv(state: State, name: str, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    images, _, height, width = x.shape
    padded = x.new_zeros(images, x.shape[1], height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    kernel = weight.shape[-1]
    rows = (padded.shape[2] - kernel) // stride + 1
    columns = (padded.shape[3] - kernel) // stride + 1
    out = bias.view(1, -1, 1, 1).expand(images, -1, rows, columns).clone()
    for i, j in product(range(kernel), range(kernel)):
        part = padded[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
        out += torch.einsum("bchw,dc->bdhw", part, weight[:, :, i, j])
    return out


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    size = x.shape[1] // 32
    for image, group in product(range(len(x)), range(32)):
        part = x[image, group * size : (group + 1) * size]
        mean = part.mean()
        variance = ((part - mean) ** 2).mean()
        out[image, group * size : (group + 1) * size] = (part - mean) / torch.sqrt(variance + 1e-6)
    return out * state[f"{name}.weight"].view(1, -1, 1, 1) + state[f"{name}.bias"].view(1, -1, 1, 1)


def _swish(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def _residual(state: State, name: str, x: Tensor) -> Tensor:
    h = _conv(state, f"{name}.conv1", _swish(_norm(state, f"{name}.norm1", x)), padding=1)
    h = _conv(state, f"{name}.conv2", _swish(_norm(state, f"{name}.norm2", h)), padding=1)
    if f"{name}.nin_shortcut.weight" in state:
        x = _conv(state, f"{name}.nin_shortcut", x)
    return x + h


def _attention(state: State, name: str, x: Tensor) -> Tensor:
    h = _norm(state, f"{name}.norm", x)
    q, k, v = (_conv(state, f"{name}.{part}", h) for part in "qkv")
    out = torch.empty_like(x)
    places = list(product(range(x.shape[2]), range(x.shape[3])))
    for image, (i, j) in product(range(len(x)), places):
        scores = torch.stack([q[image, :, i, j] @ k[image, :, m, n] for m, n in places]) / math.sqrt(x.shape[1])
        weights = torch.exp(scores - scores.max())
        weights = weights / weights.sum()
        out[image, :, i, j] = sum(w * v[image, :, m, n] for w, (m, n) in zip(weights, places, strict=True))
    return x + _conv(state, f"{name}.proj_out", out)


def _level(state: State, name: str, x: Tensor) -> Tensor:
    block = 0
    while f"{name}.res.{block}.norm1.weight" in state:
        x = _residual(state, f"{name}.res.{block}", x)
        if f"{name}.attn.{block}.norm.weight" in state:
            x = _attention(state, f"{name}.attn.{block}", x)
        block += 1
    if f"{name}.downsample.conv.weight" in state:
        below = torch.cat([x, torch.zeros_like(x[:, :, :1])], 2)
        right = torch.cat([below, torch.zeros_like(below[..., :1])], 3)
        x = _conv(state, f"{name}.downsample.conv", right, stride=2)
    if f"{name}.upsample.conv.weight" in state:
        twice = x.new_empty(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        for i, j in product(range(2), range(2)):
            twice[:, :, i::2, j::2] = x
        x = _conv(state, f"{name}.upsample.conv", twice, padding=1)
    return x


def _middle(state: State, name: str, x: Tensor) -> Tensor:
    x = _residual(state, f"{name}.mid.0", x)
    x = _attention(state, f"{name}.mid.1", x)
    return _residual(state, f"{name}.mid.2", x)


def _levels(state: State, name: str, x: Tensor) -> Tensor:
    level = 0
    while f"{name}.conv_blocks.{level}.res.0.norm1.weight" in state:
        x = _level(state, f"{name}.conv_blocks.{level}", x)
        level += 1
    return x


def encode(state: State, images: Tensor) -> Tensor:
    """Codes (B, h, w) of images (B, 3, H, W) in [-1, 1]."""
    h = _levels(state, "encoder", _conv(state, "encoder.conv_in", images, padding=1))
    h = _swish(_norm(state, "encoder.norm_out", _middle(state, "encoder", h)))
    latents = _conv(state, "quant_conv", _conv(state, "encoder.conv_out", h, padding=1))
    flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]).numpy()
    codes = nearest_codes(flat, state["quantize.embedding.weight"].numpy())
    return torch.tensor(codes).view(len(images), *latents.shape[2:])


def decode(state: State, codes: Tensor) -> Tensor:
    """Images (B, 3, H, W) of codes (B, h, w)."""
    book = state["quantize.embedding.weight"]
    rows = book / book.square().sum(1, keepdim=True).sqrt()
    latents = torch.stack([rows[code] for code in codes.flatten()]).view(*codes.shape, -1).permute(0, 3, 1, 2)
    h = _conv(state, "decoder.conv_in", _conv(state, "post_quant_conv", latents), padding=1)
    h = _levels(state, "decoder", _middle(state, "decoder", h))
    return _conv(state, "decoder.conv_out", _swish(_norm(state, "decoder.norm_out", h)), padding=1)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two grey pictures of 0 to 255, mean over all 11 x 11 windows inside them."""
    weights = np.array([[math.exp(-(i * i + j * j) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)])
    weights /= weights.sum()
    values = []
    for i, j in product(range(a.shape[0] - 10), range(a.shape[1] - 10)):
        x, y = a[i : i + 11, j : j + 11].astype(np.float64), b[i : i + 11, j : j + 11].astype(np.float64)
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        cov = (weights * (x - mx) * (y - my)).sum()
        c1, c2 = 2.55**2, 7.65**2
        values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))
