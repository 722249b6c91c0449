"""The stage extract_features: real images without those the classifier knows, samples in their order, ADM's files."""

from functools import wraps

import numpy as np
import pytest
import torch

from dpar.data.images import ImageIndex
from dpar.errors import InputError
from dpar.evaluation import inception, shared_pass
from dpar.evaluation.classifier import ImageClassifier, training_half
from dpar.evaluation.comparison import metric_name
from dpar.evaluation.features import BATCH, load_features
from dpar.files import sha256_file
from dpar.stages import extract_features
from tests.evaluation.tiny import CLASSES, DIMS, SIDE, write_classifier, write_experiment, write_index, write_samples
from tests.train.processes import run_on_ranks


def run(results, *images, extractor=None, name="out", **changes):
    experiment = write_experiment(results, **changes)
    output = results / "features" / f"{name}.npz"
    command = ["--experiment", experiment, "--extractor", extractor or results / "classifier", "--output", output]
    extract_features.main(list(map(str, [*command, "--images", *images])))
    return load_features(output)


def test_a_reference_leaves_out_what_the_classifier_has_learnt_from(tmp_path):
    path = write_index(tmp_path, "train", 6)
    index = ImageIndex.load(path)
    folder = write_classifier(tmp_path / "classifier", {"train_digest": index.digest, "seed": 3, "accuracy": 0.5})
    found = run(tmp_path, path)
    half = training_half(torch.from_numpy(index.labels), 3).numpy()
    np.testing.assert_array_equal(found.labels, index.labels[~half])
    assert found.features.shape == (9, DIMS)
    assert found.logits.shape == (9, CLASSES)
    stated = found.conditions
    assert (stated["count"], stated["left_out"], stated["resolution"]) == (9, 9, SIDE)
    assert (stated["extractor"], stated["extractor_accuracy"]) == ("classifier", 0.5)
    assert stated["extractor_sha256"] == sha256_file(folder / "model.safetensors")
    assert stated["source_digest"] == index.digest

    other = run(tmp_path, write_index(tmp_path, "val", 4))
    assert (len(other), other.conditions["left_out"]) == (12, 0)


def test_a_number_of_reference_images_is_drawn_at_random_and_kept_in_order(tmp_path):
    path = write_index(tmp_path, "train", 6)
    write_classifier(tmp_path / "classifier")
    everything = run(tmp_path, path)
    some = run(tmp_path, path, evaluation={"reference_images": 7})
    rows = [int(np.abs(everything.features - row).sum(1).argmin()) for row in some.features]
    assert len(set(rows)) == 7
    assert rows == sorted(rows) != list(range(7))
    with pytest.raises(InputError, match="asks for 19 images, 18 can be used"):
        run(tmp_path, path, evaluation={"reference_images": 19})


def test_a_number_of_images_of_a_reference_file_is_taken_and_samples_are_taken_whole(tmp_path):
    write_classifier(tmp_path / "classifier")
    path = write_samples(tmp_path / "reference.npz", 6)
    settings = {"reference": str(path), "reference_images": 4}
    assert len(run(tmp_path, path, name="reference", evaluation=settings)) == 4
    assert len(run(tmp_path, path, evaluation=settings)) == 6


def test_samples_come_in_the_order_of_their_shards(tmp_path):
    write_classifier(tmp_path / "classifier")
    shards = [write_samples(tmp_path / f"{i:05d}.npz", 5, first=5 * i) for i in range(3)]
    found = run(tmp_path, *shards)
    np.testing.assert_array_equal(found.labels, np.arange(15) % CLASSES)
    alone = run(tmp_path, shards[1])
    np.testing.assert_allclose(found.features[5:10], alone.features, rtol=1e-5, atol=1e-6)
    assert (found.conditions["shards"], found.conditions["count"]) == (3, 15)


