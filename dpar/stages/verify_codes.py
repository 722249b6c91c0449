"""Reads every shard of a store of codes again and compares it with the manifest."""

import sys
from collections.abc import Sequence

from dpar.data.manifest import Manifest
from dpar.errors import run_command
from dpar.files import write_json
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

STAGE = Stage("verify_codes", __doc__, flag("--manifest"), flag("--output", "verified.json"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: a shard is missing, truncated or differs from the manifest by as little as a byte.
    """
    run = STAGE.start(argv)
    args = run.args
    store, split = args.output.absolute().parts[-3:-1]
    with run.job(
        f"{store}-{split}",
        inputs=jobs.codes(store, split, args.manifest),
        outputs=[args.output],
        params={"store": store, "split": split},
    ):
        manifest = Manifest.load(args.manifest)
        manifest.verify()
        counts = {"images": manifest.num_images, "rows": manifest.num_rows, "shards": len(manifest.shards)}
        write_json(args.output, {"digest": manifest.digest} | counts)
        print(f"{args.manifest}: {len(manifest.shards)} shards, {manifest.num_rows} rows, all as listed")


if __name__ == "__main__":
    sys.exit(run_command(main))
