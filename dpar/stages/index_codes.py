"""Lists the shards of a store of codes with their counts and digests, each read and checked."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpar import tracking
from dpar.data.manifest import Manifest
from dpar.errors import run_command
from dpar.experiment.loading import load_experiment
from dpar.workflow import jobs


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="index_codes", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--shards", type=Path, nargs="+", required=True)
    flags.add_argument("--output", type=Path, required=True, help="the manifest, JSON")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: a shard is damaged or missing, or the shards do not fit one another or the experiment.
    """
    args = parser().parse_args(argv)
    experiment = load_experiment(args.experiment)
    store, split = args.output.absolute().parts[-3:-1]
    with tracking.job(
        rule="index_codes",
        experiment=args.experiment,
        name=f"index_codes[{store}-{split}]",
        inputs=jobs.shards(store, split, args.shards),
        outputs=[args.output],
        params={"store": store, "split": split, "shards": len(args.shards)},
    ) as job:
        manifest = Manifest.build(args.shards, args.output)
        manifest.metadata.expect(
            args.shards[0],
            resolution=experiment.images.resolution,
            grid=experiment.grid,
            vocab_size=experiment.tokenizer.vocab_size,
        )
        manifest.save()
        print(f"{args.output}: {manifest.num_images} images, {manifest.num_rows} rows in {len(manifest.shards)} shards")
        job.summary({"images": manifest.num_images, "rows": manifest.num_rows, "shards": len(manifest.shards)})


if __name__ == "__main__":
    sys.exit(run_command(main))
