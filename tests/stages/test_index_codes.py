"""The stage that lists shards of codes."""

import pytest

from dpar.data.manifest import Manifest
from dpar.data.shards import write_shard
from dpar.errors import InputError, run_command
from dpar.stages.index_codes import main
from tests.data.samples import METADATA, code_rows
from tests.stages.experiments import write_experiment

FITTING = METADATA.model_copy(update={"grid": (8, 8), "vocab_size": 32})


def write_shards(folder, metadata=FITTING, scored=False):
    shards = [folder / f"{i:05d}.parquet" for i in range(3)]
    for i, shard in enumerate(shards):
        write_shard(shard, code_rows(2, 2 * i, metadata=metadata, scored=scored))
    return [str(shard) for shard in shards]


@pytest.mark.parametrize("store", ["codes", "scored"])
def test_lists_the_shards(tmp_path, store, capsys):
    folder = tmp_path / store / "train"
    shards = write_shards(folder, scored=store == "scored")
    output = folder / "manifest.json"
    main(["--experiment", str(write_experiment(tmp_path)), "--shards", *shards, "--output", str(output)])
    manifest = Manifest.load(output)
    assert (manifest.num_images, manifest.num_rows, len(manifest.shards)) == (6, 24, 3)
    manifest.verify()
    assert "6 images, 24 rows in 3 shards" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"vocab_size": 33}, {"grid": (4, 16)}, {"resolution": 32}])
def test_refuses_codes_of_another_experiment(tmp_path, change):
    shards = write_shards(tmp_path / "codes/val", FITTING.model_copy(update=change))
    output = tmp_path / "codes/val/manifest.json"
    with pytest.raises(InputError, match=f"{next(iter(change))} is .*, expected"):
        main(["--experiment", str(write_experiment(tmp_path)), "--shards", *shards, "--output", str(output)])
    assert not output.exists()


def test_a_damaged_shard_is_one_line_for_the_user(tmp_path, capsys):
    shards = write_shards(tmp_path / "codes/train")
    data = bytearray((tmp_path / "codes/train/00001.parquet").read_bytes())
    data[len(data) // 3] ^= 4
    (tmp_path / "codes/train/00001.parquet").write_bytes(data)
    output = tmp_path / "codes/train/manifest.json"
    flags = ["--experiment", str(write_experiment(tmp_path)), "--shards", *shards, "--output", str(output)]
    assert run_command(main, flags) == 2
    error = capsys.readouterr().err
    assert "00001.parquet" in error
    assert len(error.splitlines()) == 1
    assert not output.exists()