def test_how_samples_were_drawn_goes_with_their_features(tmp_path):
    write_classifier(tmp_path / "classifier")
    shards = [
        write_samples(
            tmp_path / f"{i}.npz", 4, patches=np.full(4, 30 + i), conditions=np.array(f'{{"seed": 7, "shard": {i}}}')
        )
        for i in range(2)
    ]
    found = run(tmp_path, *shards).conditions
    assert (found["drawn"], found["steps"]) == ({"seed": 7}, 30.5)
    other = write_samples(tmp_path / "other.npz", 4, conditions=np.array('{"seed": 8, "shard": 1}'))
    for mixture in ((shards[0], other), (shards[0], write_samples(tmp_path / "plain.npz", 4))):
        with pytest.raises(InputError, match=r"0\.npz and its fellow shards were not drawn alike"):
            run(tmp_path, *mixture)


def on_ranks(folder, command, part):
    """The stage on one of several ranks, parts being `part` images."""
    shared_pass.PART = part
    extract_features.main(command)


@pytest.mark.slow
def test_two_processes_describe_images_to_the_bit_as_one_does(tmp_path):
    write_classifier(tmp_path / "classifier")
    shards = [write_samples(tmp_path / f"{i:05d}.npz", 70, first=70 * i) for i in range(3)]
    experiment, files = write_experiment(tmp_path), []
    for size in (1, 2):
        files.append(tmp_path / f"of{size}" / "cell" / "seed0.npz")
        command = ["--experiment", experiment, "--extractor", tmp_path / "classifier", "--output", files[-1]]
        command = [str(word) for word in [*command, "--images", *shards]]
        ends = run_on_ranks(on_ranks, size, tmp_path / f"ranks{size}", command=command, part=BATCH)
        assert [code for code, _ in ends] == [0] * size, ends
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(load_features(files[1])) == 210
    assert [path.name for path in files[1].parent.iterdir()] == ["seed0.npz"]


def test_a_killed_job_goes_on_with_the_parts_that_are_missing(tmp_path, monkeypatch):
    write_classifier(tmp_path / "classifier")
    samples = write_samples(tmp_path / "s.npz", 3 * BATCH + 5)
    whole = run(tmp_path, samples)
    monkeypatch.setattr(shared_pass, "PART", BATCH)
    passes = []
    monkeypatch.setattr(ImageClassifier, "forward", counted(ImageClassifier.forward, passes))
    monkeypatch.setattr(shared_pass.Parts, "add", killed(shared_pass.Parts.add, at=3))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, samples)
    assert (len(passes), len(hidden(tmp_path))) == (3, 1)
    monkeypatch.setattr(shared_pass.Parts, "add", vars(shared_pass.Parts)["add"].__wrapped__)
    found = run(tmp_path, samples)
    assert passes == [BATCH] * 4 + [5], "the two parts that were finished are not described again"
    for name in ("features", "logits", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert found.conditions == whole.conditions
    assert hidden(tmp_path) == []


def test_parts_of_other_images_are_thrown_away(tmp_path, monkeypatch):
    write_classifier(tmp_path / "classifier")
    samples = write_samples(tmp_path / "s.npz", BATCH + 5)
    monkeypatch.setattr(shared_pass, "PART", BATCH)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shared_pass.Parts, "add", killed(shared_pass.Parts.add, at=2))
        run(tmp_path, samples)
    write_samples(samples, BATCH + 5, first=1)
    found = run(tmp_path, samples)
    assert hidden(tmp_path) == []
    np.testing.assert_array_equal(found.features, run(tmp_path, samples).features)
    np.testing.assert_array_equal(found.labels, (1 + np.arange(BATCH + 5)) % CLASSES)


def counted(forward, passes):
    def call(self, images):
        passes.append(len(images))
        return forward(self, images)

    return call


def killed(add, at):
    """`add` that is interrupted when it is called for the `at`-th time."""
    calls = iter(range(1, 1 + at))

    @wraps(add)
    def call(self, *arguments, **arrays):
        if next(calls) == at:
            raise KeyboardInterrupt
        add(self, *arguments, **arrays)

    return call


def hidden(results):
    return list((results / "features").glob(".*.parts"))


