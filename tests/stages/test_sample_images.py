"""The stage that draws a shard of images: the same images whatever the batches, the shards and the interruptions."""

import json
import re
from dataclasses import replace
from io import BytesIO
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from dpar.data.images import ImageIndex
from dpar.data.sources.folder import FolderImages
from dpar.errors import InputError
from dpar.evaluation.image_sets import open_set
from dpar.experiment.loading import load_experiment
from dpar.experiment.settings import Patchify
from dpar.files import read_json, write_json
from dpar.patches.rule import PatchRule
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import Networks, load_networks
from dpar.sampling.noise import image_seed
from dpar.sampling.sampler import sample
from dpar.stages import sample_images
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.weights import load_model, model_config, save_model
from tests.stages.sampled import CLASSES, GATE_THRESHOLDS, GRID, PATCHIFY, THRESHOLD, add_gates, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


def draw(results, *, cell="dpar", shard=0, seed=0, name=None, **folders):
    output = results / "samples" / cell / f"seed{seed}" / f"{name or shard:05}.npz"
    model = cell.split("-")[0]
    flags = {
        "experiment": results / "experiment.json",
        "cell": cell,
        "seed": seed,
        "shard": shard,
        "model-folder": results / "models" / model / "step1",
        "entropy-model": results / "entropy_model",
        "tokenizer": results / "tokenizer",
        "thresholds": results / "thresholds.json",
        "output": output,
        "picture": output.with_suffix(".png"),
        **folders,
    }
    sample_images.main([word for flag, value in flags.items() for word in (f"--{flag}", str(value))])
    with np.load(output) as stored:
        return {key: stored[key] for key in stored.files}


def change_sampling(results, **values):
    path = results / "experiment.json"
    experiment = read_json(path)
    write_json(path, experiment | {"sampling": experiment["sampling"] | values})


@pytest.fixture(scope="module")
def ten_samples(results):
    return draw(results)


def test_a_file_as_adm_reads_it(results, ten_samples):
    assert ten_samples["arr_0"].shape == (10, 8, 8, 3)
    assert ten_samples["arr_0"].dtype == np.uint8
    assert len(np.unique(ten_samples["arr_0"].reshape(10, -1), axis=0)) == 10
    assert ten_samples["labels"].tolist() == [i % CLASSES for i in range(10)]
    assert ten_samples["patches"].shape == (10,)
    assert ten_samples["patches"].min() >= 16 / 3
    assert len(set(ten_samples["patches"].tolist())) > 1
    assert ten_samples["patches"].mean() < 14
    conditions = json.loads(str(ten_samples["conditions"]))
    assert conditions["threshold"] == THRESHOLD
    assert conditions["networks"]["model"] == model_config(results / "models/dpar/step1")["sha256"]
    picture = Image.open(results / "samples/dpar/seed0/00000.png")
    assert picture.size == (4 * 8 + 3 * 2, 3 * 8 + 2 * 2)
    assert np.array_equal(np.asarray(picture)[:8, 10:18], ten_samples["arr_0"][3])
    assert not list(results.glob("samples/dpar/seed0/.*"))


def test_the_record_says_how_fast_and_how_many_steps(results, ten_samples):
    events = [
        json.loads(line)
        for path in results.glob("tracking/spool/sample_images/*/events.jsonl")
        for line in path.read_text().splitlines()
    ]
    values = {}
    for event in events:
        values |= event.get("values", {})
    assert values["sample/images_per_s"] > 0
    assert {"sample/mean_steps", "sample/mean_patch_length"} <= set(values)


def test_shards_and_batches_do_not_change_an_image(tmp_path, ten_samples):
    other = write_results(tmp_path, shards=3, batch_size=3)
    shards = [draw(other, shard=shard) for shard in range(3)]
    for key in ("arr_0", "labels", "patches"):
        together = np.concatenate([shard[key] for shard in shards])
        if key == "arr_0":  # the tokenizer computes in float32, where another batch may round a pixel otherwise
            assert np.abs(together.astype(int) - ten_samples[key]).max() <= 1
        else:
            assert np.array_equal(together, ten_samples[key])
    joined = open_set([other / "samples/dpar/seed0"])
    assert len(joined) == 10
    drawn = joined.conditions()["drawn"]
    assert drawn is not None
    assert drawn["batches"] == [1, 3], "the last shard has a short batch"


def test_another_seed_other_images(results, ten_samples):
    other = draw(results, seed=1)
    assert (other["arr_0"] != ten_samples["arr_0"]).any((1, 2, 3)).all()
    assert np.array_equal(other["labels"], ten_samples["labels"])


