"""Images a second of the sampler beside Algorithm 2 as written and beside LlamaGen, and where the time goes.

Networks have random weights and thresholds that give patches as long as the paper's; speed depends on sizes alone. By
default two pairs are timed: the demo's, and the B variants of Table 1 on 16 x 16 tokens of 16,384 codes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dpar.benchmarks.conditions import conditions
from dpar.benchmarks.llamagen import described, own_sampler
from dpar.benchmarks.train import PAPER_P_AVG
from dpar.commands.info import DOWNSAMPLE, NUM_CLASSES, PAPER_MAX_LENGTH, VOCAB_SIZE
from dpar.commands.patchify import read_entropies
from dpar.config import VARIANTS, Autoencoder, Patchify, Transformer
from dpar.device import default_device
from dpar.entropy import token_entropies
from dpar.errors import InputError
from dpar.evaluation.flops import forward_parts, sampling_gmacs
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.llamagen import LlamaGen, LlamaGenConfig
from dpar.model.variants import model_config
from dpar.patchify import PatchCounts, calibrate, patch_starts
from dpar.sampling.literal import LiteralDPAR, literal, literal_entropy
from dpar.sampling.memory import out_of_memory
from dpar.sampling.networks import PRECISIONS, Networks
from dpar.sampling.noise import image_seed
from dpar.sampling.sampler import SampleResult, Step, sample
from dpar.sampling.schedule import PARTS, CallCost, scheduled
from dpar.tokenizer.autoencoder import VQAutoencoder

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
PIECES = 4  # of a sequence, one position of each being timed
WARM_UP = 4  # tokens


@dataclass(frozen=True)
class Sizes:
    """What is timed together: DPAR, its entropy model, LlamaGen, the tokenizer; in which batches of images, how often.

    Algorithm 2 as written is timed in the batches `literal`, in pieces; where all is small enough (`whole`) also from
    its first token to its last, and images are drawn again in other batches to be compared. If `compiled`, the sampler
    is timed once more in compiled code, but for single images, for which all would be compiled once more.
    """

    dpar: DPARConfig
    entropy_model: LlamaGenConfig
    llamagen: LlamaGenConfig
    tokenizer: Autoencoder
    p_avg: float
    batches: tuple[int, ...]
    literal: tuple[int, ...]
    turns: int
    whole: bool
    compiled: bool


@dataclass(frozen=True)
class How:
    """The precision of the two models (the entropy model's is always float32), guidance, a checkout of LlamaGen."""

    precision: str
    cfg_scale: float
    llamagen: Path | None


_DEMO = {"vocab_size": 256, "grid": (8, 8), "width": 96, "heads": 3}
DEMO = Sizes(
    DPARConfig(**_DEMO, num_classes=8, layers=2, decoder_layers=1),
    LlamaGenConfig(**_DEMO, layers=3),
    LlamaGenConfig(**_DEMO, num_classes=8, layers=4),
    Autoencoder.model_validate(
        {"vocab_size": 256, "channels": 32, "pixel_shuffle": 4, "multipliers": (1, 2), "residual_blocks": 1}
        | {"z_channels": 64, "groups": 1, "attention": False}
    ),
    p_avg=PAPER_P_AVG[256],
    batches=(1, 16, 64, 256),
    literal=(16, 64),
    turns=3,
    whole=True,
    compiled=True,
)  # fmt: skip


def table1(size: str, resolution: int) -> Sizes:
    """A pair of Table 1 at `resolution` pixels, with the entropy model of the paper: an unconditional LlamaGen-B."""
    side = resolution // DOWNSAMPLE

    def config(variant: str, num_classes: int | None) -> Any:
        transformer = Transformer.model_validate({"variant": variant})
        return model_config(transformer, vocab_size=VOCAB_SIZE, grid=(side, side), num_classes=num_classes)

    return Sizes(
        config(f"DPAR-{size}", NUM_CLASSES),
        config("LlamaGen-B", None),
        config(f"LlamaGen-{size}", NUM_CLASSES),
        Autoencoder.model_validate({}),
        p_avg=PAPER_P_AVG[resolution],
        batches=(16, 48),
        literal=(16,),
        turns=1,
        whole=False,
        compiled=False,
    )


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    pairs = [name.removeprefix("DPAR-") for name in VARIANTS if name.startswith("DPAR-")]
    flags = argparse.ArgumentParser(prog="dpar bench sample", description=__doc__)
    flags.add_argument(
        "--size",
        choices=["demo", *pairs],
        nargs="+",
        default=["demo", "B"],
        help="of the pairs: the demo's, or one of Table 1 (default: demo B)",
    )
    flags.add_argument(
        "--resolution", type=int, choices=PAPER_P_AVG, default=256, help="pixels, of pairs of Table 1 (default: 256)"
    )
    flags.add_argument("--precision", choices=PRECISIONS, help="default: bfloat16 on a GPU, else float32")
    flags.add_argument("--cfg", type=float, default=2.0, metavar="SCALE", help="of guidance (default: 2)")
    flags.add_argument(
        "--batches",
        type=int,
        nargs="+",
        metavar="IMAGES",
        help="at a time; Algorithm 2 as written is timed in the first (default: what two CPU cores have time for)",
    )
    flags.add_argument(
        "--turns", type=int, help="of DPAR and LlamaGen with each batch (default: 3, on Table 1's sizes 1)"
    )
    flags.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="time compiled code too (default: of the demo's sizes; those of Table 1 compile for minutes)",
    )
    flags.add_argument(
        "--llamagen",
        type=Path,
        metavar="DIR",
        help="a checkout of LlamaGen, whose own sampler then takes turns with ours",
    )
    flags.add_argument(
        "--entropies",
        metavar="FILE",
        help="npy of real entropies (images, tokens), a square grid, for the simulated schedules (default: made-up "
        "ones with as many patches an image and as much spread)",
    )
    flags.add_argument("--json", action="store_true", help="print JSON, and the table for people on standard error")
    return flags


