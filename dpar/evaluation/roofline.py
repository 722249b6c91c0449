"""Time per token of the sampler on a GPU by a roofline: kernels counted in the sampler's own parts, without a GPU.

Each kernel takes the longer of the time to move its bytes and to multiply, at a share of what the maker of the card
promises. Launched one by one, a token takes at least its launches; in captured graphs kernels follow each other without
a gap. These are bounds, not measurements: kernels are ideal, or take `shortest_kernel` at least.

Numbers are means over the tokens of an image. All layers of a stack cost alike, so that two of them are counted.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch

from dpar.device import PEAK_BF16
from dpar.evaluation.kernels import Kernel, kernels_of
from dpar.experiment.settings import EntropyPrecision
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.entropy import entropy_weights
from dpar.model.llamagen import LlamaGen, LlamaGenConfig
from dpar.model.variants import build_entropy_model
from dpar.patches.rule import PatchRule
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import PRECISIONS
from dpar.sampling.static_cache import STRIDE
from dpar.sampling.static_parts import DPARParts, Kernels, LlamaGenParts, bucket

TERMS = ("products", "keys_and_values", "noise", "entropy_model", "other")
LEAST_LIKELY = 1e-4
"""Numbers of images that open a patch together are left out below this probability."""


@dataclass(frozen=True)
class Card:
    """Peaks of a card as its maker promises them, and what kernels are taken to reach of them.

    Attributes:
        bfloat16, tf32, float32: dense operations per second, in units of 1e12.
        bandwidth: bytes per second, in units of 1e12.
        compute_share, bandwidth_share: of those, by the best kernels.
        launch: microseconds of the host per kernel.
        shortest_kernel: microseconds that a kernel takes at least.
    """

    bfloat16: float
    tf32: float
    float32: float
    bandwidth: float
    compute_share: float = 0.8
    bandwidth_share: float = 0.9
    launch: float = 5.0
    shortest_kernel: float = 0.0

    def seconds(self, kernel: Kernel, entries: float, float32: str) -> float:
        """Seconds of a kernel that reads `entries` of a cache; products in float32 run as `float32` or `tf32`."""
        precision = "bfloat16" if kernel.dtype in (torch.bfloat16, torch.float16) else float32
        moved = kernel.bytes + entries * kernel.entry_bytes
        moving = moved / (self.bandwidth * self.bandwidth_share * 1e12)
        computing = kernel.flops / (getattr(self, precision) * self.compute_share * 1e12)
        return max(moving, computing, kernel.launches * self.shortest_kernel * 1e-6)


CARDS = {
    name: Card(PEAK_BF16[name] / 1e12, *peaks)
    for name, peaks in {
        "A100": (156, 19.5, 2.04),
        "H100": (494.5, 67, 3.35),
        "H200": (494.5, 67, 4.8),
        "B200": (1125, 75, 8.0),
        "L40S": (183, 91.6, 0.864),
        "RTX 4090": (82.6, 82.6, 1.008),
    }.items()
}
"""Published peaks of the largest form of each, without sparsity."""


@dataclass(frozen=True)
class Cost:
    """Mean kernels per token, and their seconds by term."""

    kernels: float
    seconds: Mapping[str, float]

    @classmethod
    def of(
        cls, kernels: Sequence[Kernel], card: Card, entries: float = 0.0, term: str | None = None, tf32: bool = False
    ) -> "Cost":
        """The cost of kernels that read `entries` of a cache; all of one term, or each of its own."""
        seconds: dict[str, float] = dict.fromkeys(TERMS, 0.0)
        for kernel in kernels:
            own = "keys_and_values" if kernel.entry_bytes else "products" if kernel.flops else "other"
            seconds[term or own] += card.seconds(kernel, entries, "tf32" if tf32 else "float32")
        return cls(sum(kernel.launches for kernel in kernels), seconds)

    def __add__(self, other: "Cost") -> "Cost":
        seconds = {name: some + other.seconds[name] for name, some in self.seconds.items()}
        return Cost(self.kernels + other.kernels, seconds)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.kernels * times, {name: some * times for name, some in self.seconds.items()})

    @property
    def captured(self) -> float:
        """Seconds per token in captured graphs."""
        return sum(self.seconds.values())

    def launched(self, card: Card) -> float:
        """The same where the host launches each kernel."""
        return max(self.captured, self.kernels * card.launch * 1e-6)

    @property
    def bound_by(self) -> str:
        """The largest term."""
        return max(self.seconds, key=lambda name: self.seconds[name])


@dataclass(frozen=True)
class Drawing:
    """A model and what places its boundaries, by their sizes, as images are drawn with them.

    Attributes:
        gate: the entropy model or a gate; None for static patches and LlamaGen.
        rule: where patches begin; the threshold does not matter. None for LlamaGen.
        guided: whether both branches of guidance are run.
        precision: of the model, a key of `PRECISIONS`.
        fused_noise: whether noise is one kernel.
    """

    model: DPARConfig | LlamaGenConfig
    gate: LlamaGenConfig | None = None
    gate_precision: EntropyPrecision = "float32"
    rule: PatchRule | None = None
    guided: bool = True
    precision: str = "bfloat16"
    fused_noise: bool = True


@cache
def token_cost(drawing: Drawing, batch: int, card: Card, patches: float | None = None) -> Cost:
    """Mean cost of a token of a batch of images.

    Args:
        patches: mean per image, for DPAR. Where no row and no beginning forces one, each token of each image is taken
            to open a patch with the same probability.
    """

    gate = drawing.gate and drawing.gate.model_copy(update={"layers": 1})  # counted for itself

    def of_model(layers: int) -> Cost:
        some = replace(drawing, model=drawing.model.model_copy(update={"layers": layers}), gate=gate)
        if isinstance(drawing.model, LlamaGenConfig):
            return _llamagen_cost(some, batch, card)
        assert patches is not None, "the cost of DPAR depends on the number of patches"
        return _dpar_cost(some, batch, card, patches)

    total = _by_layers(of_model, drawing.model.layers)
    return total + _boundary_cost(drawing, batch, card) if drawing.gate is not None else total


def _by_layers(cost: Callable[[int], Cost], layers: int) -> Cost:
    """The cost of equal layers, from those of one and of two."""
    one = cost(1)
    return one + (cost(2) + one * -1) * (layers - 1) if layers > 1 else one


def _mean_read(lengths: Sequence[int], in_place: bool) -> float:
    """Mean entries of a row that are read, over tokens at which it has `lengths`; masked attention in whole strides."""
    stride = 1 if in_place else STRIDE
    return sum(-(-length // stride) * stride for length in lengths) / len(lengths)


def _dpar_cost(drawing: Drawing, batch: int, card: Card, patches: float) -> Cost:
    parts, tokens = _parts(_needed(drawing, "decode"), batch), drawing.model.tokens
    assert isinstance(parts, DPARParts)
    in_place, rows = parts.kernels.in_place, parts.rows
    encoded, decoded = (_mean_read(range(some, tokens + some), in_place) for some in (0, 1))
    total = Cost.of(_counted(drawing, batch, "encode"), card, batch * encoded)
    total += _with_noise(drawing, batch, "decode", card, rows * decoded)
    for called, share in _by_bucket(_opening(drawing, batch, patches), batch):
        mean = (patches + 1) / 2
        entries = parts.branches * (called.mean * mean + called.size - called.mean)
        if not in_place:  # of all rows
            entries = rows * _mean_read([math.ceil(mean)], in_place)
        total += Cost.of(_opened(drawing, batch, called.size), card, entries) * share
    return total


def _boundary_cost(drawing: Drawing, batch: int, card: Card) -> Cost:
    """The cost of placing boundaries."""
    assert drawing.gate is not None
    gate = drawing.gate

    def of_gate(layers: int) -> Cost:
        some = gate.model_copy(update={"layers": layers})
        return _place_cost(replace(drawing, gate=some), batch, card)

    return _by_layers(of_gate, gate.layers)


def _place_cost(drawing: Drawing, batch: int, card: Card) -> Cost:
    parts, tokens = _parts(_needed(drawing, "place"), batch), drawing.model.tokens
    assert isinstance(parts, DPARParts)
    assert parts.boundaries is not None
    first = int(parts.boundaries.conditional)
    entries = batch * _mean_read(range(first, tokens + first), parts.kernels.entropy_in_place)
    tf32 = drawing.gate_precision == "tf32"
    return Cost.of(_counted(drawing, batch, "place"), card, entries, "entropy_model", tf32)


def _llamagen_cost(drawing: Drawing, batch: int, card: Card) -> Cost:
    parts, tokens = _parts(drawing, batch), drawing.model.tokens
    read = _mean_read(range(1, tokens + 1), parts.kernels.in_place)
    return _with_noise(drawing, batch, "token", card, parts.rows * read)


def _with_noise(drawing: Drawing, batch: int, part: str, card: Card, entries: float) -> Cost:
    """The cost of a part that ends in a draw, the noise among its kernels for itself."""
    kernels, noise = _counted(drawing, batch, part), _counted(drawing, batch, "noise")
    names = [kernel.name for kernel in noise]
    first = next(i for i in range(len(kernels)) if [k.name for k in kernels[i : i + len(names)]] == names)
    others = kernels[:first] + kernels[first + len(names) :]
    return Cost.of(others, card, entries) + Cost.of(noise, card, term="noise")


@cache
def _parts(drawing: Drawing, batch: int) -> DPARParts | LlamaGenParts:
    """The sampler's parts on tensors without numbers."""
    dtype, precision = PRECISIONS[drawing.precision], drawing.gate_precision
    settings = DrawSettings(2.0 if drawing.guided else 1.0, entropy_precision=precision)
    kernels = Kernels(dtype != torch.float32, precision != "float32", drawing.fused_noise)
    with torch.device("meta"):
        if isinstance(drawing.model, LlamaGenConfig):
            return LlamaGenParts(LlamaGen(drawing.model).eval().to(dtype), batch, settings, kernels)
        model = DPAR(drawing.model).eval().to(dtype)
        gate = drawing.gate and entropy_weights(build_entropy_model(drawing.gate).eval(), precision)
        assert drawing.rule is not None, "a model with patches needs to know where they begin"
        return DPARParts(model, gate, batch, drawing.rule, settings, kernels)


