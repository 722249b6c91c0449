"""Inputs of jobs against the records of their makers; of the whole graph in tests/workflow/test_corruption.py."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from dpar import files, tracking
from dpar.commands import track
from dpar.errors import InputError
from dpar.tracking.ledger import Ledger, spools
from dpar.tracking.makers import Makers, check_recorded, made_by
from dpar.tracking.places import MANIFEST


@pytest.fixture
def make(results: Path, job):
    """Runs the job `name`, which writes `content` to a file."""

    def run(name: str, path: str, content: str = "content") -> Path:
        with job(name.partition("[")[0], name=name, outputs=(path,), params={"content": content}):
            files.write_text(results / path, content)
        return results / path

    return run


def reads(results: Path, *wanted) -> None:
    tracking.check(results / "experiment.json", wanted)


def test_a_change_that_keeps_size_and_time_is_seen(results: Path, make):
    path = make("index[train]", "index/train.json", "0123")
    reads(results, path)
    before = path.stat()
    path.write_text("0124")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match=r"train\.json is not what index\[train\] left"):
        reads(results, path)


def test_two_files_exchanged_by_name_are_seen(results: Path, make):
    one, two = make("draw[0]", "a.npz", "aaaa"), make("draw[1]", "b.npz", "bbbb")
    os.utime(two, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))
    reads(results, one, two)
    one.rename(results / "c")
    two.rename(one)
    (results / "c").rename(two)
    with pytest.raises(InputError, match=r"a\.npz is not what draw\[0\] left.*content of b\.npz, made by draw\[1\]"):
        reads(results, one)


def test_what_the_last_job_made_counts_whoever_made_it_before(results: Path, make):
    path = make("draw[0]", "a.npz", "first")
    make("draw[1]", "a.npz", "second")
    reads(results, *made_by("draw[1]", path))
    with pytest.raises(InputError, match=r"made by draw\[1\], expected is what draw\[0\] makes"):
        reads(results, *made_by("draw[0]", path))
    path.write_text("first")
    with pytest.raises(InputError, match=r"not what draw\[1\] left.*it is what draw\[0\] had made"):
        reads(results, path)


def test_a_record_that_was_not_kept_beside_is_found_in_the_manifests(results: Path, make):
    path = make("draw[0]", "a.npz")
    shutil.rmtree(results / "tracking" / "makers")
    reads(results, *made_by("draw[0]", path))
    assert len(list((results / "tracking" / "makers").iterdir())) == 1, "and is kept from then on"
    # killed between manifest and cache: the newer manifest has the word
    stale = shutil.copytree(results / "tracking" / "makers", results / "stale")
    make("draw[0]", "a.npz", "newer")
    shutil.rmtree(results / "tracking" / "makers")
    stale.rename(results / "tracking" / "makers")
    reads(results, *made_by("draw[0]", path))


def test_the_start_of_a_job_reads_no_manifest_where_all_is_well(results: Path, make, monkeypatch):
    path = make("draw[0]", "a.npz")
    monkeypatch.setattr(Makers, "ledger", property(lambda self: pytest.fail("read all manifests")))
    reads(results, *made_by("draw[0]", path))


def test_what_nobody_made_is_given_unless_its_job_has_run_here(results: Path, make):
    make("other", "other.json", "x")
    (results / "own.pt").write_text("weights")
    reads(results, results / "own.pt", *made_by("draw[0]", results / "own.pt"))
    make("draw[0]", "a.npz")
    with pytest.raises(InputError, match=r"own\.pt: no finished job has it among its outputs, expected draw\[0\]"):
        reads(results, *made_by("draw[0]", results / "own.pt"))
    (results / "copy").write_text("x")
    with pytest.raises(InputError, match=r"copy: .*it is the content of other\.json, made by other"):
        reads(results, *made_by("index", results / "copy"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_rerun_that_failed_leaves_what_it_has_not_touched_usable(results: Path, make, job, error):
    path = make("draw[0]", "a.npz")
    same = {"name": "draw[0]", "outputs": ("a.npz",), "params": {"content": "content"}}
    with pytest.raises(error), job("draw", **same):
        raise error
    reads(results, *made_by("draw[0]", path))
    check_recorded(path)
    with pytest.raises(error), job("draw", **same):
        path.write_text("half")
        raise error("no memory")
    with pytest.raises(InputError, match=r"not what draw\[0\] left .*draw\[0\], in its last run, did not end well"):
        reads(results, *made_by("draw[0]", path))
    make("draw[0]", "a.npz")
    reads(results, *made_by("draw[0]", path))


def test_a_job_that_never_ended_well_is_named(results: Path, job):
    with pytest.raises(RuntimeError), job("draw", name="draw[0]", outputs=("a.npz",)):
        (results / "a.npz").write_text("half")
        raise RuntimeError("no memory")
    with pytest.raises(InputError, match=r"no finished job .*draw\[0\], in its last run, did not .*no memory"):
        reads(results, *made_by("draw[0]", results / "a.npz"))


def test_outside_a_job_only_recorded_files_are_looked_at(results: Path, make, tmp_path: Path):
    path = make("draw[0]", "a.npz")
    (results / "notes").write_text("mine")
    (tmp_path / "elsewhere").write_text("x")
    check_recorded(path, results / "notes", tmp_path / "elsewhere", tmp_path / "nowhere")
    path.write_text("changed")
    with pytest.raises(InputError, match="is not what"):
        check_recorded(path)


def test_a_link_does_not_lead_around_a_record(results: Path, make, tmp_path: Path):
    path, other = make("draw[0]", "sub/a.npz", "aaaa"), make("draw[1]", "sub/b.npz", "bbbb")
    (tmp_path / "link").symlink_to(results)
    (results / "alias").symlink_to(results / "sub")
    places = [tmp_path / "link/sub/a.npz", results / "alias/a.npz"]
    for place in places:
        reads(results, *made_by("draw[0]", place) if place in places[:1] else [place])
        check_recorded(place)
    path.write_text("edit")
    for place in places:
        with pytest.raises(InputError, match=r"a\.npz is not what draw\[0\] left"):
            reads(results, place)
        with pytest.raises(InputError, match=r"a\.npz is not what draw\[0\] left"):
            check_recorded(place)
    path.unlink()
    path.symlink_to(other)  # the record of its own name holds as well
    with pytest.raises(InputError, match=r"a\.npz is not what draw\[0\] left.*content of sub/b\.npz"):
        reads(results, path)
    with pytest.raises(InputError, match=r"a\.npz is not what draw\[0\] left"):
        check_recorded(path)


def test_results_behind_links_are_read(results: Path, make, tmp_path: Path, monkeypatch):
    make("draw[0]", "sub/a.npz")
    moved = results.rename(tmp_path / "disk")
    results.symlink_to(moved)
    (moved / "sub").rename(tmp_path / "larger")
    (moved / "sub").symlink_to(tmp_path / "larger")
    monkeypatch.chdir(tmp_path)
    for folder in (results, moved, Path("disk"), Path("results/demo")):
        reads(folder, *made_by("draw[0]", folder / "sub/a.npz"))
        check_recorded(folder / "sub", folder / "sub/a.npz")
    (tmp_path / "larger" / "a.npz").write_text("edit")
    for folder in (results, moved, Path("disk"), Path("results/demo")):
        with pytest.raises(InputError, match="is not what draw"):
            check_recorded(folder / "sub")
    track.main(["accept", "results/demo/sub/a.npz"])
    reads(moved, *made_by("draw[0]", moved / "sub/a.npz"))


def test_a_file_of_another_results_folder_is_looked_up_in_the_records_there(results: Path, make, tmp_path: Path):
    make("draw[0]", "a.npz", "aaaa")
    mine = results.with_name("mine")
    mine.mkdir()
    (mine / "experiment.json").write_text('{"name": "mine"}')
    with tracking.job(rule="own", experiment=mine / "experiment.json"):
        pass
    reads(mine, results / "a.npz", *made_by("draw[0]", results / "a.npz"))
    with pytest.raises(InputError, match=r"a\.npz was made by draw\[0\], expected is what draw\[1\] makes"):
        reads(mine, *made_by("draw[1]", results / "a.npz"))
    (results / "a.npz").write_text("edit")
    with pytest.raises(InputError, match=r"a\.npz is not what draw\[0\] left"):
        reads(mine, results / "a.npz")


def test_accepting_says_by_whom_when_and_what_it_was(results: Path, make, capsys):
    path, whole = make("draw[0]", "a.json"), make("draw[1]", "b.json")
    path.write_text("mine")
    track.main(["accept", str(results)])
    said = capsys.readouterr().out
    assert "a.json" in said
    assert "b.json" not in said
    reads(results, *made_by("draw[0]", path), whole)
    (record,) = [m for m in Ledger(results).manifests if m.rule == "accept"]
    assert {"by", "when"} <= record.params.keys()
    assert [a.path for a in record.inputs] == [a.path for a in record.outputs] == ["a.json"]
    assert record.inputs[0].sha256 != record.outputs[0].sha256
    # and what is made again afterwards needs no word
    make("draw[0]", "a.json", "new")
    reads(results, *made_by("draw[0]", path))


def test_accepting_mends_the_seal_of_a_file_and_of_an_export_that_has_no_records(results: Path, make, tmp_path, capsys):
    inside, outside = results / "a.json", tmp_path / "export" / "config.json"
    with tracking.job(rule="draw", experiment=results / "experiment.json", outputs=[inside]):
        files.write_json(inside, {"a": 1})
    files.write_json(outside, {"a": 1})
    for path in (inside, outside):
        path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
        with pytest.raises(InputError, match="track accept"):
            files.read_json(path)
        track.main(["accept", str(path)])
        assert files.read_json(path) == {"a": 2}
    reads(results, inside)
    with pytest.raises(InputError, match="nothing to accept"):
        track.main(["accept", str(outside)])


def test_the_resolved_experiment_is_not_accepted_but_written_anew(results: Path, make, capsys):
    make("draw[0]", "a.json")
    experiment = results / "experiment.json"
    files.write_json(experiment, {"name": "demo"})
    experiment.write_text(edited := experiment.read_text().replace("demo", "other"))
    for given in (experiment, results):
        with pytest.raises(InputError, match="YAML") if given == experiment else contextlib.nullcontext():
            track.main(["accept", str(given)])
        assert experiment.read_text() == edited
    assert "nothing to accept" in capsys.readouterr().out
    with pytest.raises(InputError, match="YAML file; change that") as caught:
        files.read_json(experiment)
    assert "track accept" not in str(caught.value)


def test_accepting_what_is_no_json_says_so(results: Path, make, tmp_path: Path, capsys):
    path = make("draw[0]", "a.json", "{}")
    path.write_text("{")
    track.main(["accept", str(path)])
    said = capsys.readouterr()
    assert "accepted by hand" in said.out
    assert f"{path} is not JSON" in said.err
    (tmp_path / "passwd").write_text("root:x:0:0")
    with pytest.raises(InputError, match=r"passwd lies in no results folder.*nothing to accept"):
        track.main(["accept", str(tmp_path / "passwd")])


def test_a_damaged_manifest_stops_no_job_that_it_says_nothing_of(results: Path, make):
    path = make("draw[0]", "a.npz")
    make("draw[1]", "b.npz")
    (other,) = [spool for spool in spools(results) if spool.name.startswith("draw-1")]
    (other / MANIFEST).write_text("{")
    shutil.rmtree(results / "tracking" / "makers")
    reads(results, *made_by("draw[0]", path))
    with pytest.raises(InputError, match="1 records are damaged"):
        reads(results, *made_by("draw[1]", results / "b.npz"))


def test_files_around_makers_that_are_lost_are_known_by_what_is_kept_of_them(results: Path, make):
    """A spool was deleted: the small file about its output is left, and has the word unless a manifest is newer."""
    path, other = make("draw[0]", "a.npz"), make("draw[1]", "b.npz")
    (spool,) = [spool for spool in spools(results) if spool.name.startswith("draw-0")]
    shutil.rmtree(spool)
    reads(results, *made_by("draw[0]", path))
    with pytest.raises(InputError, match=r"a\.npz was made by draw\[0\], expected is what draw\[1\]"):
        reads(results, *made_by("draw[1]", path))
    path.write_bytes(other.read_bytes() + b" ")
    for wanted in (path, *made_by("draw[0]", path)):
        with pytest.raises(InputError, match=r"a\.npz is not what draw\[0\] left"):
            reads(results, wanted)
        with pytest.raises(InputError, match=r"a\.npz is not what draw\[0\] left"):
            check_recorded(wanted)
    # an older manifest of the same path is not taken for it
    make("draw[2]", "c.npz", "older")
    make("draw[3]", "c.npz", "newer")
    (spool,) = [spool for spool in spools(results) if spool.name.startswith("draw-3")]
    shutil.rmtree(spool)
    reads(results, *made_by("draw[3]", results / "c.npz"))
    (results / "c.npz").write_text("older")
    with pytest.raises(InputError, match=r"c\.npz is not what draw\[3\] left"):
        reads(results, results / "c.npz")


def test_what_other_jobs_have_put_into_a_folder_is_not_recorded_as_this_ones(results: Path, make, job):
    make("evaluate", "tokenizer/report.json", "{}")
    with job("train_tokenizer", name="train_tokenizer", outputs=("tokenizer",)):
        files.write_json(results / "tokenizer/config.json", {"a": 1})
    (record,) = [m for m in Ledger(results).manifests if m.rule == "train_tokenizer"]
    assert [file.path for file in record.outputs[0].files] == ["config.json"]
    reads(results, *made_by("evaluate", results / "tokenizer/report.json"))
    reads(results, *made_by("train_tokenizer", results / "tokenizer/config.json"))