def chosen(args: argparse.Namespace) -> dict[str, Sizes]:
    """What the flags ask for, by name."""
    found = {name: DEMO if name == "demo" else table1(name, args.resolution) for name in args.size}
    if args.batches is not None:
        batches = tuple(args.batches)
        found = {name: replace(sizes, batches=batches, literal=batches[:1]) for name, sizes in found.items()}
    if args.turns is not None:
        found = {name: replace(sizes, turns=args.turns) for name, sizes in found.items()}
    if args.compile is not None:
        found = {name: replace(sizes, compiled=args.compile) for name, sizes in found.items()}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Times everything and prints what was found.

    Raises:
        InputError: the file of entropies cannot be used, or the memory is too small for the smallest batch.
    """
    args = parser().parse_args(argv)
    entropy = made_up_entropies() if args.entropies is None else read_entropies(args.entropies)
    device = default_device()
    how = How(args.precision or ("bfloat16" if device.type == "cuda" else "float32"), args.cfg, args.llamagen)
    start, busy = time.monotonic(), time.process_time()
    models = {name: measure(sizes, how, device) for name, sizes in chosen(args).items()}
    costs = {f"{device.type}, {name}": found.pop("costs") for name, found in models.items()}
    compiled = {
        name: speedup
        for name, model in models.items()
        if (speedup := model["speedup_over_literal_compiled"]) is not None
    }
    found = {
        "speedup_over_literal": min(model["speedup_over_literal"] for model in models.values()),
        "over_gmacs_ratio": min(model["over_gmacs_ratio"] for model in models.values()),
        "speedup_over_literal_compiled": compiled,
        "models": models,
        "schedules": schedules(entropy, costs | gpu_costs()),
        "seconds": time.monotonic() - start,
        "processor_seconds": time.process_time() - busy,
        "conditions": conditions(device)
        | {"weights": "random", "precision": how.precision, "cfg_scale": how.cfg_scale}
        | {"seconds_of": clock(device)}
        | ({"llamagens_own_code": described(args.llamagen, device)} if args.llamagen else {}),
    }
    if args.json:
        print(json.dumps(found, indent=2))
    print(table(found), file=sys.stderr if args.json else sys.stdout)


def measure(sizes: Sizes, how: How, device: torch.device) -> dict[str, Any]:
    """What one set of sizes gives; its value `costs` is no JSON."""
    networks, threshold = untrained(sizes, device)
    gate, baseline = networks.entropy_model, _random(LlamaGen(sizes.llamagen)).to(device)
    for model in (networks.model, baseline):
        model.to(PRECISIONS[how.precision])
    patchify = Patchify.model_validate({"threshold": threshold, "max_length": PAPER_MAX_LENGTH})
    settings = {"patchify": patchify, "threshold": threshold, "cfg_scale": how.cfg_scale}

    def draw(model: DPAR | LlamaGen, batch: int, **more: Any) -> SampleResult:
        return sample(model, gate, **_request(batch, sizes, device), **settings, **more)

    pair = {"DPAR": networks.model, "LlamaGen": baseline}
    pixels = pixel_seconds(networks, sizes)
    engine: list[dict[str, Any]] = []
    timings: list[Timings] = []
    plain: list[dict[str, Any]] = []
    for batch in sizes.batches:
        say(f"{batch} images at a time")
        works: dict[str, Callable[..., object]] = {name: partial(draw, model, batch) for name, model in pair.items()}
        if sizes.compiled and batch > 1:
            works |= {f"{name}, compiled": partial(draw, model, batch, compile=True) for name, model in pair.items()}
        if how.llamagen:
            works["LlamaGen's own code"] = partial(own_sampler(how.llamagen, baseline, how.cfg_scale), batch)
        try:
            for work in list(works.values())[:2]:
                begun(lambda observe, work=work: work(observe=observe))
            first = {name: timed(work, device)[0] for name, work in list(works.items())[2:]}
            seconds = dict(zip(works, in_turns(list(works.values()), sizes.turns, device), strict=True))
            with watched(networks) as timing:
                timing.total, result = timed(lambda batch=batch: draw(networks.model, batch), device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if not engine:
                raise InputError(f"{batch} images at a time do not fit the memory; give fewer: --batches") from None
            say(f"{batch} images at a time do not fit the memory")
            break
        timings.append(timing)
        engine.append(compared(sizes, how, result, seconds["DPAR"], seconds["LlamaGen"], timing, pixels))
        compiled = [seconds[f"{name}, compiled"] for name in pair if f"{name}, compiled" in seconds]
        if compiled:
            first_draws = sum(first[f"{name}, compiled"] for name in pair)
            engine[-1]["compiled"] = speeds(engine[-1], *compiled) | {"first_draws_seconds": first_draws}
        if how.llamagen:
            engine[-1]["llamagens_own_code"] = beside_own(batch, seconds)
        if batch in sizes.literal:
            plain.append(measure_literal(sizes, networks, result, settings, device))
            plain[-1]["speedup"] = engine[-1]["images_per_s"] / plain[-1]["images_per_s"]
            if compiled:
                plain[-1]["speedup_compiled"] = engine[-1]["compiled"]["images_per_s"] / plain[-1]["images_per_s"]
    compiled_by_batch = {found["batch"]: found["speedup_compiled"] for found in plain if "speedup_compiled" in found}
    return {
        "speedup_over_literal": max(found["speedup"] for found in plain),
        "speedup_over_literal_by_batch": {found["batch"]: found["speedup"] for found in plain},
        "speedup_over_literal_compiled": max(compiled_by_batch.values(), default=None),
        "speedup_over_literal_compiled_by_batch": compiled_by_batch,
        "over_gmacs_ratio": max(found["over_gmacs_ratio"] for found in engine),
        "literal": plain,
        "engine": engine,
        "pixels_seconds_per_image": pixels,
        "images_that_differ": differing(sizes, networks, settings) if sizes.whole else {},
        "costs": fitted(timings),
    }


class _Begun(Exception):  # noqa: N818  # nothing has gone wrong
    """Enough of a draw to warm up."""


def begun(draw: Callable[[Callable[[Step], object]], object]) -> None:
    """The first tokens of a draw: the first calls of a size allocate, choose and compile."""
    seen: list[Step] = []

    def observe(step: Step) -> None:
        seen.append(step)
        if len(seen) == WARM_UP:
            raise _Begun

    with suppress(_Begun):
        draw(observe)


def in_turns(works: Sequence[Callable[[], object]], turns: int, device: torch.device) -> list[list[float]]:
    """Seconds of each of `works` in each of the turns; every other turn goes backwards."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(turns):
        for i in range(len(works))[:: 1 if turn % 2 == 0 else -1]:
            seconds[i].append(timed(works[i], device)[0])
    return seconds


