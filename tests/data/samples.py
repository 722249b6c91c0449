"""Small images, sources and shards for the tests of the data modules and stages."""

import io
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpar.data.manifest import Manifest
from dpar.data.shards import CodeMetadata, CodeRows, rows_of_images, write_shard

METADATA = CodeMetadata(grid=(2, 3), vocab_size=500, resolution=64, views=4, tokenizer="a" * 64, images="b" * 64)


def sample_image(number, width=20, height=16, mode="RGB"):
    """An image that differs from all others."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def image_bytes(image, form="PNG"):
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def png(width, height, depth, colour, rows):
    """A PNG of these bytes (each row with its filter), whose header may promise anything."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def same(image, expected):
    """Whether an image that was read is this one as RGB."""
    return image.mode == "RGB" and np.array_equal(np.array(image), np.array(expected.convert("RGB")))


def folder_of_images(root, classes=("ant", "bee", "cat"), each=3):
    """An ImageFolder tree; image `i` of class `c` is `sample_image(100 * c + i)`."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i}.png").write_bytes(image_bytes(sample_image(100 * label + i)))
    return root


def parquet_of_images(path, files, labels, keys=None, row_group_size=2):
    """A Parquet file of image files."""
    table = pa.table(
        {
            "key": pa.array(keys or [f"key{i}" for i in range(len(files))]),
            "image": pa.array(files, pa.binary()),
            "label": pa.array(labels, pa.int32()),
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def tar_of_images(path, members):
    """A tar with these members, name to bytes, or pairs of the two."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def code_rows(images=3, first=0, seed=0, scored=False, metadata=METADATA):
    """Random rows of consecutive images."""
    rng = np.random.default_rng([seed, first])
    tokens = rng.integers(0, metadata.vocab_size, (images, metadata.views, metadata.length)).astype(np.uint16)
    labels = rng.integers(0, 10, images).astype(np.int32)
    rows = rows_of_images(tokens, labels, first, metadata)
    if not scored:
        return rows
    entropy = rng.uniform(0, 6, rows.tokens.shape).astype(np.float32)
    entropy[:, 0] = np.inf
    scored_metadata = metadata.model_copy(update={"entropy_model": "e" * 64})
    return CodeRows(rows.tokens, entropy, rows.labels, rows.images, rows.views, scored_metadata)


def code_store(folder, sizes=(3, 5, 2), suffix="parquet", scored=False, metadata=METADATA):
    """Shards of so many images and their manifest, saved; the rows too."""
    parts, shards, first = [], [], 0
    for number, size in enumerate(sizes):
        parts.append(code_rows(size, first, scored=scored, metadata=metadata))
        shards.append(folder / f"{number:05d}.{suffix}")
        write_shard(shards[-1], parts[-1])
        first += size
    manifest = Manifest.build(shards, folder / "manifest.json")
    manifest.save()
    return manifest, parts
