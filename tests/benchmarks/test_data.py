"""The benchmark of the codes' way: it times what training uses, and does the sums right."""

import json
import os
import time

import numpy as np
import pytest

from dpar.benchmarks import data
from dpar.commands import bench
from dpar.data.codes import open_codes
from dpar.data.manifest import Manifest
from dpar.data.shards import read_shard
from dpar.paper import PAPER_PATCHES


@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_every_stage_does_its_work(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(data, "SHARD_IMAGES", 30)
    manifest = tmp_path / "manifest.json"
    assert data.write(tmp_path, 70, 2, 256, suffix)[0] == 140
    assert [read_shard(path).num_images for path in sorted(tmp_path.glob(f"*{suffix}"))] == [30, 30, 10]
    for stage, arguments in ((data.index, (tmp_path, suffix)), (data.verify, (manifest,)), (data.decode, (manifest,))):
        rows, spent = stage(*arguments)
        assert rows == 140
        assert (spent > 0).all()
    store = open_codes(manifest, cache=tmp_path / "cache")
    assert (store.tokens.shape, store.entropy.shape) == ((70, 2, 256), (70, 2, 256))
    assert len(np.unique(store.tokens)) > 10_000
    layout, found = data.patch_layout, []
    monkeypatch.setattr(data, "patch_layout", lambda *a: found.append(layout(*a)))
    for how in ({"order": "random", "patches": PAPER_PATCHES[256]}, {"order": "sequential", "patches": None}):
        rows, spent = data.read(manifest, 0.05, 1, 2, how)
        assert rows > 0
        assert spent[1] >= 0.05
    lengths = [length for one in found for length in one.packed.lengths]
    assert np.mean(lengths) == pytest.approx(PAPER_PATCHES[256], rel=0.02)
    data.forget(tmp_path / "cache" / Manifest.load(manifest).digest)


def _sleep(rank):
    time.sleep(0.2)
    return 100 * (rank + 1), np.array([0.5 * (rank + 1), 0.1])


def test_processes_work_side_by_side_and_their_rates_are_added():
    found = data.alone(_sleep, [(0,), (1,)])
    assert (found["per_s"], found["per_cpu_s"]) == (400, pytest.approx(1500))
    assert 0 < found["peak_anonymous_mib"] < found["peak_rss_mib"] < 4096


def test_consumption_follows_from_the_cost_of_a_step():
    found = data.images_consumed("DPAR-L", 256, 312e12)
    linear_alone = 8 * 312e12 * 0.45 / (2 * 3 * 56.74e9)  # Table 8; attention products make a step dearer
    assert 0.9 * linear_alone < found < linear_alone
    assert data.images_consumed("DPAR-L", 256, 624e12) == pytest.approx(2 * found)


def test_prints_a_table_or_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})

    def alone(stage, jobs):
        rows, spent = stage(*jobs[0])
        per_s, per_cpu_s = len(jobs) * rows / spent[0], rows / spent[1]
        return {"per_s": per_s, "per_cpu_s": per_cpu_s, "peak_rss_mib": 2.0, "peak_anonymous_mib": 1.0}

    monkeypatch.setattr(data, "alone", alone)
    flags = ["data", "--images", "96", "--views", "1", "--seconds", "0.01", "--folder", str(tmp_path)]
    bench.main([*flags, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["store"]["cache_bytes_per_row"] == pytest.approx(256 * 6 + 4)
    assert found["store"]["shard_bytes_per_row"] > 256 * 14 / 8 + 256 * 2
    rates, consumed = found["read"][data.EVERY_CORE], found["consumed_per_s"]["H100"]["DPAR-XL"]
    assert found["read_over_consumed"]["H100"]["DPAR-XL"] == rates["per_s"] / consumed
    assert found["cores_for_the_bar"]["H100"]["DPAR-XL"] == 20 * consumed / rates["per_cpu_s"]
    bench.main(flags)
    text = capsys.readouterr().out
    assert "1540 decoded" in text
    assert all(f"read {name} " in text for name in found["read"])
    assert not list(tmp_path.iterdir())
