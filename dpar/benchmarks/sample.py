"""Images per second of the sampler, of Algorithm 2 as written and of LlamaGen, and where the time goes.

Networks have random weights and thresholds that give patches as long as the paper's; speed depends on sizes alone. By
default two pairs are timed: the demo's, and the B variants of Table 1 on 16 x 16 tokens of 16,384 codes. On a GPU the
sampler's parts are captured as CUDA graphs, as in all batches of `dpar sample` but the first, and launched kernel by
kernel in other turns.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from dpar.benchmarks.conditions import conditions
from dpar.benchmarks.literal_cost import measure_literal
from dpar.benchmarks.llamagen import described, own_sampler
from dpar.benchmarks.pairs import DEMO, Sizes, random_weights, request_of, table1, untrained
from dpar.benchmarks.timing import Timings, clock, in_turns, say, timed, warm_up, watched
from dpar.benchmarks.train import PAPER_P_AVG
from dpar.device import default_device
from dpar.errors import InputError
from dpar.experiment.settings import VARIANTS, EntropyPrecision
from dpar.memory import out_of_memory
from dpar.model.entropy import computed_precision, entropy_weights
from dpar.model.flops import sampling_gmacs
from dpar.model.llamagen import LlamaGen
from dpar.patches.rule import PatchRule
from dpar.sampling.captured import GraphStore
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import PRECISIONS, Networks
from dpar.sampling.sampler import SampleResult, Step, by_static_parts, sample
from dpar.workflow.options import COUNT, LIMIT, Parser

EAGER = ("DPAR", "LlamaGen")
COMPILED = tuple(f"{name}, compiled" for name in EAGER)
LAUNCHED = tuple(f"{name}, launched" for name in EAGER)  # on a GPU, where the others are captured
ORIGINAL = "LlamaGen's own code"


@dataclass(frozen=True)
class Settings:
    """The precision of the two models, guidance, a checkout of LlamaGen, the precision of the entropy model."""

    precision: str
    cfg_scale: float
    llamagen: Path | None
    gate_precision: EntropyPrecision = "tf32"


def parser() -> argparse.ArgumentParser:
    """The flags of this benchmark."""
    pairs = [name.removeprefix("DPAR-") for name in VARIANTS if name.startswith("DPAR-")]
    flags = Parser(prog="dpar bench sample", description=__doc__)
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
    flags.add_argument(
        "--gate-precision",
        choices=get_args(EntropyPrecision),
        default="tf32",
        help="of the entropy model (default: tf32, which on a CPU is float32)",
    )
    flags.add_argument("--cfg", type=LIMIT, default=2.0, metavar="SCALE", help="of guidance (default: 2)")
    flags.add_argument(
        "--batches",
        type=COUNT,
        nargs="+",
        metavar="IMAGES",
        help="at a time; Algorithm 2 as written is timed in the first (default: what two CPU cores have time for)",
    )
    flags.add_argument(
        "--turns", type=COUNT, help="of DPAR and LlamaGen with each batch (default: 3, on Table 1's sizes 1)"
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
    flags.add_argument("--json", action="store_true", help="print JSON, and the table for people on standard error")
    return flags


def chosen(args: argparse.Namespace) -> dict[str, Sizes]:
    """The sizes that the flags ask for, by name."""
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
        InputError: the memory is too small for the smallest batch.
    """
    args = parser().parse_args(argv)
    device = default_device()
    precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    settings = Settings(precision, args.cfg, args.llamagen, args.gate_precision)
    start, busy = time.monotonic(), time.process_time()
    models = {name: measure(sizes, settings, device) for name, sizes in chosen(args).items()}
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
        "seconds": time.monotonic() - start,
        "processor_seconds": time.process_time() - busy,
        "conditions": conditions(device)
        | {"weights": "random", "precision": settings.precision, "cfg_scale": settings.cfg_scale}
        | {"gate_precision": computed_precision(settings.gate_precision, device)}
        | {"seconds_of": clock(device)}
        | ({"llamagens_own_code": described(args.llamagen, device)} if args.llamagen else {}),
    }
    if args.json:
        print(json.dumps(found, indent=2))
    print(table(found), file=sys.stderr if args.json else sys.stdout)


