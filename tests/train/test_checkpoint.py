"""A state on disk is whole or ignored, keeps the last two, and knows what it was made from."""

import json
import os
import shutil
import time

import pytest
import torch
from safetensors import SafetensorError

from dpar import weights
from dpar.errors import InputError
from dpar.files import read_json, sha256_file
from dpar.train.checkpoint import (
    Checkpoint,
    claim_state,
    last_step,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    training_lock,
)
from dpar.train.restarts import restarts


def save(folder, *steps):
    for step in steps:
        save_checkpoint(folder, Checkpoint(step, {"w": torch.full((64,), float(step))}, {"window": {"steps": step}}))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_are_kept_and_read_back(tmp_path):
    save(tmp_path, 3, 6, 9)
    assert files(tmp_path) == [f"step0000000{n}.{kind}" for n in (6, 9) for kind in ("json", "safetensors")]
    assert newest_checkpoint(tmp_path) == 9
    back = load_checkpoint(tmp_path, 9)
    assert (back.step, back.record["window"]) == (9, {"steps": 9})
    assert torch.equal(back.tensors["w"], torch.full((64,), 9.0))


def test_an_empty_or_missing_folder_has_none(tmp_path):
    assert newest_checkpoint(tmp_path / "missing") is None
    assert last_step(tmp_path) == "none yet"


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "note", "note cut"])
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path, capsys, damage):
    save(tmp_path, 3, 6)
    path = tmp_path / ("step00000006.json" if damage.startswith("note") else "step00000006.safetensors")
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage.endswith("cut"):
        path.write_bytes(data[: len(data) // 2])
    elif damage == "note":
        path.write_bytes(b"\xff" + data)
    else:
        data[-5] ^= 1
        path.write_bytes(data)
    assert newest_checkpoint(tmp_path) == 3
    message = capsys.readouterr().err
    assert "step 6" in message
    assert "damaged" in message
    save(tmp_path, 4)
    assert newest_checkpoint(tmp_path) == 4


def test_no_damage_goes_unnoticed(tmp_path):
    save(tmp_path, 6)
    path = tmp_path / "step00000006.safetensors"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
        note = (tmp_path / "step00000006.json").read_bytes()
        assert newest_checkpoint(tmp_path) is None
        path.write_bytes(data)
        (tmp_path / "step00000006.json").write_bytes(note)
    assert newest_checkpoint(tmp_path) == 6


def test_a_checkpoint_killed_between_its_two_files_does_not_count(tmp_path):
    made_from = {"seed": 0}
    claim_state(tmp_path, made_from)
    save(tmp_path, 3)
    (tmp_path / "step00000006.safetensors").write_bytes(b"whole, but its note is missing")
    for litter in (".step00000006.json.77.partial", ".tmpAbC123"):
        (tmp_path / litter).write_bytes(b"half")
    claim_state(tmp_path, made_from)
    assert newest_checkpoint(tmp_path) == 3
    assert files(tmp_path) == ["made_from.json", "step00000003.json", "step00000003.safetensors"]


def test_a_milestone_that_was_cut_short_leaves_nothing_behind(tmp_path):
    kept = tmp_path / "milestones" / "step00000008"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    for litter in (".model.safetensors.0a1b.partial", ".config.json.2c3d.partial", ".tmpAbC123"):
        (kept / litter).write_bytes(b"half")
    claim_state(tmp_path, {"seed": 0})
    assert files(kept) == ["config.json"]


def test_a_full_disk_keeps_what_was_there_and_says_so(tmp_path, monkeypatch):
    save(tmp_path, 3)

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(InputError, match=r"step 6 was not saved \(last good one: step 3 .*no space left"):
        save(tmp_path, 6)
    assert newest_checkpoint(tmp_path) == 3
    assert files(tmp_path) == ["step00000003.json", "step00000003.safetensors"]


def test_a_disk_that_fills_between_the_two_files_keeps_what_was_there(tmp_path, monkeypatch):
    save(tmp_path, 3)
    replace = os.replace

    def full(source, target):
        if str(target).endswith(".json"):
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="no space left"):
        save(tmp_path, 6)
    assert newest_checkpoint(tmp_path) == 3
    assert files(tmp_path) == ["step00000003.json", "step00000003.safetensors"]


def test_a_really_full_disk_keeps_what_was_there(disk):
    save(disk.folder, 3)
    disk.fill()
    with pytest.raises(InputError, match=r"step 6 was not saved \(last good one: step 3 .*no space left"):
        save(disk.folder, 6)
    assert newest_checkpoint(disk.folder) == 3
    disk.clear()
    assert files(disk.folder) == ["step00000003.json", "step00000003.safetensors"]


def test_a_folder_that_cannot_be_written_keeps_what_was_there(disk):
    save(disk.folder, 3)
    disk.remount("ro")
    with pytest.raises(InputError, match=r"step 6 was not saved \(last good one: step 3 .*Read-only file system"):
        save(disk.folder, 6)
    assert newest_checkpoint(disk.folder) == 3
    assert files(disk.folder) == ["step00000003.json", "step00000003.safetensors"]


def test_another_origin_is_refused_by_name(tmp_path):
    claim_state(tmp_path, {"seed": 0, "codes": "abc", "training": {"batch_size": 8}})
    with pytest.raises(InputError) as refusal:
        claim_state(tmp_path, {"seed": 0, "codes": "def", "training": {"batch_size": 8}})
    assert "codes abc, now def" in str(refusal.value)
    assert "seed" not in str(refusal.value)
    assert "--restart" in str(refusal.value)


def test_restart_sets_a_state_of_another_origin_aside_and_keeps_one_of_the_same(tmp_path, capsys):
    folder = tmp_path / "state"
    claim_state(folder, {"seed": 0})
    save(folder, 3)
    claim_state(folder, {"seed": 0}, restart=True)
    assert newest_checkpoint(folder) == 3
    for seed in (1, 2):
        claim_state(folder, {"seed": seed}, restart=True)
        assert newest_checkpoint(folder) is None
        assert read_json(folder / "made_from.json") == {"seed": seed}
    assert newest_checkpoint(tmp_path / "state.1") == 3
    assert (tmp_path / "state.2").is_dir()
    assert "state.1" in capsys.readouterr().err
    first, second = restarts(tmp_path, since=0)
    assert "seed changed: training begins anew; the old state is now" in first
    assert "state.2" in second
    assert list(restarts(tmp_path, since=time.time() + 1)) == []
    save(folder, 3)
    save(folder, 5)
    (folder / "step00000005.safetensors").write_bytes(b"damaged")
    assert newest_checkpoint(folder) == 3
    assert "checkpoint of step 5" in list(restarts(tmp_path, since=0))[-1]


def test_a_checkpoint_of_another_training_or_step_is_refused_and_stays(tmp_path):
    for name, seed in (("own", 0), ("other", 1)):
        claim_state(tmp_path / name, {"seed": seed})
        save(tmp_path / name, 3, 6)
    for path in (tmp_path / "other").glob("step00000006.*"):
        shutil.copy(path, tmp_path / "own")
    with pytest.raises(InputError, match=r"step00000006\.json is a checkpoint of another training"):
        newest_checkpoint(tmp_path / "own")
    for path in (tmp_path / "own").glob("step00000006.*"):
        path.unlink()
    for path in (tmp_path / "own").glob("step00000003.*"):
        shutil.copy(path, path.with_name(path.name.replace("3", "9")))
    with pytest.raises(InputError, match=r"step00000009\.json is the checkpoint of step 3 under another name"):
        newest_checkpoint(tmp_path / "own")
    assert len(list((tmp_path / "own").glob("step*"))) == 4, "nothing was removed"


def test_checkpoints_without_their_origin_are_nobodys(tmp_path, capsys):
    folder = tmp_path / "state"
    claim_state(folder, {"seed": 0})
    save(folder, 3)
    (folder / "made_from.json").unlink()
    with pytest.raises(InputError, match=r"has checkpoints and no made_from\.json"):
        claim_state(folder, {"seed": 1})
    claim_state(folder, {"seed": 1}, restart=True)
    assert newest_checkpoint(folder) is None
    assert newest_checkpoint(tmp_path / "state.1") == 3


def test_an_edited_origin_is_refused(tmp_path):
    claim_state(tmp_path, {"seed": 0})
    origin = tmp_path / "made_from.json"
    origin.write_text(origin.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match=r"made_from\.json was changed"):
        claim_state(tmp_path, {"seed": 1})


def test_states_from_before_notes_named_their_training_go_on(tmp_path):
    claim_state(tmp_path, {"seed": 0})
    save(tmp_path, 3)
    note = tmp_path / "step00000003.json"
    note.write_text(json.dumps({name: read_json(note)[name] for name in ("step", "sha256")}))
    (tmp_path / "made_from.json").write_text(json.dumps({"seed": 0}))
    claim_state(tmp_path, {"seed": 0, "new": None})
    assert newest_checkpoint(tmp_path) == 3
    save(tmp_path, 6)
    claim_state(tmp_path, {"seed": 0, "new": None, "newer": None})
    assert newest_checkpoint(tmp_path) == 6, "a setting that is not made changes no training"


def plainly(path, **replaced):
    """Writes the JSON of `path` again as older versions wrote it: without its seal, and without what is None."""
    found = read_json(path) | replaced
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


@pytest.mark.parametrize("suffix", [" (copy)", ".bak", "x", "s"])
def test_files_of_other_names_are_no_checkpoints_and_stay(tmp_path, suffix):
    claim_state(tmp_path, {"seed": 0})
    save(tmp_path, 3)
    for path in list(tmp_path.glob("step*")):
        shutil.copy(path, path.with_stem(path.stem + suffix if suffix != "s" else "steps"))
    before = files(tmp_path)
    claim_state(tmp_path, {"seed": 0})
    assert newest_checkpoint(tmp_path) == 3
    assert files(tmp_path) == before


@pytest.mark.parametrize("prefix", ["optimizer", "critic_optimizer"])
def test_an_old_note_under_the_name_of_another_step_is_refused(tmp_path, prefix):
    claim_state(tmp_path, {"seed": 0})
    save_checkpoint(tmp_path, Checkpoint(2, {f"{prefix}.step.w": torch.tensor(2.0)}, {}))
    for path in list(tmp_path.glob("step*")):
        path.rename(path.with_name(path.name.replace("2", "3")))
    note = tmp_path / "step00000003.json"
    plainly(note, step=None, made_from=None)
    with pytest.raises(InputError, match=r"step00000003\.json is the checkpoint of step 2 under another name"):
        newest_checkpoint(tmp_path)
    plainly(note, step=3)
    with pytest.raises(InputError, match=r"step00000003\.safetensors holds the training after step 2"):
        newest_checkpoint(tmp_path)


def test_an_old_note_after_one_that_names_its_training_is_nobodys(tmp_path):
    claim_state(tmp_path, {"seed": 0})
    save(tmp_path, 3, 6)
    plainly(tmp_path / "step00000006.json", made_from=None)
    with pytest.raises(InputError, match=r"step00000006\.json is a checkpoint of another training"):
        newest_checkpoint(tmp_path)
    plainly(tmp_path / "step00000003.json", made_from=None)
    assert newest_checkpoint(tmp_path) == 6


def test_bytes_that_are_no_tensors_are_damage(tmp_path, capsys):
    save(tmp_path, 3, 6)
    weights = tmp_path / "step00000006.safetensors"
    weights.write_bytes(b"no tensors")
    plainly(weights.with_suffix(".json"), sha256=sha256_file(weights))
    assert newest_checkpoint(tmp_path) == 3
    assert "step00000006.safetensors cannot be read" in capsys.readouterr().err


def test_a_state_that_two_results_link_to_is_trained_by_one(tmp_path):
    (tmp_path / "one" / "state").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    link = tmp_path / "two" / "state"
    link.symlink_to(tmp_path / "one" / "state")
    for first, second in ((tmp_path / "one" / "state", link), (link, tmp_path / "one" / "state")):
        with training_lock(first), pytest.raises(InputError, match="being trained"), training_lock(second):
            pass
