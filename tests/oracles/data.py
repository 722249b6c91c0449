"""Crops, order and shards the slow, literal way."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps


def adm_center_crop(image, side):
    """ADM's centre crop, cut from the array."""
    while min(*image.size) >= 2 * side:
        image = image.resize(tuple(length // 2 for length in image.size), resample=Image.BOX)
    scale = side / min(*image.size)
    image = image.resize(tuple(round(length * scale) for length in image.size), resample=Image.BICUBIC)
    array = np.array(image)
    top = (array.shape[0] - side) // 2
    left = (array.shape[1] - side) // 2
    return Image.fromarray(array[top : top + side, left : left + side])


def ten_crop(square, side):
    """Ten Pillow crops: the corners and the centre of the square, then of its mirror image."""
    found = []
    for image in (square, ImageOps.mirror(square)):
        width, height = image.size
        middle_left, middle_top = round((width - side) / 2.0), round((height - side) / 2.0)
        for left, top in (
            (0, 0),
            (width - side, 0),
            (0, height - side),
            (width - side, height - side),
            (middle_left, middle_top),
        ):
            found.append(image.crop((left, top, left + side, top + side)))
    return found


def splitmix64(state):
    """The published output function, on Python's integers."""
    mask = 2**64 - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def random_bits(seed, stream, epoch, image):
    """SplitMix64's output number `image + key / gamma`."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{epoch}".encode()).digest()[:8], "little")
    return splitmix64(key + image * 0x9E3779B97F4A7C15)


def global_batch(num_images, num_views, batch_size, seed, step):
    """(image, view) of each place of the global batch at `step`, with every epoch before it forgotten."""
    steps = num_images // batch_size
    epoch, place = divmod(step, steps)
    order = sorted(range(num_images), key=lambda image: (random_bits(seed, "order", epoch, image), image))
    chosen = order[place * batch_size : (place + 1) * batch_size]
    return [(image, random_bits(seed, "view", epoch, image) % num_views) for image in chosen]


def parquet_rows(path):
    """The rows of a Parquet shard as Python values, one by one."""
    for row in pq.read_table(path).to_pylist():
        tokens = np.frombuffer(row["tokens"], "<u2").tolist()
        entropy = np.frombuffer(row["entropy"], "<f4").tolist() if "entropy" in row else None
        yield row["image"], row["view"], row["label"], tokens, entropy


def webdataset_rows(path):
    """The rows of a tar shard as the package webdataset decodes them."""
    import webdataset

    for sample in webdataset.WebDataset(str(path), shardshuffle=False).decode():
        for view, tokens in enumerate(sample["tokens.npy"]):
            entropy = sample["entropy.npy"][view].tolist() if "entropy.npy" in sample else None
            yield int(sample["__key__"]), view, sample["cls"], tokens.tolist(), entropy
