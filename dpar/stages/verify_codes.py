"""Reads every shard of a store of codes again and compares it with the manifest."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpar import tracking
from dpar.data.manifest import Manifest
from dpar.errors import run_command
from dpar.files import write_json
from dpar.workflow import jobs


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="verify_codes", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--manifest", type=Path, required=True)
    flags.add_argument("--output", type=Path, required=True, help="verified.json")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: a shard is missing, truncated or differs from the manifest by as little as a byte.
    """
    args = parser().parse_args(argv)
    store, split = args.output.absolute().parts[-3:-1]
    with tracking.job(
        rule="verify_codes",
        experiment=args.experiment,
        name=f"verify_codes[{store}-{split}]",
        inputs=jobs.codes(store, split, args.manifest),
        outputs=[args.output],
        params={"store": store, "split": split},
    ):
        manifest = Manifest.load(args.manifest)
        manifest.verify()
        write_json(
            args.output,
            {
                "digest": manifest.digest,
                "images": manifest.num_images,
                "rows": manifest.num_rows,
                "shards": len(manifest.shards),
            },
        )
        print(f"{args.manifest}: {len(manifest.shards)} shards, {manifest.num_rows} rows, all as listed")


if __name__ == "__main__":
    sys.exit(run_command(main))