def _needed(drawing: Drawing, part: str) -> Drawing:
    """As much of the drawing as its part depends on, so that drawings that have this in common are counted once."""
    model, rule = drawing.model, drawing.rule
    if isinstance(model, LlamaGenConfig) or rule is None:
        return drawing
    if part == "place":  # next to the smallest model
        sizes = {"vocab_size": model.vocab_size, "grid": model.grid, "num_classes": model.num_classes}
        small = DPARConfig(**sizes, layers=1, encoder_layers=1, decoder_layers=1, width=16, heads=1)
        limited = PatchRule(rule.grid_width, 0.0, rule.max_length and 2)
        return replace(drawing, model=small, guided=False, rule=limited)
    static = PatchRule(rule.grid_width, static_length=rule.longest(model.tokens))
    return replace(drawing, gate=None, gate_precision="float32", rule=static)


def _counted(drawing: Drawing, batch: int, part: str, size: int = 0) -> list[Kernel]:
    """Kernels of a part in the middle of an image; `size` images enter the patch transformer."""
    return _counted_once(_needed(drawing, part), batch, part, size)


@cache
def _counted_once(drawing: Drawing, batch: int, part: str, size: int) -> list[Kernel]:
    parts: Any = _parts(drawing, batch)
    middle, guidance = drawing.model.tokens // 2, (parts.branches, parts.scales[0])
    cached = {name: getattr(parts, f"{name}_cache", None) for name in ("token", "encoder", "patch", "decoder")}
    length = {name: some.read_length(middle) if some else None for name, some in cached.items()}
    arguments = {
        "token": (False, *guidance, True, length["token"]),
        "encode": (False, length["encoder"]),
        "decode": (*guidance, True, length["decoder"]),
        "open": (False, size, guidance[0], length["patch"]),
        "noise": (),
    }
    if part == "place":
        arguments["place"] = (False, False, parts.boundaries.read_length(middle))
    return kernels_of(getattr(parts, part), *arguments[part])