def test_inception_keeps_spatial_features_and_the_references_own_statistics(tmp_path, monkeypatch):
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(inception.Inception().state_dict(), weights)
    monkeypatch.setattr(inception, "KNOWN_FILES", {sha256_file(weights): inception.WeightFile("a test's", False)})
    moments = {"mu": np.arange(2048.0), "sigma": np.eye(2048, dtype=np.float32)}
    spatial = {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    path = write_samples(tmp_path / "reference.npz", 2, **moments, **spatial)
    settings = {"extractor": "inception", "inception_weights": str(weights), "reference": str(path)}
    found = run(tmp_path, path, extractor=weights, evaluation=settings)
    assert (found.features.shape, found.logits.shape, found.spatial.shape) == ((2, 2048), (2, 1008), (2, 2023))
    assert found.conditions["extractor"] == "inception"
    np.testing.assert_array_equal(found.statistics["features"].mean, moments["mu"])
    assert found.statistics["spatial"].covariance.shape == (2023, 2023)
    assert metric_name(found) == "FID"

    few = run(tmp_path, path, extractor=weights, evaluation=settings | {"dimensions": 5})
    np.testing.assert_array_equal(few.features, found.features[:, :5])
    np.testing.assert_array_equal(few.spatial, found.spatial[:, :5])
    np.testing.assert_array_equal(few.logits, found.logits)
    np.testing.assert_array_equal(few.statistics["features"].mean, moments["mu"][:5])
    assert few.statistics["spatial"].covariance.shape == (5, 5)
    assert metric_name(few) == "FD[inception,5]"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # a form that users have
def test_a_network_of_the_users_own_is_one_line_of_the_experiment(tmp_path):
    class Means(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    weights = tmp_path / "means.pt"
    torch.jit.script(Means()).save(weights)
    path = write_samples(tmp_path / "s.npz", 4)
    found = run(tmp_path, path, extractor=weights, evaluation={"extractor": str(weights)})
    np.testing.assert_allclose(found.features, np.load(path)["arr_0"].mean((1, 2)), rtol=1e-5)
    assert (found.logits, found.conditions["extractor"]) == (None, "means")
    settings = {"extractor": "inception", "inception_weights": str(weights)}
    with pytest.raises(InputError, match=r"means\.pt holds means, the experiment's extractor is inception"):
        run(tmp_path, path, extractor=weights, evaluation=settings)


def test_a_classifiers_features_have_no_use_for_inceptions_statistics(tmp_path):
    write_classifier(tmp_path / "classifier")
    found = run(tmp_path, write_samples(tmp_path / "r.npz", 4, mu=np.zeros(2048), sigma=np.eye(2048)))
    assert found.statistics == {}


def test_unlabelled_images_have_no_labels(tmp_path):
    write_classifier(tmp_path / "classifier")
    images = np.zeros((4, SIDE, SIDE, 3), np.uint8)
    np.savez(tmp_path / "plain.npz", arr_0=images)
    assert run(tmp_path, tmp_path / "plain.npz").labels is None
    with pytest.raises(InputError, match=r"`labels` of shape \(3,\) .*expected 4 whole numbers"):
        run(tmp_path, write_samples(tmp_path / "odd.npz", 4, labels=np.zeros(3)))


def test_other_sizes_other_networks_and_mixtures_are_refused(tmp_path):
    write_classifier(tmp_path / "classifier")
    index, samples = write_index(tmp_path, "train", 2), write_samples(tmp_path / "s.npz", 4)
    with pytest.raises(InputError, match="holds images of 24 pixels, 16 are wanted"):
        run(tmp_path, write_samples(tmp_path / "large.npz", 4, side=24))
    with pytest.raises(InputError, match="trained on images of 16 pixels, these are to be measured at 32"):
        run(tmp_path, index, images__resolution=32)
    with pytest.raises(InputError, match="give one index"):
        run(tmp_path, index, samples)
    assert not (tmp_path / "features").exists()
