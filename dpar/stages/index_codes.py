"""Lists the shards of a store of codes with their counts and digests, each read and checked."""

import sys
from collections.abc import Sequence

from dpar.data.manifest import Manifest
from dpar.errors import run_command
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

STAGE = Stage("index_codes", __doc__, flag("--shards", nargs="+"), flag("--output", "the manifest, JSON"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: a shard is damaged or missing, or the shards do not fit one another or the experiment.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    store, split = args.output.absolute().parts[-3:-1]
    with run.job(
        f"{store}-{split}",
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