def test_classes_are_drawn_as_often_as_the_training_images_have_them(tmp_path):
    results = write_results(tmp_path, labels="training")
    with pytest.raises(InputError, match=r"found none; give --index index/train\.json"):
        draw(results)
    labels = np.repeat(range(CLASSES), [12, 5, 3])
    images = FolderImages("photos", ["photos"], [f"{i}.png" for i in range(20)], labels, {})
    (results / "index").mkdir()
    index = results / "index" / "train.json"
    ImageIndex(images, 8, CLASSES, [], "0" * 64, "0" * 16 * 20, []).save(index)
    drawn = draw(results, index=index)
    assert np.bincount(drawn["labels"]).tolist() == [6, 3, 1]
    assert json.loads(str(drawn["conditions"]))["sampling"]["labels"] == "training"


def test_a_killed_job_goes_on_after_its_last_batch(tmp_path, ten_samples, monkeypatch):
    results = write_results(tmp_path)
    drawn, original = [], ImageSampler.draw

    def draw_or_die(self, request):
        if drawn == [4, 4]:
            drawn.append(0)
            raise KeyboardInterrupt
        drawn.append(len(request))
        return original(self, request)

    monkeypatch.setattr(ImageSampler, "draw", draw_or_die)
    with pytest.raises(KeyboardInterrupt):
        draw(results)
    folder = results / "samples/dpar/seed0"
    assert not (folder / "00000.npz").exists()
    again = draw(results)
    assert drawn == [4, 4, 0, 2]
    for key, value in ten_samples.items():
        assert np.array_equal(again[key], value), key
    assert not list(folder.glob(".*"))


def test_a_batch_becomes_pixels_while_the_next_is_drawn(tmp_path, ten_samples, monkeypatch):
    results = write_results(tmp_path)
    second = Event()
    draw_tokens, make_pixels = ImageSampler.draw, Networks.pixels

    def draw_and_tell(self, request):
        if begun:
            second.set()
        begun.append(len(request))
        return draw_tokens(self, request)

    def wait_for_the_second(self, tokens, side):
        assert second.wait(30), "nothing was drawn meanwhile"
        return make_pixels(self, tokens, side)

    begun = []
    monkeypatch.setattr(ImageSampler, "draw", draw_and_tell)
    monkeypatch.setattr(Networks, "pixels", wait_for_the_second)
    assert np.array_equal(draw(results)["arr_0"], ten_samples["arr_0"])
    assert begun == [4, 4, 2]


def test_guidance_of_a_part_of_the_sequence_reaches_the_sampler(tmp_path, ten_samples):
    results = write_results(tmp_path, cfg_interval=[0.0, 0.25])
    found = draw(results)
    assert json.loads(str(found["conditions"]))["sampling"]["cfg_interval"] == [0.0, 0.25]
    assert (found["arr_0"] != ten_samples["arr_0"]).any()


def test_compiled_code_is_asked_for_and_noted_and_takes_up_what_was_drawn(tmp_path, monkeypatch):
    """Nothing is compiled here: what the sampler is told is."""
    results = write_results(tmp_path)
    original, told = ImageSampler.draw, []

    def tell(self, request):
        told.append(self.settings.compile)
        if len(told) == 2:
            raise KeyboardInterrupt
        return original(replace(self, settings=replace(self.settings, compile=False)), request)

    monkeypatch.setattr(ImageSampler, "draw", tell)
    with pytest.raises(KeyboardInterrupt):
        draw(results)
    change_sampling(results, compile=True)
    found = json.loads(str(draw(results)["conditions"]))
    assert told == [False, False, True, True]
    assert found["compiled"] is True
    change_sampling(results, compile=False)
    assert "compiled" not in json.loads(str(draw(results, name=1)["conditions"]))


def test_parts_of_other_settings_are_not_used(tmp_path, monkeypatch):
    results = write_results(tmp_path)
    original, calls = ImageSampler.draw, []

    def die_second(self, request):
        calls.append(self.settings.cfg_scale)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, request)

    monkeypatch.setattr(ImageSampler, "draw", die_second)
    with pytest.raises(KeyboardInterrupt):
        draw(results)
    change_sampling(results, cfg_scale=3.0)
    draw(results)
    assert calls == [2.0, 2.0, 3.0, 3.0, 3.0]
    assert not list((results / "samples/dpar/seed0").glob(".*"))


def test_the_same_command_writes_the_same_bytes(results, ten_samples):
    path = results / "samples/dpar/seed0/00000.npz"
    before = path.read_bytes()
    path.unlink()
    draw(results)
    assert path.read_bytes() == before


def test_the_baseline_and_another_threshold(results, ten_samples):
    baseline = draw(results, cell="llamagen")
    assert (baseline["patches"] == 16).all()
    cell = "dpar-eth2.5"
    finer = draw(results, cell=cell)
    assert finer["patches"].sum() > ten_samples["patches"].sum()
    assert json.loads(str(finer["conditions"]))["threshold"] == 2.5


