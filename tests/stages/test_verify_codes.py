"""The stage that reads a store of codes again."""

import numpy as np
import pytest

from dpar.data.manifest import Manifest
from dpar.data.shards import CodeMetadata, rows_of_images, write_shard
from dpar.errors import InputError
from dpar.files import read_json, write_json
from dpar.stages import verify_codes


@pytest.fixture(params=["parquet", "tar"])
def manifest(tmp_path, request):
    metadata = CodeMetadata(grid=(2, 2), vocab_size=16, resolution=8, views=2, tokenizer="t" * 64)
    folder = tmp_path / "codes" / "train"
    shards = []
    for number in range(2):
        tokens = np.arange(24, dtype=np.uint16).reshape(3, 2, 4) % 16
        shards.append(folder / f"{number:05d}.{request.param}")
        write_shard(shards[-1], rows_of_images(tokens, np.zeros(3, np.int32), 3 * number, metadata))
    path = folder / "manifest.json"
    Manifest.build(shards, path).save()
    write_json(tmp_path / "experiment.json", {})
    return path


def run(tmp_path, manifest):
    output = tmp_path / "verified.json"
    verify_codes.main(
        ["--experiment", str(tmp_path / "experiment.json"), "--manifest", str(manifest), "--output", str(output)]
    )
    return output


def test_a_sound_store_is_counted(tmp_path, manifest):
    found = read_json(run(tmp_path, manifest))
    assert (found["images"], found["rows"], found["shards"]) == (6, 12, 2)


def test_a_flipped_byte_is_found_in_its_shard(tmp_path, manifest):
    shard = sorted(manifest.parent.glob("00001.*"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=r"00001\."):
        run(tmp_path, manifest)
    assert not (tmp_path / "verified.json").exists()