def pixel_seconds(networks: Networks, sizes: Sizes) -> float:
    """Seconds that the decoder to pixels takes an image."""
    config, device = sizes.dpar, networks.device
    count = 32 if sizes.whole or device.type == "cuda" else 4
    tokens = torch.randint(0, config.vocab_size, (count, config.tokens), device=device)
    side = sizes.tokenizer.downsample * config.grid[0]
    networks.pixels(tokens[: count if device.type == "cuda" else 1], side)
    return timed(lambda: networks.pixels(tokens, side), device)[0] / count


def compared(
    sizes: Sizes,
    how: How,
    drawn: SampleResult,
    ours: Sequence[float],
    theirs: Sequence[float],
    timing: "Timings",
    pixels: float,
) -> dict[str, Any]:
    """One batch size: images a second, calls of the patch transformer, and multiply-adds, beside LlamaGen's.

    Images a second are medians of the turns without pixels; the ratio is the median of the turns' own.

    Args:
        ours: seconds that the batch took, turn by turn.
        theirs: seconds that LlamaGen took for as many images.
        pixels: seconds an image.
    """
    patches = drawn.starts.sum(1).cpu().numpy()
    batch, branches = len(patches), 1 if how.cfg_scale in (0, 1) else 2
    guided = branches == 2
    gmacs = float(np.mean(sampling_gmacs(sizes.dpar, patches, entropy_model=sizes.entropy_model, guided=guided)))
    llamagen_gmacs = float(sampling_gmacs(sizes.llamagen, guided=guided))
    calls = timing.calls["patch_transformer"]
    found = {
        "batch": batch,
        "inverse_gmacs_ratio": llamagen_gmacs / gmacs,
        "gmacs_per_image": gmacs,
        "llamagen_gmacs_per_image": llamagen_gmacs,
    }
    return {
        **found,
        **speeds(found, ours, theirs),
        "mean_patches": float(patches.mean()),
        "patch_transformer_calls": calls,
        "patch_transformer_rows_per_call": branches * float(patches.sum()) / calls,
        "shares": timing.shares(batch * pixels),
    }


