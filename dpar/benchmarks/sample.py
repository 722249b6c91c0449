"""Images a second of the sampler beside Algorithm 2 as written and beside LlamaGen, and where the time goes.

Networks have random weights and thresholds that give patches of about 1.81 tokens; speed depends on sizes alone. Two
sets of sizes: the demo's, and the B variants of Table 1 on 16 x 16 tokens of 16,384 codes.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dpar.benchmarks.conditions import conditions
from dpar.commands.patchify import read_entropies
from dpar.config import VARIANTS, Autoencoder, Patchify
from dpar.device import default_device
from dpar.entropy import token_entropies
from dpar.evaluation.flops import forward_parts, sampling_gmacs
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.llamagen import LlamaGen, LlamaGenConfig
from dpar.patchify import PatchCounts, calibrate, patch_starts
from dpar.sampling.literal import LiteralDPAR, literal, literal_entropy
from dpar.sampling.networks import Networks
from dpar.sampling.noise import image_seed
from dpar.sampling.sampler import SampleResult, sample
from dpar.sampling.schedule import PARTS, CallCost, scheduled
from dpar.tokenizer.autoencoder import VQAutoencoder

P_AVG, MAX_LENGTH, CFG_SCALE = 1.81, 4, 2.0
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
PIECES = 4  # of a sequence, one position of each being timed


@dataclass(frozen=True)
class Sizes:
    """What is timed together: DPAR, its entropy model, LlamaGen, the tokenizer; in which batches of images, how often.

    Algorithm 2 as written is timed in the batches `literal`. Without `repeats` everything is timed once: DPAR while its
    parts are watched, and Algorithm 2 as written in pieces.
    """

    dpar: DPARConfig
    entropy_model: LlamaGenConfig
    llamagen: LlamaGenConfig
    tokenizer: Autoencoder
    batches: tuple[int, ...]
    literal: tuple[int, ...]
    repeats: int


def _table1(name: str) -> dict[str, Any]:
    return {key: value for key, value in VARIANTS[name].items() if key != "architecture"}


_DEMO = {"vocab_size": 256, "grid": (8, 8), "width": 96, "heads": 3}
_BASE = {"vocab_size": 16384, "grid": (16, 16)}
SIZES = {
    "demo": Sizes(
        DPARConfig(**_DEMO, num_classes=8, layers=2, decoder_layers=1),
        LlamaGenConfig(**_DEMO, layers=3),
        LlamaGenConfig(**_DEMO, num_classes=8, layers=4),
        Autoencoder.model_validate(
            {"vocab_size": 256, "channels": 32, "pixel_shuffle": 4, "multipliers": (1, 2), "residual_blocks": 1}
            | {"z_channels": 64, "groups": 1, "attention": False}
        ),
        batches=(1, 16, 64, 256),
        literal=(16, 64),
        repeats=3,
    ),
    "base": Sizes(
        DPARConfig(**_BASE, **_table1("DPAR-B"), num_classes=1000),
        LlamaGenConfig(**_BASE, **_table1("LlamaGen-B")),
        LlamaGenConfig(**_BASE, **_table1("LlamaGen-B"), num_classes=1000),
        Autoencoder.model_validate({}),
        batches=(16, 48),
        literal=(16,),
        repeats=0,
    ),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    flags = argparse.ArgumentParser(prog="dpar bench sample", description=__doc__)
    flags.add_argument("--sizes", choices=SIZES, nargs="+", default=list(SIZES), help="which networks (default: all)")
    flags.add_argument(
        "--entropies",
        metavar="FILE",
        help="npy of real entropies (images, tokens), a square grid, for the simulated schedules (default: made-up "
        "ones with as many patches an image and as much spread)",
    )
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Times everything and prints what was found.

    Raises:
        InputError: the file of entropies cannot be used.
    """
    args = parser().parse_args(argv)
    entropy = made_up_entropies() if args.entropies is None else read_entropies(args.entropies)
    device = default_device()
    start = time.monotonic()
    models = {name: measure(SIZES[name], device) for name in args.sizes}
    costs = {f"{device.type}, {name}": found.pop("costs") for name, found in models.items()}
    found = {
        "speedup_over_literal": min(model["speedup_over_literal"] for model in models.values()),
        "models": models,
        "schedules": schedules(entropy, costs | gpu_costs()),
        "seconds": time.monotonic() - start,
        "conditions": conditions(device)
        | {"weights": "random", "precision": "float32", "cfg_scale": CFG_SCALE}
        | {"seconds_of": clock(device)},
    }
    print(json.dumps(found, indent=2) if args.json else table(found))


