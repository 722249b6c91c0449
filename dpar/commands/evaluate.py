"""Every metric of a set of samples against a reference: `dpar evaluate SAMPLES REFERENCE --extractor FILE`.

SAMPLES and REFERENCE are an npz with `arr_0` as ADM's evaluator reads it (or a folder of such shards), a folder of
image files with or without a sub-folder per class, Parquet files or tars (a pattern in quotes), an index/SPLIT.json of
the pipeline, or features that --keep has stored.
"""

import argparse
import json
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from dpar.device import default_device
from dpar.errors import InputError, shown
from dpar.evaluation.comparison import comparable, compare, gaussian_of, metric_name
from dpar.evaluation.features import Extractor, Features, load_features, open_extractor, save_features
from dpar.evaluation.image_sets import Profile, open_set
from dpar.evaluation.passes import describe, unseen
from dpar.files import check_spared
from dpar.tracking.makers import check_recorded
from dpar.workflow.options import COUNT, SEED, SIDE, Parser, RawHelp

SHOWN = {  # value -> what it is called in the table
    "spatial_frechet_distance": "sFID",
    "kernel_distance": "KID",
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
    "class_agreement": "class agreement",
}
# what belongs to either side of the comparison
SIDES = (
    "source",
    "source_digest",
    "count",
    "resolution",
    "crop",
    "grey_images",
    "enlarged_images",
    "left_alone",
    "shards",
    "drawn",
    "steps",
)


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar evaluate", description=__doc__, formatter_class=RawHelp)
    flags.add_argument("samples", type=Path, metavar="SAMPLES")
    flags.add_argument("reference", type=Path, metavar="REFERENCE")
    flags.add_argument(
        "--extractor",
        type=Path,
        metavar="FILE",
        help="Inception's weights, a classifier's folder, or a TorchScript file, which is a program and runs with your "
        "rights: give none that you do not trust",
    )
    flags.add_argument(
        "--profile",
        choices=get_args(Profile),
        default="adm",
        help="how Inception sees the images: adm (published tables of ImageNet) or clean (clean-fid); default adm",
    )
    flags.add_argument("--resolution", type=SIDE, metavar="N", help="cut image files to squares of N pixels first")
    flags.add_argument(
        "--split-size", type=COUNT, default=5000, help="images per split of the Inception Score (default: 5000)"
    )
    flags.add_argument("--seed", type=SEED, default=0, help="of the shuffle of a sorted file, and of KID's subsets")
    flags.add_argument(
        "--keep", type=Path, metavar="DIR", help="store the features there, as samples.npz and reference.npz"
    )
    flags.add_argument("--json", action="store_true", help="print JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the numbers with all that they rest on.

    Raises:
        InputError: a set or the network cannot be used, or the two sets cannot be compared.
    """
    args = parser().parse_args(argv)
    if args.keep is not None:
        for name in ("samples", "reference"):
            check_spared(args.keep / f"{name}.npz", args.samples, args.reference)
    extractor = None if args.extractor is None else open_extractor(args.extractor, default_device())
    samples, reference = (
        _features(path, extractor, args.profile, args.resolution) for path in (args.samples, args.reference)
    )
    if args.keep is not None:
        save_features(args.keep / "samples.npz", samples)
        save_features(args.keep / "reference.npz", reference)
    found = report(samples, reference, split_size=args.split_size, seed=args.seed)
    for warning in found["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(found, indent=2) if args.json else _table(found))


def report(samples: Features, reference: Features, *, split_size: int, seed: int) -> dict[str, Any]:
    """Values, conditions, warnings, and whether the numbers compare with published ones."""
    found = compare(samples, reference, split_size=split_size, seed=seed)
    published, reason = comparable(samples, reference, found.conditions)
    shared = {name: value for name, value in samples.conditions.items() if name not in SIDES}
    warnings = list(found.warnings)
    drawn = ["sampling" in (side.conditions.get("drawn") or {}) for side in (samples, reference)]
    if drawn == [False, True]:
        warnings.append(
            "the reference was drawn by a model and the samples were not: SAMPLES come first, or precision is called "
            "recall and the Inception Score is that of the reference"
        )
    for name, features in (("samples", samples), ("reference", reference)):
        if grey := features.conditions.get("grey_images"):
            warnings.append(
                f"{grey} of {len(features)} images of the {name} are grey; their values stand for all colours"
            )
        if small := features.conditions.get("enlarged_images"):
            warnings.append(
                f"{small} of {len(features)} images of the {name} are smaller than {features.conditions['resolution']} "
                "pixels and were enlarged, which a distance counts as blur"
            )
    result: dict[str, Any] = {
        "metric": metric_name(samples),
        "values": found.values,
        "conditions": {
            **shared,
            **found.conditions,
            "seed": seed,
            "samples": _side(samples),
            "reference": _side(reference),
        },
        "warnings": warnings,
        "comparable_to_published": published,
        "comparable_reason": reason,
    }
    if samples.conditions.get("profile") == "clean":
        result["second_opinion"] = clean_fid(samples, reference)
    return result


def clean_fid(samples: Features, reference: Features) -> dict[str, Any]:
    """The distance that clean-fid computes from the same features, or why it cannot be asked."""
    try:
        from cleanfid import fid  # pyright: ignore[reportMissingImports]

        a, b = (gaussian_of(features) for features in (samples.own(), reference))
        distance = fid.frechet_distance(*(part.numpy() for x in (a, b) for part in (x.mean, x.covariance)))
        return {"package": f"clean-fid {version('clean-fid')}", "frechet_distance": float(distance)}
    except Exception as error:  # torchvision raises RuntimeError on import; SciPy 1.18 breaks clean-fid's sqrtm
        return {"unavailable": f"{type(error).__name__}: {error}"}


def _features(path: Path, extractor: Extractor | None, profile: Profile, side: int | None) -> Features:
    if _stored(path):
        check_recorded(path)
        features = load_features(path)
        if extractor is not None and features.conditions.get("extractor_sha256") != extractor.sha256:
            raise InputError(
                f"{path} holds features of another network ({features.conditions.get('extractor')}, sha256 "
                f"{str(features.conditions.get('extractor_sha256'))[:8]}...) than --extractor ({extractor.name}, "
                f"{extractor.sha256[:8]}...); leave --extractor out, or give the images"
            )
        if (own := features.conditions.get("profile", profile)) != profile:
            raise InputError(f"{path} holds features by the profile {own}, not {profile}; give --profile {own}")
        if side is not None and (own := features.conditions.get("resolution")) != side:
            raise InputError(
                f"{path} holds features of images at {own or 'an unknown number of'} pixels, not at --resolution "
                f"{side}; leave --resolution out, or give the images"
            )
        return features
    images = open_set([path])
    if extractor is None:
        raise InputError(
            f"{path} holds images: give --extractor, the file of Inception's weights "
            "(pt_inception-2015-12-05-6726825d.pth or inception-2015-12-05.pt), a TorchScript file, or a "
            "results/NAME/classifier folder"
        )
    return describe(images, extractor, side=side, profile=profile, rows=unseen(images, extractor))


def _stored(path: Path) -> bool:
    """Whether a file holds features, not images."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return path.suffix == ".npy"
    with zipfile.ZipFile(path) as archive:
        return "features.npy" in archive.namelist()


def _side(features: Features) -> dict[str, Any]:
    known = features.conditions
    return {"images": len(features)} | {name: known[name] for name in SIDES if known.get(name) is not None}


def _table(found: dict[str, Any]) -> str:
    values, stated = found["values"], found["conditions"]
    lines = [f"{found['metric']:16} {values['frechet_distance']:.6g}"]
    lines += [f"{title:16} {values[name]:.6g}" for name, title in SHOWN.items() if values[name] is not None]
    if "second_opinion" in found:
        lines.append(f"{'second opinion':16} {json.dumps(found['second_opinion'])}")
    for name in ("samples", "reference"):
        side = stated[name]
        digest = str(side.get("source_digest", "unknown"))[:16]
        lines.append(f"{name:16} {shown(str(side.get('source')))}: {side['images']:,} images, digest {digest}")
    sha256 = str(stated.get("extractor_sha256"))[:8]
    lines.append(f"{'extractor':16} {stated.get('extractor')} (sha256 {sha256}...), resize: {stated.get('resize')}")
    lines.append(f"{'settings':16} k {stated['k']}, split size {stated.get('split_size')}, {stated.get('order')}")
    yes = "yes" if found["comparable_to_published"] else "no"
    lines.append(f"comparable to published: {yes}, because {found['comparable_reason']}")
    return "\n".join(lines)