def speeds(found: dict[str, Any], ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Images a second in batches of `found`, and over LlamaGen's, from seconds turn by turn."""
    ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
    return {
        "images_per_s": found["batch"] / statistics.median(ours),
        "llamagen_images_per_s": found["batch"] / statistics.median(theirs),
        "over_llamagen": ratio,
        "over_gmacs_ratio": ratio / found["inverse_gmacs_ratio"],
    }


def beside_own(batch: int, seconds: dict[str, list[float]]) -> dict[str, float]:
    """Images a second of LlamaGen's own code, and our LlamaGen's over them, from seconds turn by turn."""
    own = seconds["LlamaGen's own code"]
    ours = {"over_it": "LlamaGen", "compiled_over_it": "LlamaGen, compiled"}
    return {"images_per_s": batch / statistics.median(own)} | {
        name: statistics.median(their / our for our, their in zip(seconds[lane], own, strict=True))
        for name, lane in ours.items()
        if lane in seconds
    }


def untrained(sizes: Sizes, device: torch.device) -> tuple[Networks, float]:
    """Networks whose predictions vary, and the threshold that gives patches of about `sizes.p_avg` tokens."""
    torch.manual_seed(0)
    model, gate = _random(DPAR(sizes.dpar)).to(device), _random(LlamaGen(sizes.entropy_model)).to(device)
    tokens = torch.randint(0, sizes.dpar.vocab_size, (16, sizes.dpar.tokens), device=device)
    with torch.inference_mode():
        entropy = token_entropies(gate, tokens, "unconditional").cpu()
    threshold = calibrate(entropy, sizes.p_avg, max_length=PAPER_MAX_LENGTH, grid_width=sizes.dpar.grid[1])
    tokenizer = VQAutoencoder(sizes.tokenizer).to(device).eval()
    return Networks(model, gate, tokenizer, {}, {}), threshold


def _random(model: nn.Module) -> Any:
    """A new model with a head that is not zero, in eval mode."""
    head = model.decoder.output if isinstance(model, DPAR) else model.output
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=2 * head.in_features**-0.5)
    return model.eval()


def _request(batch: int, sizes: Sizes, device: torch.device) -> dict[str, Tensor]:
    return {
        "labels": torch.arange(batch, device=device) % sizes.dpar.num_classes,
        "seeds": torch.tensor([image_seed(0, i) for i in range(batch)], device=device),
    }


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds that `work` takes, and what it gives."""
    start = seconds(device)
    result = work()
    return seconds(device) - start, result


def seconds(device: torch.device) -> float:
    """A clock: of the wall, or of the processor where one thread computes, so that other jobs disturb it little."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if clock(device) == "processor" else time.perf_counter()