def measure(sizes: Sizes, settings: Settings, device: torch.device) -> dict[str, Any]:
    """The speeds of one set of sizes, for JSON.

    Raises:
        InputError: the memory is too small for the smallest batch.
    """
    pair = Pair.untrained(sizes, settings, device)
    pixels = pixel_seconds(pair.networks, sizes)
    engine: list[dict[str, Any]] = []
    plain: list[dict[str, Any]] = []
    for batch in sizes.batches:
        say(f"{batch} images at a time")
        try:
            turns = measure_batch(pair, sizes, settings, batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if not engine:
                raise InputError(f"{batch} images at a time do not fit the memory; give fewer: --batches") from None
            say(f"{batch} images at a time do not fit the memory")
            break
        found = compared(sizes, settings, turns, pixels)
        if settings.llamagen:
            found["llamagens_own_code"] = compare_with_original(batch, turns.seconds)
        engine.append(found)
        if batch in sizes.literal:
            request = request_of(batch, sizes, device)
            plain.append(measure_literal(pair.networks, turns.drawn, request, pair.rule, pair.draw, whole=sizes.whole))
            plain[-1]["speedup"] = found["images_per_s"] / plain[-1]["images_per_s"]
            if "compiled" in found:
                plain[-1]["speedup_compiled"] = found["compiled"]["images_per_s"] / plain[-1]["images_per_s"]
    return {
        **summary(engine, plain),
        "literal": plain,
        "engine": engine,
        "pixels_seconds_per_image": pixels,
        "images_that_differ": differing(sizes, pair) if sizes.whole else {},
    }


def summary(engine: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best of all batches: over Algorithm 2 as written, and over what multiply-adds promise."""
    compiled = {found["batch"]: found["speedup_compiled"] for found in plain if "speedup_compiled" in found}
    return {
        "speedup_over_literal": max(found["speedup"] for found in plain),
        "speedup_over_literal_by_batch": {found["batch"]: found["speedup"] for found in plain},
        "speedup_over_literal_compiled": max(compiled.values(), default=None),
        "speedup_over_literal_compiled_by_batch": compiled,
        "over_gmacs_ratio": max(found["over_gmacs_ratio"] for found in engine),
    }


@dataclass(frozen=True)
class Pair:
    """A DPAR with the networks that it draws with, and the LlamaGen of its size; how both draw."""

    networks: Networks
    baseline: LlamaGen
    rule: PatchRule
    draw: DrawSettings

    @classmethod
    def untrained(cls, sizes: Sizes, settings: Settings, device: torch.device) -> "Pair":
        """New networks in the precisions of `settings`."""
        networks, rule = untrained(sizes, device)
        with device:
            baseline = random_weights(LlamaGen(sizes.llamagen))
        for model in (networks.model, baseline):
            model.to(PRECISIONS[settings.precision])
        pair = cls(networks, baseline, rule, DrawSettings(settings.cfg_scale))
        return pair.with_entropies(settings.gate_precision)

    def with_entropies(self, precision: EntropyPrecision) -> "Pair":
        """The same pair, its entropy model in that precision; bfloat16 rounds the weights for good."""
        assert self.networks.entropy_model is not None
        entropy_model = entropy_weights(self.networks.entropy_model.float(), precision)
        networks = replace(self.networks, entropy_model=entropy_model, entropy_precision=precision)
        return replace(self, networks=networks)

    def sampled(
        self,
        name: str,
        request: dict[str, Any],
        observe: Callable[[Step], object] | None = None,
        store: GraphStore | None = None,
    ) -> SampleResult:
        """A batch of that variant: `DPAR` or `LlamaGen`, `, compiled` or not; without a store, a GPU launches it."""
        model = self.networks.model if name.startswith("DPAR") else self.baseline
        settings = replace(self.draw, compile=name in COMPILED, entropy_precision=self.networks.entropy_precision)
        return sample(
            model,
            self.networks.entropy_model,
            **request,
            rule=self.rule,
            settings=settings,
            observe=observe,
            store=store,
        )


@dataclass
class Turns:
    """Draws of one batch size by all variants.

    Attributes:
        seconds: of each variant, turn by turn.
        first: seconds of the first draw of those that compile or capture.
        captured: variants whose draws were CUDA graphs.
        timing: the parts of one more draw of DPAR, kernel by kernel.
        drawn: the batch of that.
    """

    seconds: dict[str, list[float]]
    first: dict[str, float]
    captured: list[str]
    timing: Timings
    drawn: SampleResult


def measure_batch(pair: Pair, sizes: Sizes, settings: Settings, batch: int) -> Turns:
    """Draws batches of one size with all variants in turns."""
    device, request = pair.networks.device, request_of(batch, sizes, pair.networks.device)
    names = [*EAGER, *(COMPILED if sizes.compiled and batch > 1 else ())]
    stores = {name: GraphStore() for name in names if by_static_parts(device)}
    names += LAUNCHED if stores else ()
    works: dict[str, Callable[..., Any]] = {
        name: partial(pair.sampled, name, request, store=stores.get(name)) for name in names
    }
    if settings.llamagen:
        works[ORIGINAL] = partial(own_sampler(settings.llamagen, pair.baseline, settings.cfg_scale), batch)
    first = {}
    for name, work in works.items():
        if name in (*EAGER, *LAUNCHED) and name not in stores:
            warm_up(work)
            continue
        first[name] = timed(work, device)[0]
        if name in stores:
            work()  # a part is captured when it is called for the second time
    seconds = dict(zip(works, in_turns(list(works.values()), sizes.turns, device), strict=True))
    with watched(pair.networks) as timing:
        timing.total, drawn = timed(partial(pair.sampled, "DPAR", request), device)
    captured = [name for name, store in stores.items() if store.captured]
    return Turns(seconds, first, captured, timing, drawn)


def pixel_seconds(networks: Networks, sizes: Sizes) -> float:
    """Seconds per image of the decoder to pixels."""
    config, device = sizes.dpar, networks.device
    count = 32 if sizes.whole or device.type == "cuda" else 4
    tokens = torch.randint(0, config.vocab_size, (count, config.tokens), device=device)
    side = sizes.tokenizer.downsample * config.grid[0]
    networks.pixels(tokens[: count if device.type == "cuda" else 1], side)
    return timed(lambda: networks.pixels(tokens, side), device)[0] / count


def compared(sizes: Sizes, settings: Settings, turns: Turns, pixels: float) -> dict[str, Any]:
    """One batch size: images per second, calls of the patch transformer, and multiply-adds, next to LlamaGen's.

    Images per second are medians of the turns without pixels; the ratio is the median of the turns' own.

    Args:
        pixels: seconds per image.
    """
    patches = turns.drawn.starts.sum(1).cpu().numpy()
    batch, branches = len(patches), 1 if settings.cfg_scale in (0, 1) else 2
    guided = branches == 2
    gmacs = float(np.mean(sampling_gmacs(sizes.dpar, patches, entropy_model=sizes.entropy_model, guided=guided)))
    llamagen_gmacs = float(sampling_gmacs(sizes.llamagen, guided=guided))
    calls = turns.timing.calls["patch_transformer"]
    found = {
        "batch": batch,
        "inverse_gmacs_ratio": llamagen_gmacs / gmacs,
        "gmacs_per_image": gmacs,
        "llamagen_gmacs_per_image": llamagen_gmacs,
    }
    ways = {"compiled": COMPILED, "launched": LAUNCHED}
    others = {way: _speeds(found, turns, names) for way, names in ways.items() if names[0] in turns.seconds}
    if "compiled" in others:
        others["compiled"]["first_draws_seconds"] = sum(turns.first[name] for name in COMPILED)
    return {
        **found,
        **_speeds(found, turns, EAGER),
        "mean_patches": float(patches.mean()),
        "patch_transformer_calls": calls,
        "patch_transformer_rows_per_call": branches * float(patches.sum()) / calls,
        "shares": turns.timing.shares(batch * pixels),
        **others,
    }


def _speeds(found: dict[str, Any], turns: Turns, names: Sequence[str]) -> dict[str, Any]:
    """Images per second of two variants in batches of `found`, and of the first over the second; whether by graphs."""
    ours, theirs = (turns.seconds[name] for name in names)
    ratio = statistics.median(their / our for our, their in zip(ours, theirs, strict=True))
    return {
        "images_per_s": found["batch"] / statistics.median(ours),
        "llamagen_images_per_s": found["batch"] / statistics.median(theirs),
        "over_llamagen": ratio,
        "over_gmacs_ratio": ratio / found["inverse_gmacs_ratio"],
        "captured": all(name in turns.captured for name in names),
    }


def compare_with_original(batch: int, seconds: dict[str, list[float]]) -> dict[str, float]:
    """Images per second of LlamaGen's own code, and our LlamaGen's over them, from seconds turn by turn."""
    own = seconds[ORIGINAL]
    ours = {"over_it": "LlamaGen", "compiled_over_it": "LlamaGen, compiled"}
    return {"images_per_s": batch / statistics.median(own)} | {
        name: statistics.median(their / our for our, their in zip(seconds[variant], own, strict=True))
        for name, variant in ours.items()
        if variant in seconds
    }


def differing(sizes: Sizes, pair: Pair) -> dict[str, float]:
    """The share of images that are not the same in a batch of another size and order, by precision."""
    count, device = 64, pair.networks.device
    pair = pair.with_entropies("float32")
    model, entropy_model = pair.networks.model, pair.networks.entropy_model
    assert entropy_model is not None
    images, shares = request_of(count, sizes, device), {}

    def draw(chosen: Tensor) -> Tensor:
        return pair.sampled("DPAR", {name: value[chosen] for name, value in images.items()}).tokens

    for precision in (torch.float64, torch.float32, torch.bfloat16):
        model.to(precision)
        entropy_model.to(torch.promote_types(precision, torch.float32))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(device)
        pieces = torch.cat([draw(chosen) for chosen in order.split(5)])
        shares[str(precision).removeprefix("torch.")] = (pieces != draw(order)).any(1).double().mean().item()
    return shares


def table(found: dict[str, Any]) -> str:
    """A table for people of what `main` found."""
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
            f"  {_way('sampler', e):22}{e['batch']:>6}{e['images_per_s']:>10.3g}{e['patch_transformer_calls']:>7}"
            f"{e['patch_transformer_rows_per_call']:>11.1f}{e['llamagen_images_per_s']:>10.3g}"
            f"{e['over_llamagen']:>7.2f}{e['inverse_gmacs_ratio']:>9.2f}{e['over_gmacs_ratio']:>9.2f}"
            for e in model["engine"]
        ]
        lines += [
            f"  {_way(f'sampler, {way}', c):22}{e['batch']:>6}{c['images_per_s']:>10.3g}{'':>18}"
            f"{c['llamagen_images_per_s']:>10.3g}{c['over_llamagen']:>7.2f}{e['inverse_gmacs_ratio']:>9.2f}{c['over_gmacs_ratio']:>9.2f}"
            for way in ("launched", "compiled")
            for e in model["engine"]
            if (c := e.get(way))
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
            f"  pixels: {model['pixels_seconds_per_image']:.3g} s per image",
            f"  {best['gmacs_per_image']:.4g} GMACs per image, LlamaGen {best['llamagen_gmacs_per_image']:.4g}",
        ]
        if model["images_that_differ"]:
            differ = ", ".join(f"{share:.1%} in {name}" for name, share in model["images_that_differ"].items())
            lines.append(f"  images that change with the batch: {differ}")
        lines.append("")
    return "\n".join([*lines, "", f"{found['seconds']:.0f} s; {found['conditions']}"])


def _way(name: str, speeds: dict[str, Any]) -> str:
    return f"{name}, graphs" if speeds["captured"] else name