def _opened(drawing: Drawing, batch: int, size: int) -> list[Kernel]:
    """Kernels of the patch transformer's part for `size` images, whose bytes and operations grow by equal steps."""
    least = bucket(1, batch)
    few, all_images = (_counted(drawing, batch, "open", images) for images in (least, batch))
    part = (size - least) / (batch - least) if batch > least else 0.0

    def between(first: float, last: float) -> float:
        return float(round(first + (last - first) * part))

    return [
        a._replace(bytes=between(a.bytes, b.bytes), flops=between(a.flops, b.flops))
        for a, b in zip(few, all_images, strict=True)
    ]


def _opening(drawing: Drawing, batch: int, patches: float) -> Iterator[tuple[int, float]]:
    """Numbers of images that open a patch at one token, with their probabilities."""
    rule, tokens = drawing.rule, drawing.model.tokens
    assert rule is not None
    if not rule.is_dynamic:
        yield batch, min(1.0, patches / tokens)
        return
    forced = sum(bool(rule.forced(t)) for t in range(tokens))
    yield batch, forced / tokens
    free = tokens - forced
    p = min(1.0, max(0.0, (patches - forced) / free)) if free else 0.0
    for count in range(1, batch + 1):
        chance = math.comb(batch, count) * p**count * (1 - p) ** (batch - count)
        if chance > LEAST_LIKELY:
            yield count, chance * free / tokens


class Bucket(NamedTuple):
    """A number of images that is computed, and the mean number that open a patch then."""

    size: int
    mean: float


def _by_bucket(opening: Iterator[tuple[int, float]], batch: int) -> Iterator[tuple[Bucket, float]]:
    chances: dict[int, list[tuple[int, float]]] = {}
    for count, chance in opening:
        chances.setdefault(bucket(count, batch), []).append((count, chance))
    for size, found in chances.items():
        share = sum(chance for _, chance in found)
        if share:
            yield Bucket(size, sum(count * chance for count, chance in found) / share), share
