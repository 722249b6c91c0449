"""The trainer: what a step is, and that stopping and going on changes nothing, to the bit."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from dpar import weights
from dpar.data.loader import batches
from dpar.errors import InputError
from dpar.files import read_json, sha256_file, write_json
from dpar.model.flops import training_gmacs
from dpar.train import checkpoint, loop
from dpar.train.checkpoint import load_checkpoint
from dpar.train.distributed import Ranks
from dpar.train.objective import inputs, logits_and_targets, patch_layout, summed_loss
from tests.train.tiny import VOCAB, Recorder, history, tiny_task, train

GOLDEN = Path(__file__).parents[1] / "golden" / "train_losses.json"
KINDS = ["dpar", "llamagen", "unconditional"]


def same_weights(a: Path, b: Path) -> bool:
    """Whether two model folders hold the same bits."""
    return (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def losses(folder: Path, kind) -> list[float]:
    """The losses of 20 steps without dropout."""
    points = history(train(folder, kind, dropout=0.0, log_every=1, checkpoint_every=20, validate_every=20))
    return [points[step]["train/loss"] for step in range(1, 21)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_curve_is_the_recorded_one(tmp_path, kind):
    """A change that moves these numbers changes what is trained; `python -m tests.train.test_loop` records them."""
    assert losses(tmp_path, kind) == pytest.approx(json.loads(GOLDEN.read_text())[kind], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_ln_v_and_the_last_is_lower(tmp_path, kind):
    points = history(train(tmp_path, kind, log_every=1))
    assert points[1]["train/loss"] == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert points[20]["train/loss"] < points[1]["train/loss"] - 0.3
    assert points[20]["val/nll"] < points[10]["val/nll"] < math.log(VOCAB)
    assert ("patch/mean_length" in points[20]) == (kind == "dpar")


def test_a_step_is_clipped_adamw_on_the_mean_over_all_tokens(tmp_path):
    settings = {"dropout": 0.0, "steps": 2, "grad_clip": 0.5, "checkpoint_every": 1}
    train(tmp_path, "dpar", 2, **settings)
    reference = tiny_task("dpar", **settings)
    names = dict(reference.model.named_parameters())
    groups = [
        {"params": [p for p in names.values() if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in names.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), foreach=False)
    stream = batches(reference.train, batch_size=8, seed=0)
    for step in (1, 2):
        batch = loop.drop_classes(next(stream), rate=0.3, null=3, seed=0)
        logits, targets = logits_and_targets(reference.model, inputs(batch, labelled=True, rule=reference.rule))
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets)
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in names.values()))
        for parameter in names.values():
            parameter.grad *= min(1.0, 0.5 / norm)
        optimizer.step()
        saved = load_checkpoint(tmp_path / "state", step).tensors
        for name, parameter in names.items():
            torch.testing.assert_close(saved[f"model.{name}"], parameter.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["dpar", "llamagen"])
def test_pieces_give_the_bits_of_the_whole(tmp_path, kind):
    settings = {"ema": 0.9, "accumulate": 2, "log_every": 3}
    whole = train(tmp_path / "whole", kind, 20, **settings)
    for until in (1, 7, 8, 20):
        pieces = train(tmp_path / "pieces", kind, until, **settings)
    assert same_weights(whole, pieces)
    states = [load_file(tmp_path / name / "state" / "step00000020.safetensors") for name in ("whole", "pieces")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_curves_go_on_where_a_saved_window_was_cut(tmp_path):
    def interrupt(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = train(tmp_path / "whole", "dpar", log_every=4, validate_every=5)
    with pytest.raises(SystemExit):
        train(tmp_path / "cut", "dpar", log_every=4, validate_every=5, job=Recorder(interrupt))
    cut = train(tmp_path / "cut", "dpar", log_every=4, validate_every=5)
    assert history(whole) == history(cut)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_the_state_and_asks_to_be_started_again(tmp_path, capsys, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    job = Recorder(lambda step: os.kill(os.getpid(), number) if step == 7 else None)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path, "llamagen", log_every=7, checkpoint_every=100, job=job)
    assert stop.value.code == 75
    assert job.commits == [0, 7]
    assert "after step 7" in capsys.readouterr().err
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert not (tmp_path / "model20").exists()
    resumed = Recorder()
    assert same_weights(
        train(tmp_path, "llamagen", log_every=7, checkpoint_every=100, job=resumed),
        train(tmp_path / "whole", "llamagen", log_every=7, checkpoint_every=100),
    )
    assert resumed.commits == [7, 20]


def test_a_damaged_checkpoint_costs_steps_but_no_bit(tmp_path, capsys):
    train(tmp_path, "dpar", 8)
    newest = tmp_path / "state" / "step00000008.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    job = Recorder()
    again = train(tmp_path, "dpar", 20, job=job)
    assert job.commits[0] == 4
    assert "damaged" in capsys.readouterr().err
    whole = train(tmp_path / "whole", "dpar", 20)
    assert same_weights(again, whole)
    assert history(again) == history(whole)


def test_a_milestone_that_was_passed_is_written_again_from_what_was_kept(tmp_path):
    first = train(tmp_path, "dpar", 8)
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    train(tmp_path, "dpar", 20)
    shutil.rmtree(first)
    job = Recorder()
    train(tmp_path, "dpar", 8, job=job)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == kept
    assert not job.points
    with pytest.raises(InputError, match="stands at step 20, past step 9"):
        train(tmp_path, "dpar", 9)


def bits(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_lost_milestone_is_trained_again_beside_the_state_that_has_passed_it(tmp_path, capsys):
    settings = {"milestones": (9,), "restart": True}
    first = train(tmp_path, "llamagen", 9, **settings)
    weights = (first / "model.safetensors").read_bytes()
    train(tmp_path, "llamagen", 20, **settings)
    before = bits(tmp_path / "state")
    shutil.rmtree(tmp_path / "state" / "milestones" / "step00000009")
    shutil.rmtree(first)

    def interrupt(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(tmp_path, "llamagen", 9, job=Recorder(interrupt), **settings)
    job = Recorder()
    train(tmp_path, "llamagen", 9, job=job, **settings)
    assert job.commits == [5, 8, 9]
    assert "past step 9" in capsys.readouterr().err
    assert (first / "model.safetensors").read_bytes() == weights
    after = bits(tmp_path / "state")
    kept = {f"milestones/step00000009/{name}" for name in ("history.jsonl", "config.json")}  # speeds, and their digest
    assert {k: v for k, v in after.items() if k not in kept} == {k: v for k, v in before.items() if k not in kept}
    assert [path.name for path in tmp_path.glob("state*")] == ["state"]


def test_a_training_that_was_shortened_is_trained_to_its_new_end_if_asked_to(tmp_path):
    train(tmp_path / "long", "llamagen", 20)
    with pytest.raises(InputError, match=r"past step 9.*--restart"):
        train(tmp_path / "long", "llamagen", 9, steps=9)
    short = train(tmp_path / "long", "llamagen", 9, steps=9, restart=True)
    assert same_weights(short, train(tmp_path / "short", "llamagen", 9))
    job = Recorder()
    train(tmp_path / "long", "llamagen", 20, job=job)
    assert not job.points, "the longer training's state is kept"


def test_a_kept_milestone_that_was_damaged_is_not_given_out(tmp_path):
    train(tmp_path, "dpar", 8)
    whole = (tmp_path / "model8" / "model.safetensors").read_bytes()
    kept = tmp_path / "state" / "milestones" / "step00000008" / "model.safetensors"
    kept.unlink()
    kept.write_bytes(whole[:-1] + b"?")
    assert (train(tmp_path, "dpar", 8) / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "history.jsonl"])
def test_a_kept_milestone_without_one_of_its_files_does_not_count(tmp_path, lost):
    folder = train(tmp_path, "llamagen", 8)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "state" / "milestones" / "step00000008" / lost).unlink()
    (folder / "model.safetensors").unlink()
    train(tmp_path, "llamagen", 8)
    assert (folder / "model.safetensors").read_bytes() == whole


def test_the_kept_network_is_the_moving_average(tmp_path):
    output = train(tmp_path, "llamagen", 3, ema=0.75, checkpoint_every=1, steps=3)
    state = load_file(tmp_path / "state" / "step00000003.safetensors")
    average = load_file(output / "model.safetensors")
    train(tmp_path / "one", "llamagen", 1, steps=1)
    train(tmp_path / "two", "llamagen", 2, steps=2)
    first, second = (load_file(tmp_path / n / f"model{i}" / "model.safetensors") for n, i in (("one", 1), ("two", 2)))
    for name in average:
        expected = 0.75 * (0.75 * first[name] + 0.25 * second[name]) + 0.25 * state[f"model.{name}"]
        torch.testing.assert_close(average[name], expected)


class Reads(TorchDispatchMode):
    """Counts the tensors whose value the host asks for; on a GPU each such question waits for all work before it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Calls `func`."""
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_moving_average_is_never_read_by_the_host(tmp_path):
    reads = {}
    for ema in (None, 0.9):
        task, here = tiny_task("llamagen", ema=ema), Ranks(torch.device("cpu"))
        trainer = loop.Trainer(task, tmp_path, here, Recorder())
        stream = trainer.stream()
        trainer.advance(stream)
        with Reads() as reads[ema]:
            trainer.advance(stream)
    assert reads[0.9].count == reads[None].count


def test_a_state_with_the_count_of_averages_that_used_to_be_kept_goes_on(tmp_path):
    train(tmp_path, "llamagen", 8, ema=0.9)
    note = tmp_path / "state" / "step00000008.json"
    weights = note.with_suffix(".safetensors")
    save_file(load_file(weights) | {"average.n_averaged": torch.tensor(8)}, weights)
    write_json(note, read_json(note) | {"sha256": sha256_file(weights)})
    job = Recorder()
    later = train(tmp_path, "llamagen", 20, ema=0.9, job=job)
    assert job.commits[0] == 8
    assert same_weights(later, train(tmp_path / "whole", "llamagen", 20, ema=0.9))


def test_other_settings_are_refused_and_those_that_do_not_matter_are_not(tmp_path):
    train(tmp_path, "dpar", 8)
    with pytest.raises(InputError, match=r"training .*0\.003.*now .*0\.001"):
        train(tmp_path, "dpar", 12, learning_rate=1e-3)
    with pytest.raises(InputError, match="model "):
        train(tmp_path, "llamagen", 12)
    train(tmp_path, "dpar", 12, steps=50, milestones=(12,), log_every=1, validate_every=3, checkpoint_every=1)
    restarted = train(tmp_path, "dpar", 8, learning_rate=1e-3, restart=True)
    assert same_weights(restarted, train(tmp_path / "new", "dpar", 8, learning_rate=1e-3))
    assert (tmp_path / "state.1").is_dir()


def test_the_back_end_of_attention_is_no_reason_to_begin_anew(tmp_path):
    train(tmp_path, "dpar", 4, attention="auto")
    for until, attention in ((8, "sdpa"), (12, "auto")):
        job = Recorder()
        train(tmp_path, "dpar", until, attention=attention, job=job)
        assert job.commits == [until - 4, until]
    assert tiny_task("dpar").made_from["model"]["attention"] == "auto", "as states have it that were made before"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_step_images_and_last_checkpoint(tmp_path, monkeypatch, bad):
    calls = []

    def broken(logits, targets):
        calls.append(1)
        return summed_loss(logits, targets) * (bad if len(calls) == 6 else 1)

    monkeypatch.setattr(loop, "summed_loss", broken)
    with pytest.raises(InputError) as stop:
        train(tmp_path, "dpar", checkpoint_every=2, validate_every=100, log_every=100)
    stream = batches(tiny_task("dpar").train, batch_size=8, seed=0)
    images = sorted([next(stream).images.tolist() for _ in range(6)][-1])
    message = str(stop.value)
    assert "step 6" in message
    assert str(images) in message
    assert "step 4" in message
    assert (tmp_path / "state" / "step00000004.json").exists()
    assert not (tmp_path / "state" / "step00000006.json").exists()


@pytest.mark.parametrize("log_every", [4, 100])
def test_what_is_not_finite_never_enters_the_curves(tmp_path, monkeypatch, log_every):
    calls = []

    def broken(logits, targets):
        calls.append(1)
        return summed_loss(logits, targets) * (math.nan if len(calls) == 4 else 1)

    monkeypatch.setattr(loop, "summed_loss", broken)
    with pytest.raises(InputError, match="broke at step 4"):
        train(tmp_path, "llamagen", validate_every=4, log_every=log_every, checkpoint_every=2)
    assert not (tmp_path / "state" / "history.jsonl").read_text()


def test_a_validation_that_is_not_finite_stops_the_training_and_stays_out_of_the_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "_validated", lambda self: {"val/nll": math.nan})
    job = Recorder()
    with pytest.raises(InputError, match=r"val/nll.*nan.*step 4.*last good checkpoint: step 2"):
        train(tmp_path, "llamagen", validate_every=4, log_every=100, checkpoint_every=2, job=job)
    assert not job.points
    assert not (tmp_path / "state" / "history.jsonl").read_text()


def test_a_full_disk_stops_the_training_and_more_space_lets_it_go_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        saved = []

        def filling(tensors, path, about):
            saved.append(path)
            if len(saved) == 3:
                raise OSError(28, "No space left on device", str(path))
            save_file(tensors, path, about)

        save_file = weights.save_file
        patch.setattr(weights, "save_file", filling)
        with pytest.raises(InputError, match=r"step 12 was not saved \(last good one: step 8 "):
            train(tmp_path, "llamagen")
    job = Recorder()
    resumed = train(tmp_path, "llamagen", job=job)
    assert job.commits[0] == 8
    assert same_weights(resumed, train(tmp_path / "whole", "llamagen"))


@pytest.mark.parametrize(("how", "said"), [("full", "no space left"), ("read-only", "Read-only file system")])
@pytest.mark.parametrize("first", ["checkpoint", "curves"])
def test_a_disk_that_fails_in_the_middle_costs_steps_but_no_bit(tmp_path, disk, how, said, first, monkeypatch):
    # no lock is on that disk: a file that is open for writing keeps it from becoming read-only
    monkeypatch.setattr(checkpoint.os, "access", lambda path, mode: not Path(path).is_relative_to(disk.folder))
    (disk.folder / "state").mkdir()
    (tmp_path / "on disk").mkdir()
    (tmp_path / "on disk" / "state").symlink_to(disk.folder / "state")
    settings = {"log_every": 6 if first == "checkpoint" else 1, "validate_every": 100}

    def fail(step):
        if step == 6:
            disk.fill() if how == "full" else disk.remount("ro")

    with pytest.raises(InputError, match=r"last good.*step 4") as stop:
        train(tmp_path / "on disk", "llamagen", job=Recorder(fail), **settings)
    assert said in str(stop.value)
    disk.clear() if how == "full" else disk.remount("rw")
    job = Recorder()
    resumed = train(tmp_path / "on disk", "llamagen", job=job, **settings)
    assert job.commits[0] == 4
    whole = train(tmp_path / "whole", "llamagen", **settings)
    assert same_weights(resumed, whole)
    assert history(resumed) == history(whole)


def test_a_torn_line_of_the_curves_is_forgotten(tmp_path):
    train(tmp_path, "llamagen", 8)
    with open(tmp_path / "state" / "history.jsonl", "a") as file:
        file.write('{"step": 8, "train/lo')
    assert history(train(tmp_path, "llamagen")).keys() == history(train(tmp_path / "whole", "llamagen", 8)).keys() | {
        10,
        15,
        20,
    }


def test_batches_that_cannot_be_divided_are_refused(tmp_path):
    with pytest.raises(InputError, match="do not fill one batch of 64"):
        train(tmp_path, "llamagen", batch_size=64)


def test_curves_count_the_patches_and_the_speed_of_the_global_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device: 1e12)
    output = train(tmp_path, "dpar", 2, log_every=1, accumulate=4, precision="bfloat16")
    task = tiny_task("dpar")
    stream = batches(task.train, batch_size=8, seed=0)
    for line in (output / "history.jsonl").read_text().splitlines():
        row, counts = json.loads(line), np.array(patch_layout(task.rule, next(stream)).packed.lengths)
        assert row["patch/per_image"] == pytest.approx(counts.mean())
        assert row["patch/mean_length"] == pytest.approx((16 / counts).mean())
        assert row["perf/images_per_s"] == pytest.approx(8 / (row["perf/step_ms"] / 1000))
        assert row["perf/tokens_per_s"] == pytest.approx(16 * row["perf/images_per_s"])
        operations = 2e9 * training_gmacs(task.model.config, counts.mean()) * row["perf/images_per_s"]
        assert row["perf/mfu"] == pytest.approx(operations / 1e12)


def test_bfloat16_trains_fp32_weights(tmp_path):
    output = train(tmp_path, "dpar", precision="bfloat16")
    assert {tensor.dtype for tensor in load_file(output / "model.safetensors").values()} == {torch.float32}
    exact = history(train(tmp_path / "exact", "dpar"))
    assert history(output)[20]["train/loss"] == pytest.approx(exact[20]["train/loss"], rel=0.02)  # 8 bits of mantissa


if __name__ == "__main__":
    import tempfile

    GOLDEN.parent.mkdir(exist_ok=True)
    curves = {kind: losses(Path(tempfile.mkdtemp()), kind) for kind in KINDS}
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")


@pytest.mark.parametrize("ema", [None, 0.5])
def test_each_checkpoint_is_looked_at_with_the_weights_that_would_be_kept(tmp_path, ema):
    def fingerprint(network):
        return np.concatenate([p.detach().numpy().ravel() for p in network.parameters()]).tobytes()

    job = Recorder()
    output = train(tmp_path / "looked", "dpar", 8, job=job, picture=fingerprint, ema=ema)
    assert sorted(job.images) == [4, 8]
    assert job.images[4] != job.images[8]
    assert job.images[8] == fingerprint(weights.load_model(output, "dpar"))
    blind = train(tmp_path / "blind", "dpar", 8, ema=ema)
    assert (output / "model.safetensors").read_bytes() == (blind / "model.safetensors").read_bytes()


@pytest.mark.parametrize("error", [InputError, torch.OutOfMemoryError])
def test_no_room_for_a_picture_is_no_reason_to_stop(tmp_path, capsys, error):
    def too_large(network):
        raise error("not even one image fits")

    job = Recorder()
    train(tmp_path, "llamagen", 8, job=job, picture=too_large)
    assert (job.images, job.commits) == ({}, [0, 4, 8])
    assert "no picture at step 4: not even one image fits" in capsys.readouterr().err


def test_a_kept_milestone_of_another_training_is_not_handed_out(tmp_path):
    for name, seed in (("own", 0), ("other", 1)):
        train(tmp_path / name, "llamagen", 8, seed=seed)
    kept = tmp_path / "own" / "state" / "milestones" / "step00000008"
    whole = shutil.copytree(kept, tmp_path / "whole")
    shutil.rmtree(kept)
    shutil.copytree(tmp_path / "other" / "state" / "milestones" / "step00000008", kept)
    with pytest.raises(InputError, match="is of another training or step than its place says"):
        train(tmp_path / "own", "llamagen", 8)
    shutil.rmtree(kept)
    shutil.copytree(whole, kept)
    train(tmp_path / "own", "llamagen", 8)
    with open(kept / "history.jsonl", "a") as file:
        file.write(json.dumps({"step": 8, "val/nll": 0.1}) + "\n")
    with pytest.raises(InputError, match=r"history\.jsonl was changed after it was kept"):
        train(tmp_path / "own", "llamagen", 8)


@pytest.mark.parametrize("change", ["sizes", "kind"])
def test_a_kept_milestone_that_describes_another_network_is_refused(tmp_path, change):
    train(tmp_path, "llamagen", 8)
    config = tmp_path / "state" / "milestones" / "step00000008" / "config.json"
    found = read_json(config) | {"provenance": {}}
    if change == "sizes":
        found["model"]["class_dropout"] = 0.5
    else:
        train(tmp_path / "other", "dpar", 8)
        other = read_json(tmp_path / "other" / "model8" / "config.json")
        found |= {name: other[name] for name in ("kind", "model")}
    write_json(config, found)
    output = (tmp_path / "model8" / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"config\.json describes another network than this training's"):
        train(tmp_path, "llamagen", 8)
    assert (tmp_path / "model8" / "config.json").read_bytes() == output


def test_a_milestone_from_before_they_named_their_training_is_given_out_at_its_own_step_alone(tmp_path):
    whole = train(tmp_path, "llamagen", 8)
    kept = tmp_path / "state" / "milestones" / "step00000008"
    write_json(kept / "config.json", read_json(kept / "config.json") | {"provenance": {}})
    with pytest.raises(InputError, match="of another training or step"):  # what was saved before it names its training
        train(tmp_path, "llamagen", 8)
    for note in kept.parents[1].glob("step*.json"):
        note.write_text(json.dumps({name: value for name, value in read_json(note).items() if name != "made_from"}))
    job = Recorder()
    assert same_weights(train(tmp_path, "llamagen", 8, job=job), whole)
    assert not job.points
    kept.rename(kept.with_name("step00000006"))
    with pytest.raises(InputError, match=r"step00000006/history\.jsonl was changed"):
        train(tmp_path, "llamagen", 6)


@pytest.mark.parametrize("change", ["network", "window", "numbers"])
def test_a_checkpoint_that_does_not_fit_the_training_is_refused(tmp_path, change):
    train(tmp_path, "llamagen", 8)
    note = tmp_path / "state" / "step00000008.json"
    found = read_json(note)
    if change == "network":
        train(tmp_path / "other", "dpar", 8)
        shutil.copy(tmp_path / "other" / "state" / "step00000008.safetensors", note.parent)
        found["sha256"] = sha256_file(note.with_suffix(".safetensors"))
    else:
        found["window"] = {"a": 1} if change == "window" else {"steps": "1"}
    write_json(note, found)
    with pytest.raises(InputError, match=r"step00000008\.safetensors are not of the training that .*; remove the two"):
        train(tmp_path, "llamagen", 20)


def test_curves_that_were_changed_are_not_gone_on_with(tmp_path, capsys):
    train(tmp_path, "llamagen", 8)
    history = tmp_path / "state" / "history.jsonl"
    whole = history.read_text()
    history.write_text(whole.replace('"train/loss": ', '"train/loss": 1'))
    with pytest.raises(InputError, match=r"history\.jsonl was changed: put it back, or delete it"):
        train(tmp_path, "llamagen", 20)
    history.write_text(whole + '{"step": 9, "train/loss": 1.0}\n{"step": 9')  # after the checkpoint: a killed process
    train(tmp_path, "llamagen", 16)
    history.unlink()
    train(tmp_path, "llamagen", 20)
    assert "the curves up to step 16 are lost" in capsys.readouterr().err


def test_a_deterministic_training_is_the_same_training(tmp_path, monkeypatch):
    """Asked of PyTorch in every step and only there; may be changed between two runs of one state."""
    seen = []
    advance = loop.Trainer.advance

    def noted(trainer, stream):
        seen.append(torch.are_deterministic_algorithms_enabled())
        advance(trainer, stream)

    monkeypatch.setattr(loop.Trainer, "advance", noted)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    whole = train(tmp_path / "whole", "dpar", 8)
    train(tmp_path / "resumed", "dpar", 4)
    assert same_weights(whole, train(tmp_path / "resumed", "dpar", 8, deterministic=True))
    assert seen == [False] * 12 + [True] * 4
    assert not torch.are_deterministic_algorithms_enabled()
