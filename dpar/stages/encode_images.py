"""Turns the views of one shard of images into codes (Section 3.1, Section 4.1's crops)."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import UInt8, UInt16
from PIL import Image
from torch import Tensor

from dpar.data.crops import center_crop, to_model_input, to_uint8, views
from dpar.data.images import ImageIndex
from dpar.data.shards import CodeMetadata, rows_of_images, write_shard
from dpar.data.workers import cores, mapped, reported
from dpar.device import default_device, full_float32, pad_batch
from dpar.errors import InputError, run_command
from dpar.experiment.settings import Experiment
from dpar.tokenizer.fit import check_fit
from dpar.weights import load_model, model_config
from dpar.workflow import jobs
from dpar.workflow.stage import SPLIT, Stage, flag

_PIXELS = {"cpu": 2**18, "cuda": 2**22}  # encoded at a time: what caches and memory like

STAGE = Stage(
    "encode_images",
    __doc__,
    SPLIT,
    flag("--shard", "which of the split's shards", type=int),
    flag("--index"),
    flag("--tokenizer", "folder of the tokenizer"),
    flag("--output", "the shard, .parquet or .tar"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage: all views of training images, the centre crop of held-out ones.

    Raises:
        InputError: the index or the tokenizer does not fit the experiment, or there are fewer images than shards.
    """
    run = STAGE.start(argv)
    args, experiment = run.args, run.experiment
    shards = getattr(experiment.codes, f"{args.split}_shards")
    with run.job(
        f"{args.split}-{args.shard:05d}",
        inputs=jobs.index(args.split, args.index) + jobs.tokenizer(args.tokenizer),
        outputs=[args.output],
        params={"split": args.split, "shard": args.shard, "shards": shards, **experiment.codes.model_dump(mode="json")},
    ) as job:
        index = ImageIndex.load(args.index)
        numbers = images_of_shard(len(index), args.shard, shards, f"codes.{args.split}_shards")
        device = default_device(args.shard)
        tokenizer = load_model(args.tokenizer, "tokenizer", device)
        check_fit(experiment, args.index, index, args.tokenizer, tokenizer)
        cut, count = cutter(experiment, args.split)
        metadata = CodeMetadata(
            grid=experiment.grid,
            vocab_size=experiment.tokenizer.vocab_size,
            resolution=experiment.images.resolution,
            views=count,
            tokenizer=model_config(args.tokenizer)["sha256"],
            images=index.digest,
        )
        start = time.monotonic()
        size = max(1, _PIXELS[device.type] // (count * metadata.resolution**2))
        blocks = encode(index, numbers, cut, tokenizer.encode, size, device)
        tokens = np.concatenate(list(reported(blocks, len(numbers), "encoded", size=size)))
        tokens = tokens.reshape(len(numbers), count, metadata.length)
        write_shard(args.output, rows_of_images(tokens, index.labels[numbers], numbers[0], metadata))
        pace = len(numbers) / (time.monotonic() - start)
        used = len(np.unique(tokens))
        job.summary({"images": len(numbers), "rows": len(numbers) * count, "images_per_s": pace, "codes/used": used})


def images_of_shard(count: int, shard: int, shards: int, key: str) -> range:
    """The images of one of `shards` runs that differ in length by one at most.

    Raises:
        InputError: no such shard, or fewer images than shards.
    """
    if not 0 <= shard < shards:
        raise InputError(f"there is no shard {shard}; `{key}` is {shards}")
    if count < shards:
        raise InputError(f"{count} images cannot be divided over {shards} shards; lower `{key}`")
    return range(shard * count // shards, (shard + 1) * count // shards)


def cutter(experiment: Experiment, split: str) -> tuple[Callable[[Image.Image], UInt8[Tensor, "V 3 R R"]], int]:
    """The cut of the split's images into views, and the number of views."""
    side, codes = experiment.images.resolution, experiment.codes
    if split == "val":
        return lambda image: to_uint8(center_crop(image, side))[None], 1
    return lambda image: views(image, side, codes.crop_ranges, codes.ten_crop), codes.views


@torch.inference_mode()
def encode(
    index: ImageIndex,
    numbers: range,
    cut: Callable[[Image.Image], UInt8[Tensor, "V 3 R R"]],
    encoder: Callable[[Tensor], Tensor],
    size: int,
    device: torch.device,
) -> Iterator[UInt16[np.ndarray, "N T"]]:
    """Tokens of all views of `size` images at a time, in order; threads read and cut the next images meanwhile.

    An image has the same tokens in a shard of any size: the last images are encoded in a batch as large as the others.
    """

    def load(chunk: range) -> UInt8[Tensor, "N 3 R R"]:
        return torch.cat([cut(index.read(i)) for i in chunk])

    chunks = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    threads = cores()
    for chunk, pixels in zip(chunks, mapped(load, chunks, threads=threads, ahead=2 * threads), strict=True):
        whole = pad_batch(pixels, len(pixels) // len(chunk) * size).to(device)
        with full_float32():
            tokens = encoder(to_model_input(whole)).flatten(1)[: len(pixels)].cpu()
        yield tokens.numpy().astype(np.uint16)


if __name__ == "__main__":
    sys.exit(run_command(main))