def clock(device: torch.device) -> str:
    """Whose seconds are counted."""
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


@dataclass
class Timings:
    """Seconds, calls and images of each part of the model in one draw that took `total` seconds."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    total: float = 0.0

    def shares(self, pixels: float) -> dict[str, float]:
        """Of the time from labels to pictures; the rest is noise, guidance, the draw and bookkeeping.

        Args:
            pixels: seconds that the drawn images take to become pixels.
        """
        parts = self.seconds | {"pixels": pixels}
        shares = {part: seconds / (self.total + pixels) for part, seconds in parts.items()}
        return shares | {"rest": 1 - sum(shares.values())}


@contextmanager
def watched(networks: Networks) -> Iterator[Timings]:
    """Times the modules of each part while the block draws images; on a GPU this makes it wait for each of them."""
    model, gate = networks.model, networks.entropy_model
    assert isinstance(model, DPAR)
    assert gate is not None
    blocks = {
        "entropy_model": [gate.tok_embeddings, *gate.layers, gate.norm, gate.output],
        "encoder": [m for layer in model.encoder.layers for m in layer.children()] + [model.tok_embeddings],
        "patch_transformer": [*model.patch_transformer.layers, model.cls_embedding],
        "decoder": [m for layer in model.decoder.layers for m in layer.children()]
        + [model.decoder.norm, model.decoder.output],
    }
    counted = {
        "entropy_model": (gate.output, 1),
        "encoder": (model.tok_embeddings, 1),
        "patch_transformer": (model.patch_transformer.layers[0], 2),
        "decoder": (model.decoder.output, 2),
    }
    timing = Timings()
    began = 0.0

    def before(module: nn.Module, inputs: Any) -> None:
        nonlocal began
        began = seconds(networks.device)

    def after(part: str) -> Callable[..., None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            timing.seconds[part] += seconds(networks.device) - began
            if module is counted[part][0]:
                timing.calls[part] += 1
                timing.rows[part] += len(inputs[0]) // counted[part][1]

        return add

    handles = []
    for part, modules in blocks.items():
        for module in modules:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after(part))]
    try:
        yield timing
    finally:
        for handle in handles:
            handle.remove()


def measure_literal(
    sizes: Sizes, networks: Networks, drawn: SampleResult, settings: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Algorithm 2 as written, for the batch `drawn`: whole if the sizes are small, and from PIECES of its positions.

    One position in the middle of each of PIECES equal pieces of the sequence is timed, and its time stands for all
    positions of the piece at which the patch transformer runs (at others, which are few, nothing is charged).
    """
    model, gate = networks.model, networks.entropy_model
    assert isinstance(model, DPAR)
    assert gate is not None
    tokens, starts, batch = drawn.tokens, drawn.starts, len(drawn.tokens)
    request = _request(batch, sizes, device)
    fires = starts.any(0).cpu().numpy()
    branches = [request["labels"]]
    if settings["cfg_scale"] != 1:
        branches.append(torch.full_like(request["labels"], model.null_label))
    found: dict[str, Any] = {
        "batch": batch,
        "patch_transformer_calls": int(fires.sum()),
        "patch_transformer_rows_per_call": len(branches) * batch,
    }

    def step(t: int) -> None:
        literal_entropy(gate, tokens[:, :t])
        for labels in branches:
            LiteralDPAR(model, labels).logits(tokens[:, :t], starts[:, : t + 1])

    estimate = 0.0
    for piece in np.array_split(np.flatnonzero(fires), PIECES):
        middle = int(piece[len(piece) // 2])
        say(f"literal, token {middle}")
        with torch.inference_mode():
            estimate += len(piece) * timed(lambda t=middle: step(t), device)[0]
    found |= {"estimated_images_per_s": batch / estimate, "images_per_s": batch / estimate}
    if sizes.whole:
        say("literal, whole")
        whole, _ = timed(lambda: list(literal(model, gate, **request, **settings)), device)
        found["images_per_s"] = batch / whole
    return found


def differing(sizes: Sizes, networks: Networks, settings: dict[str, Any]) -> dict[str, float]:
    """The share of images that are not the same in a batch of another size and order, by precision."""
    count, device, model, gate = 64, networks.device, networks.model, networks.entropy_model
    assert gate is not None
    images, shares = _request(count, sizes, device), {}

    def draw(chosen: Tensor) -> Tensor:
        some = {name: value[chosen] for name, value in images.items()}
        return sample(model, gate, **some, **settings).tokens

    for precision in (torch.float64, torch.float32, torch.bfloat16):
        model.to(precision)
        gate.to(torch.promote_types(precision, torch.float32))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(device)
        pieces = torch.cat([draw(chosen) for chosen in order.split(5)])
        shares[str(precision).removeprefix("torch.")] = (pieces != draw(order)).any(1).double().mean().item()
    return shares


def fitted(timings: Sequence[Timings]) -> dict[str, CallCost]:
    """Seconds a call and an image of each part, from draws in batches of several sizes (least squares)."""
    costs = {}
    for part in PARTS:
        counts = np.array([(t.calls[part], t.rows[part]) for t in timings], dtype=float)
        seconds = np.array([t.seconds[part] for t in timings])
        weight = 1 / seconds[:, None]  # relative errors, or the largest batch alone would decide
        (fixed, each), *_ = np.linalg.lstsq(counts * weight, seconds * weight[:, 0], rcond=None)
        costs[part] = CallCost(max(float(fixed), 0.0), max(float(each), 0.0))
    return costs


BANDWIDTH = 0.8 * 3.35e12  # bytes a second: 80 % of an H100's
MULTIPLY_ADDS = 0.5 * 989e12 / 2  # a second in bfloat16: half of what the maker promises
KERNELS, LAUNCH = 25, 5e-6  # kernels a layer, seconds that a launch from Python takes


def gpu_costs() -> dict[str, dict[str, CallCost]]:
    """Assumed costs of DPAR-B and DPAR-XL on a GPU, guided, at 256 px; assumed because none was at hand to measure.

    A call reads the weights once, at BANDWIDTH; an image costs its multiply-adds and reading its keys and values. With
    kernels launched one by one each layer also costs KERNELS launches; in a captured graph none.
    """
    found = {}
    for variant in ("B", "XL"):
        sizes = table1(variant, 256)
        config, gate, patches = sizes.dpar, sizes.entropy_model, sizes.dpar.tokens / sizes.p_avg
        parts = {"entropy_model": forward_parts(gate)} | {
            name: {name: part} for name, part in forward_parts(config, patches).items()
        }
        layers = {
            "entropy_model": (gate.layers, gate.tokens - 1, 1, gate.width),
            "encoder": (config.encoder_layers, config.tokens - 1, 1, config.width),
            "patch_transformer": (config.layers, patches, 2, config.width),
            "decoder": (config.decoder_layers, config.tokens, 2, config.width),
        }
        for launch, name in ((LAUNCH, "launched one by one"), (0.0, "in a graph")):
            costs = {}
            for part, (depth, positions, branches, width) in layers.items():
                macs = [m for key in (part, *(["head"] if part == "decoder" else [])) for m in parts[key].values()]
                weights = sum(float(m.linear) for m in macs) / positions  # a weight is used once a position
                entries = depth * width * 2 * positions / 2  # keys and values, half of the sequence on average
                costs[part] = CallCost(
                    2 * weights / BANDWIDTH + depth * KERNELS * launch,
                    branches * (weights / MULTIPLY_ADDS + 2 * entries / BANDWIDTH),
                )
            found[f"GPU (assumed), DPAR-{variant}, {name}"] = costs
    return found


def made_up_entropies(images: int = 4096, side: int = 16) -> Float[np.ndarray, "N T"]:
    """Entropies whose images differ as much as those of one image do: few patches in some, many in others."""
    random = np.random.default_rng(0)
    entropy = random.normal(size=(images, 1)) + random.normal(size=(images, side * side))
    return entropy.astype(np.float32)


def schedules(entropy: np.ndarray, costs: dict[str, dict[str, CallCost]]) -> dict[str, Any]:
    """Images a second of every waiting policy over those of lock-step, for each cost and number of images in flight."""
    side = round(entropy.shape[1] ** 0.5)
    rule = {"max_length": PAPER_MAX_LENGTH, "grid_width": side}
    starts: Bool[np.ndarray, "N T"] = patch_starts(
        np.asarray(entropy), threshold=calibrate(entropy, PAPER_P_AVG[256], **rule), **rule
    )
    counts = PatchCounts.of(starts)
    found: dict[str, Any] = {
        "images": len(starts),
        "tokens": starts.shape[1],
        "mean_patch_length": counts.mean_patch_length,
        "patches_percentiles": {q: counts.percentile(q) for q in (5, 50, 95)},
        "speed_over_lock_step": {},
    }
    for name, parts in costs.items():
        say(f"schedules, {name}")
        rows = {}
        for slots in [slots for slots in (16, 64, 256) if slots <= len(starts)]:
            some = starts[: min(len(starts) // slots, 6) * slots]
            seconds = {share: scheduled(some, slots, share, parts).seconds for share in SHARES}
            rows[slots] = {share: seconds[0.0] / seconds[share] for share in SHARES[1:]}
        found["speed_over_lock_step"][name] = rows
    return found


def say(what: str) -> None:
    """Progress, for people."""
    print(what, file=sys.stderr)


def table(found: dict[str, Any]) -> str:
    """What was found, for people."""
    lines = []
    for name, model in found["models"].items():
        lines += [
            f"{name}: up to {model['speedup_over_literal']:.1f}x Algorithm 2 as written, in equal batches",
            f"  {'':22} batch  images/s  calls  rows/call  LlamaGen  ratio  by MACs  of that",
        ]
        lines += [
            f"  {'as written':22}{plain['batch']:>6}{plain['images_per_s']:>10.3g}{plain['patch_transformer_calls']:>7}"
            f"{plain['patch_transformer_rows_per_call']:>11.1f}  ({plain['speedup']:.1f}x slower than the sampler)"
            for plain in model["literal"]
        ]
        lines += [
            f"  {'sampler':22}{e['batch']:>6}{e['images_per_s']:>10.3g}{e['patch_transformer_calls']:>7}"
            f"{e['patch_transformer_rows_per_call']:>11.1f}{e['llamagen_images_per_s']:>10.3g}"
            f"{e['over_llamagen']:>7.2f}{e['inverse_gmacs_ratio']:>9.2f}{e['over_gmacs_ratio']:>9.2f}"
            for e in model["engine"]
        ]
        lines += [
            f"  {'sampler, compiled':22}{e['batch']:>6}{c['images_per_s']:>10.3g}{'':>18}"
            f"{c['llamagen_images_per_s']:>10.3g}{c['over_llamagen']:>7.2f}{e['inverse_gmacs_ratio']:>9.2f}{c['over_gmacs_ratio']:>9.2f}"
            for e in model["engine"]
            if (c := e.get("compiled"))
        ]
        lines += [
            f"  {'LlamaGen, own code':22}{e['batch']:>6}{'':>28}{own['images_per_s']:>10.3g}  (LlamaGen here is "
            f"{own['over_it']:.2f} times that"
            + (f", compiled {own['compiled_over_it']:.2f})" if "compiled_over_it" in own else ")")
            for e in model["engine"]
            if (own := e.get("llamagens_own_code"))
        ]
        best = max(model["engine"], key=lambda e: e["images_per_s"])
        shares = ", ".join(f"{part.replace('_', ' ')} {share:.0%}" for part, share in best["shares"].items())
        lines += [
            f"  time in batches of {best['batch']}: {shares}",
            f"  pixels: {model['pixels_seconds_per_image']:.3g} s an image",
            f"  {best['gmacs_per_image']:.4g} GMACs an image, LlamaGen {best['llamagen_gmacs_per_image']:.4g}",
        ]
        if model["images_that_differ"]:
            differ = ", ".join(f"{share:.1%} in {name}" for name, share in model["images_that_differ"].items())
            lines.append(f"  images that change with the batch: {differ}")
        lines.append("")
    plans = found["schedules"]
    lines.append(
        f"waiting at patch boundaries, speed over lock-step ({plans['images']} images, P_avg "
        f"{plans['mean_patch_length']:.2f})"
    )
    lines.append(f"  {'':44}{'in flight':>10}" + "".join(f"{share:>8.0%}" for share in SHARES[1:]))
    for name, rows in plans["speed_over_lock_step"].items():
        for slots, speeds in rows.items():
            lines.append(f"  {name:44}{slots:>10}" + "".join(f"{speed:>8.2f}" for speed in speeds.values()))
    return "\n".join([*lines, "", f"{found['seconds']:.0f} s; {found['conditions']}"])