def test_static_patches_ask_no_entropy_model(results, tmp_path):
    found = draw(results, cell="dpar-strategystatic-pavg2", **{"entropy-model": tmp_path / "absent"})
    assert found["patches"].tolist() == [8] * 10
    assert json.loads(str(found["conditions"]))["threshold"] is None


def test_a_batch_that_does_not_fit_is_halved(tmp_path, ten_samples, monkeypatch, capsys):
    results = write_results(tmp_path)
    original, sizes = ImageSampler.draw, []

    def of_little_memory(self, request):
        sizes.append(len(request))
        if len(request) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, request)

    monkeypatch.setattr(ImageSampler, "draw", of_little_memory)
    limit = 2
    found = draw(results)
    assert sizes == [4, 2, 2, 2, 2, 2]
    said = capsys.readouterr().err
    assert "going on with 2\n" in said
    assert re.search(r"drew 8 of 10 images, \d+\.\d\d per second, \d+ s left", said)
    assert np.array_equal(found["patches"], ten_samples["patches"])
    limit = 0
    with pytest.raises(InputError, match="not even one image"):
        draw(results, seed=2)


def test_samples_are_resized_before_they_become_bytes(tmp_path, ten_samples):
    results = write_results(tmp_path)
    path = results / "experiment.json"
    experiment = read_json(path)
    write_json(path, experiment | {"evaluation": experiment["evaluation"] | {"resolution": 6}})
    found = draw(results)
    assert found["arr_0"].shape == (10, 6, 6, 3)
    assert np.array_equal(found["patches"], ten_samples["patches"])


def test_networks_of_something_else(results, tmp_path):
    torch.manual_seed(5)
    experiment = load_experiment(results / "experiment.json")
    save_model(tmp_path / "tokenizer", VQAutoencoder(experiment.tokenizer.autoencoder), {})
    with pytest.raises(InputError, match="made with another tokenizer"):
        draw(results, name="99999", tokenizer=tmp_path / "tokenizer")
    gate = load_model(results / "entropy_model", "llamagen")
    gate.output.weight.data += 1
    save_model(tmp_path / "entropy_model", gate, {})
    with pytest.raises(InputError, match="made with another entropy model"):
        draw(results, name="99999", **{"entropy-model": tmp_path / "entropy_model"})
    with pytest.raises(InputError, match="describes a tokenizer, expected a dpar or llamagen"):
        draw(results, name="99999", **{"model-folder": results / "tokenizer"})
    assert not list((results / "samples/dpar/seed0").glob("99999*"))


def test_a_model_of_another_resolution(tmp_path):
    results = write_results(tmp_path)
    path = results / "experiment.json"
    experiment = read_json(path)
    write_json(path, experiment | {"images": experiment["images"] | {"resolution": 16}})
    with pytest.raises(InputError, match=f"draws {GRID[0]} x {GRID[1]} tokens, the experiment's images have 8 x 8"):
        draw(results)


def test_a_gate_of_the_experiment_places_the_patches(tmp_path, ten_samples):
    results = write_results(tmp_path)
    add_gates(results)
    for gate, threshold in GATE_THRESHOLDS.items():
        found = draw(results, cell=f"dpar-gate{gate}", gates=results / "gates", thresholds=results / "not read")
        conditions = json.loads(str(found["conditions"]))
        assert (conditions["gate"], conditions["threshold"]) == (gate, threshold)
        digest = model_config(results / "gates" / gate)["sha256"]
        assert conditions["networks"]["entropy_model"] == digest
        assert not np.array_equal(found["patches"], ten_samples["patches"])
        # which is what the sampler makes of that network and that threshold
        networks = load_networks(
            results / "models/dpar/step1", results / "gates" / gate, results / "tokenizer",
            gate=gate, precision="float32", device=torch.device("cpu"),
        )  # fmt: skip
        seeds = np.array([image_seed(0, image) for image in range(10)])
        drawn = sample(
            networks.model,
            networks.entropy_model,
            labels=torch.from_numpy(found["labels"].astype(np.int64)),
            seeds=torch.from_numpy(seeds),
            rule=PatchRule.of(Patchify(**PATCHIFY), threshold, GRID[1]),
            settings=DrawSettings(2.0),
        )
        assert drawn.starts.sum(1).tolist() == found["patches"].tolist()
    assert "gate" not in json.loads(str(ten_samples["conditions"]))


def test_unknown_cells_and_shards(results):
    with pytest.raises(InputError, match=r"there is no such set of samples; there are dpar, llamagen, dpar-eth2\.5"):
        draw(results, cell="dapr")
    with pytest.raises(InputError, match="shard 1 does not exist"):
        draw(results, shard=1)


def test_png_is_whole(results, ten_samples):
    data = (results / "samples/dpar/seed0/00000.png").read_bytes()
    Image.open(BytesIO(data)).verify()