def measure(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """What one set of sizes gives; its value `costs` is no JSON."""
    networks, threshold = untrained(sizes, device)
    gate, baseline = networks.entropy_model, _random(LlamaGen(sizes.llamagen)).to(device)
    patchify = Patchify.model_validate({"threshold": threshold, "max_length": MAX_LENGTH})
    how = {"patchify": patchify, "threshold": threshold}

    def draw(model: DPAR | LlamaGen, batch: int) -> SampleResult:
        return sample(model, gate, **_request(batch, sizes, device), **how, cfg_scale=CFG_SCALE)

    draw(networks.model, 2)  # the first calls allocate and choose
    draw(baseline, 2)
    engine: list[dict[str, Any]] = []
    timings: list[Timings] = []
    plain: list[dict[str, Any]] = []
    for batch in sizes.batches:
        say(f"{batch} images at a time")
        ours = [timed(lambda batch=batch: draw(networks.model, batch), device)[0] for _ in range(sizes.repeats)]
        theirs = [timed(lambda batch=batch: draw(baseline, batch), device)[0] for _ in range(max(1, sizes.repeats))]
        with watched(networks) as timing:
            timing.total, result = timed(lambda batch=batch: draw(networks.model, batch), device)
        timings.append(timing)
        engine.append(compared(sizes, result, min([*ours, timing.total]), min(theirs), timing))
        if batch in sizes.literal:
            plain.append(measure_literal(sizes, networks, result, how, device))
            plain[-1]["speedup"] = engine[-1]["images_per_s"] / plain[-1]["images_per_s"]
    few = result.tokens[: 4 if not sizes.repeats else 16]
    side = sizes.tokenizer.downsample * sizes.dpar.grid[0]
    return {
        "speedup_over_literal": max(found["speedup"] for found in plain),
        "literal": plain,
        "engine": engine,
        "pixels_seconds_per_image": timed(lambda: networks.pixels(few, side), device)[0] / len(few),
        "images_that_differ": differing(sizes, networks, how) if sizes.repeats else {},
        "costs": fitted(timings),
    }


def compared(sizes: Sizes, drawn: SampleResult, ours: float, theirs: float, timing: "Timings") -> dict[str, Any]:
    """One batch size: images a second, calls of the patch transformer, and multiply-adds, beside LlamaGen's.

    Args:
        ours: seconds that the batch took.
        theirs: seconds that LlamaGen took for as many images.
    """
    patches = drawn.starts.sum(1).cpu().numpy()
    gmacs = float(np.mean(sampling_gmacs(sizes.dpar, patches, entropy_model=sizes.entropy_model)))
    llamagen_gmacs = float(sampling_gmacs(sizes.llamagen))
    calls = timing.calls["patch_transformer"]
    return {
        "batch": len(patches),
        "images_per_s": len(patches) / ours,
        "llamagen_images_per_s": len(patches) / theirs,
        "over_llamagen": theirs / ours,
        "inverse_gmacs_ratio": llamagen_gmacs / gmacs,
        "gmacs_per_image": gmacs,
        "llamagen_gmacs_per_image": llamagen_gmacs,
        "mean_patches": float(patches.mean()),
        "patch_transformer_calls": calls,
        "patch_transformer_rows_per_call": 2 * timing.rows["patch_transformer"] / calls,
        "shares": timing.shares(),
    }


def untrained(sizes: Sizes, device: torch.device) -> tuple[Networks, float]:
    """Networks whose predictions vary, and the threshold that gives patches of about P_AVG tokens."""
    torch.manual_seed(0)
    model, gate = _random(DPAR(sizes.dpar)).to(device), _random(LlamaGen(sizes.entropy_model)).to(device)
    tokens = torch.randint(0, sizes.dpar.vocab_size, (16, sizes.dpar.tokens), device=device)
    with torch.inference_mode():
        entropy = token_entropies(gate, tokens, "unconditional").cpu()
    threshold = calibrate(entropy, P_AVG, max_length=MAX_LENGTH, grid_width=sizes.dpar.grid[1])
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

    def shares(self) -> dict[str, float]:
        """Of the whole time; the rest is noise, guidance, the draw and bookkeeping."""
        shares = {part: seconds / self.total for part, seconds in self.seconds.items()}
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
    sizes: Sizes, networks: Networks, drawn: SampleResult, how: dict[str, Any], device: torch.device
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
    found: dict[str, Any] = {
        "batch": batch,
        "patch_transformer_calls": int(fires.sum()),
        "patch_transformer_rows_per_call": 2 * batch,
    }
    null = torch.full_like(request["labels"], model.null_label)

    def step(t: int) -> None:
        literal_entropy(gate, tokens[:, :t])
        for labels in (request["labels"], null):
            LiteralDPAR(model, labels).logits(tokens[:, :t], starts[:, : t + 1])

    estimate = 0.0
    for piece in np.array_split(np.flatnonzero(fires), PIECES):
        middle = int(piece[len(piece) // 2])
        say(f"literal, token {middle}")
        with torch.inference_mode():
            estimate += len(piece) * timed(lambda t=middle: step(t), device)[0]
    found |= {"estimated_images_per_s": batch / estimate, "images_per_s": batch / estimate}
    if sizes.repeats:
        say("literal, whole")
        whole, _ = timed(lambda: list(literal(model, gate, **request, **how, cfg_scale=CFG_SCALE)), device)
        found["images_per_s"] = batch / whole
    return found


def differing(sizes: Sizes, networks: Networks, how: dict[str, Any]) -> dict[str, float]:
    """The share of images that are not the same in a batch of another size and order, by precision."""
    count, device, model, gate = 64, networks.device, networks.model, networks.entropy_model
    assert gate is not None
    images, shares = _request(count, sizes, device), {}

    def draw(chosen: Tensor) -> Tensor:
        some = {name: value[chosen] for name, value in images.items()}
        return sample(model, gate, **some, **how, cfg_scale=CFG_SCALE).tokens

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
    gate = SIZES["base"].entropy_model
    for variant in ("DPAR-B", "DPAR-XL"):
        config = DPARConfig(**_BASE, **_table1(variant), num_classes=1000)
        patches = config.tokens / P_AVG
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
            found[f"GPU (assumed), {variant}, {name}"] = costs
    return found


def made_up_entropies(images: int = 4096, side: int = 16) -> Float[np.ndarray, "N T"]:
    """Entropies whose images differ as much as those of one image do: few patches in some, many in others."""
    random = np.random.default_rng(0)
    entropy = random.normal(size=(images, 1)) + random.normal(size=(images, side * side))
    return entropy.astype(np.float32)


def schedules(entropy: np.ndarray, costs: dict[str, dict[str, CallCost]]) -> dict[str, Any]:
    """Images a second of every waiting policy over those of lock-step, for each cost and number of images in flight."""
    side = round(entropy.shape[1] ** 0.5)
    rule = {"max_length": MAX_LENGTH, "grid_width": side}
    starts: Bool[np.ndarray, "N T"] = patch_starts(
        np.asarray(entropy), threshold=calibrate(entropy, P_AVG, **rule), **rule
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
            f"{name}: {model['speedup_over_literal']:.1f}x Algorithm 2 as written, in equal batches",
            f"  {'':22} batch  images/s  calls  rows/call  LlamaGen  ratio  by MACs",
        ]
        lines += [
            f"  {'as written':22}{plain['batch']:>6}{plain['images_per_s']:>10.3g}{plain['patch_transformer_calls']:>7}"
            f"{plain['patch_transformer_rows_per_call']:>11.1f}  ({plain['speedup']:.1f}x slower than the sampler)"
            for plain in model["literal"]
        ]
        lines += [
            f"  {'sampler':22}{e['batch']:>6}{e['images_per_s']:>10.3g}{e['patch_transformer_calls']:>7}"
            f"{e['patch_transformer_rows_per_call']:>11.1f}{e['llamagen_images_per_s']:>10.3g}"
            f"{e['over_llamagen']:>7.2f}{e['inverse_gmacs_ratio']:>9.2f}"
            for e in model["engine"]
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
