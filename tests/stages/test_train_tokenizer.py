"""The stage that trains the tokenizer."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from dpar.errors import InputError
from dpar.experiment.loading import load_experiment
from dpar.files import digest, read_json, sha256_file, write_json
from dpar.stages.train_tokenizer import main
from dpar.weights import load_model
from tests.stages.tokenizers import SIDE, write_index, write_tokenizer_experiment


@pytest.fixture
def flags(tmp_path):
    """Flags of a training on nine pictures."""
    experiment = write_tokenizer_experiment(tmp_path)
    return [
        "--experiment", str(experiment), "--train-index", str(write_index(tmp_path, "train", 9)),
        "--val-index", str(write_index(tmp_path, "val", 3)), "--state", str(tmp_path / "state"),
        "--output", str(tmp_path / "tokenizer"),
    ]  # fmt: skip


def test_writes_a_tokenizer_that_says_what_it_was_made_from(tmp_path, flags):
    main(flags)
    config = read_json(tmp_path / "tokenizer/config.json")
    assert config["sha256"] == sha256_file(tmp_path / "tokenizer/model.safetensors")
    assert config["provenance"] == {
        "experiment": digest(load_experiment(tmp_path / "experiment.json").model_dump(mode="json")),
        "images": read_json(tmp_path / "train.json")["digest"],
        "perceptual_network": None,
        "resolution": SIDE,
        "grid": [8, 8],
        "step": 12,
    }
    tokenizer = load_model(tmp_path / "tokenizer", "tokenizer")
    assert tokenizer.encode(torch.zeros(1, 3, SIDE, 2 * SIDE)).shape == (1, 8, 16)
    events = next((tmp_path / "tracking/spool/train_tokenizer").glob("*/events.jsonl")).read_text()
    for name in ("train/loss", "train/psnr", "train/codebook_use", "val/psnr", "reconstructions"):
        assert name in events


def test_killed_and_run_again_equals_uninterrupted_to_the_bit(tmp_path, flags):
    write_tokenizer_experiment(tmp_path, {"steps": 40, "checkpoint_every": 2})
    command = [sys.executable, "-m", "dpar.stages.train_tokenizer", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the bits of a sum depend on how it is divided
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "state").glob("step*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "tokenizer").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main(flags)
        flags[flags.index("--state") + 1] = str(tmp_path / "another")
        flags[flags.index("--output") + 1] = str(tmp_path / "uninterrupted")
        main(flags)
    finally:
        torch.set_num_threads(threads)
    assert sha256_file(tmp_path / "tokenizer/model.safetensors") == sha256_file(
        tmp_path / "uninterrupted/model.safetensors"
    )


def test_other_settings_need_a_word(tmp_path, flags):
    main(flags)
    before = sha256_file(tmp_path / "tokenizer/model.safetensors")
    write_tokenizer_experiment(tmp_path, {"learning_rate": 1e-3})
    with pytest.raises(InputError, match="--restart"):
        main(flags)
    main([*flags, "--restart"])
    assert sha256_file(tmp_path / "tokenizer/model.safetensors") != before


@pytest.mark.parametrize(
    ("training", "tokenizer", "message"),
    [
        ({}, {"weights": "vq_ds16_c2i.pt", "pixel_shuffle": 1}, r"imports its tokenizer.*run import_tokenizer"),
        ({"perceptual_weight": 1, "perceptual_network": "nowhere.pth"}, {}, r"nowhere\.pth does not exist"),
        ({"batch_size": 10}, {}, "9 training images do not fill one batch of 10"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, flags, training, tokenizer, message):
    write_tokenizer_experiment(tmp_path, training, **tokenizer)
    with pytest.raises(InputError, match=message):
        main(flags)
    assert not (tmp_path / "tokenizer").exists()


def test_pictures_too_small_for_the_critic_are_refused(tmp_path, flags):
    path = write_tokenizer_experiment(tmp_path, {"adversarial_weight": 0.5})
    write_json(path, (values := read_json(path)) | {"images": values["images"] | {"resolution": 16}})
    with pytest.raises(InputError, match="resolution 16 is too small for the critic"):
        main(flags)


def test_an_index_of_another_resolution_is_refused(tmp_path, flags):
    path = write_tokenizer_experiment(tmp_path)
    write_json(path, (values := read_json(path)) | {"images": values["images"] | {"resolution": 64}})
    with pytest.raises(InputError, match=r"train\.json was made for another experiment: resolution is 32, expected 64"):
        main(flags)


def test_two_processes_train_what_one_trains(tmp_path, flags):
    write_tokenizer_experiment(tmp_path, {"adversarial_weight": 0.5, "adversarial_start": 8, "steps": 8})
    main(flags)
    one = load_model(tmp_path / "tokenizer", "tokenizer").state_dict()
    flags[flags.index("--state") + 1] = str(tmp_path / "another")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*launcher, "dpar.stages.train_tokenizer", *flags]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    two = load_model(tmp_path / "tokenizer", "tokenizer").state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-3)  # Adam makes a last bit of a gradient a step
    write_tokenizer_experiment(tmp_path, {"adversarial_weight": 0.5, "adversarial_start": 8, "steps": 12})
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    assert read_json(tmp_path / "tokenizer/config.json")["provenance"]["step"] == 12
