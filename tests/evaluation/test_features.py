"""Files of features and of images: what is written comes back, and what is damaged is named."""

import json
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from dpar import tracking
from dpar.data.crops import center_crop, to_model_input, to_uint8
from dpar.data.images import ImageIndex
from dpar.errors import InputError
from dpar.evaluation.features import (
    Features,
    ImageArray,
    extract,
    index_batches,
    load_features,
    load_logits,
    open_extractor,
    save_features,
)
from dpar.evaluation.frechet import fit_gaussian
from dpar.files import read_json, sha256_file
from dpar.model.official import broken_part
from dpar.weights import CONFIG, load_model
from tests.evaluation.tiny import (
    CLASSES,
    DIMS,
    SIDE,
    gaussian_features,
    write_classifier,
    write_experiment,
    write_index,
    write_samples,
)

CPU = torch.device("cpu")


def test_features_come_back_as_they_were_written(tmp_path):
    written = gaussian_features(20)
    statistics = {"features": fit_gaussian(torch.from_numpy(written.features))}
    written = Features(
        written.features, written.logits, written.labels, written.features[:, :2], statistics, written.conditions
    )
    save_features(tmp_path / "f.npz", written)
    found = load_features(tmp_path / "f.npz")
    for name in ("features", "logits", "labels", "spatial"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))
        assert getattr(found, name).dtype == getattr(written, name).dtype
    assert found.conditions == written.conditions
    assert torch.equal(found.statistics["features"].covariance, statistics["features"].covariance)
    assert list(found.statistics) == ["features"]
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]


def test_features_alone_are_enough(tmp_path):
    save_features(tmp_path / "f.npz", Features(np.ones((5, 2), np.float32)))
    found = load_features(tmp_path / "f.npz")
    assert (found.logits, found.labels, found.spatial, found.statistics) == (None, None, None, {})
    np.save(tmp_path / "f.npy", np.ones((5, 2), np.float16))
    assert load_features(tmp_path / "f.npy").features.dtype == np.float32
    np.save(tmp_path / "f.npy", np.ones((5, 2), int))
    assert load_features(tmp_path / "f.npy").features.dtype == np.float64


def test_rows_are_taken_everywhere_and_leave_the_statistics_of_the_whole_behind():
    whole = gaussian_features(9)
    part = whole.take(np.array([4, 2]))
    np.testing.assert_array_equal(part.features, whole.features[[4, 2]])
    np.testing.assert_array_equal(part.logits, whole.logits[[4, 2]])
    np.testing.assert_array_equal(part.labels, whole.labels[[4, 2]])
    assert (part.spatial, part.statistics) == (None, {})


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(5), r"of shape \(5,\)"),
        (np.zeros((2, 3, 4)), r"of shape \(2, 3, 4\)"),
        (np.zeros((2, 3), complex), "type complex128"),
        (np.array([["a"]]), "type <U1"),
        (np.array([[1.0, np.nan], [1, 1], [np.inf, 1]]), "2 of 3 rows of features in .* contain NaN"),
        (np.array([[object()]]), "it holds Python objects, which are never loaded"),
    ],
)
def test_arrays_that_are_no_features_are_refused(array, said, tmp_path):
    np.save(tmp_path / "f.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=said):
        load_features(tmp_path / "f.npy")


def test_damaged_missing_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "f.npz"
    with pytest.raises(InputError, match=r"f\.npz does not exist"):
        load_features(path)
    path.write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"of 6 bytes is no whole .*it is a web page"):
        load_features(path)
    save_features(path, gaussian_features(50))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="of 700 bytes is no whole"):
        load_features(path)
    write_samples(path, 3)
    with pytest.raises(InputError, match="holds arr_0, labels, expected `features`"):
        load_features(path)
    with pytest.raises(InputError, match="expected `logits`"):
        load_logits(path)


def test_logits_come_from_an_array_or_from_a_file_of_features(tmp_path):
    features = gaussian_features(9)
    np.save(tmp_path / "l.npy", features.logits)
    save_features(tmp_path / "f.npz", features)
    np.testing.assert_array_equal(load_logits(tmp_path / "l.npy"), load_logits(tmp_path / "f.npz"))


def test_the_classifier_describes_images_as_its_forward_pass_does(tmp_path):
    folder = write_classifier(tmp_path / "classifier", {"seed": 3})
    index = ImageIndex.load(write_index(tmp_path, "train", 3))
    extractor = open_extractor(folder, CPU)
    assert (extractor.name, extractor.resolution, extractor.provenance) == ("classifier", SIDE, {"seed": 3})
    assert extractor.sha256 == sha256_file(folder / "model.safetensors")
    rows = np.array([7, 0, 4, 5, 1])
    features, logits = extract(extractor, index_batches(index, rows, SIDE, size=2))
    images = torch.stack([to_uint8(center_crop(index.read(i), SIDE)) for i in rows])
    with torch.inference_mode():
        expected = load_model(folder, "classifier")(to_model_input(images))
    np.testing.assert_allclose(features, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, expected[1], rtol=1e-5, atol=1e-6)
    assert (features.shape, logits.shape, features.dtype) == ((5, DIMS), (5, CLASSES), np.float32)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # a form that users have
def test_a_torchscript_file_is_an_extractor_named_after_it(tmp_path):
    class Means(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)), images.amax((2, 3)), images

    torch.jit.script(Means()).save(tmp_path / "means.pt")
    extractor = open_extractor(tmp_path / "means.pt", CPU)
    assert (extractor.name, extractor.resolution) == ("means", None)
    assert extractor.sha256 == sha256_file(tmp_path / "means.pt")
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    features, scores = extract(extractor, [images[:3], images[3:]])
    np.testing.assert_allclose(features, images.float().mean((2, 3)), rtol=1e-6)
    np.testing.assert_array_equal(scores, images.amax((2, 3)))

    class Maps(nn.Module):
        def forward(self, images):
            return images

    torch.jit.script(Maps()).save(tmp_path / "maps.pt")
    with pytest.raises(InputError, match=r"maps\.pt gives \(5, 3, 8, 8\) torch.float32 of 5 images; expected features"):
        extract(open_extractor(tmp_path / "maps.pt", CPU), [images])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_torchscript_that_runs_is_the_one_whose_digest_is_stated(tmp_path, monkeypatch):
    class Least(nn.Module):
        def forward(self, images):
            return images.amin((2, 3))

    class Most(nn.Module):
        def forward(self, images):
            return images.amax((2, 3))

    for module in (Least(), Most()):
        torch.jit.script(module).save(tmp_path / f"{type(module).__name__}.pt")
    path, stated = tmp_path / "Least.pt", sha256_file(tmp_path / "Least.pt")

    def replaced(file):
        path.write_bytes((tmp_path / "Most.pt").read_bytes())
        return broken_part(file)

    monkeypatch.setattr("dpar.evaluation.features.broken_part", replaced)
    extractor = open_extractor(path, CPU)
    assert extractor.sha256 == stated != sha256_file(path)
    images = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 3, 2, 2)
    np.testing.assert_array_equal(extract(extractor, [images])[0], images.amin((2, 3)))


def test_a_torchscript_file_that_takes_other_images_or_mixes_them_is_one_line(tmp_path):
    class Fixed(nn.Module):
        def forward(self, images):
            return images.reshape(-1, 3 * 16 * 16)

    class Mean(nn.Module):
        def forward(self, images):
            return images.mean(0, keepdim=True).flatten(1)

    images = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    for module, message in (
        (
            Fixed(),
            r"cannot take images of shape \(5, 3, 8, 8\) \(.*invalid for input of size 960\); expected a network",
        ),
        (Mean(), r"gives \(1, 192\) torch.float32 of 5 images; expected features \(B, D\)"),
    ):
        torch.jit.script(module).save(tmp_path / "net.pt")
        with pytest.raises(InputError, match=message) as caught:
            extract(open_extractor(tmp_path / "net.pt", CPU), [images])
        assert "\n" not in str(caught.value)


def test_a_damaged_torchscript_file_is_one_line(tmp_path):
    whole = tmp_path / "whole.pt"
    torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))).save(whole)
    with zipfile.ZipFile(whole) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
        weights = next(name for name in parts if "/data/" in name or "/constants/" in name)
    flipped = whole.read_bytes().replace(parts[weights], parts[weights][:-1] + b"\x99")
    (tmp_path / "flipped.pt").write_bytes(flipped)
    with zipfile.ZipFile(tmp_path / "lost.pt", "w") as archive:
        for name, content in parts.items():
            if not name.endswith("/data.pkl"):
                archive.writestr(name, content)
    for name, reason in (("flipped", "the checksum of its part .* does not fit"), ("lost", "RuntimeError: .*data.pkl")):
        with pytest.raises(InputError, match=rf"{name}\.pt is a damaged TorchScript file.*\({reason}") as caught:
            open_extractor(tmp_path / f"{name}.pt", CPU)
        assert "\n" not in str(caught.value)


def test_a_state_dict_that_is_not_inceptions_is_no_extractor(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "mine.pt")
    with pytest.raises(InputError, match=r"a zip archive of .* bytes, perhaps other weights"):
        open_extractor(tmp_path / "mine.pt", CPU)


def test_images_of_an_npz_are_read_in_batches_with_everything_else_beside_them(tmp_path):
    path = write_samples(tmp_path / "s.npz", 7, mu=np.zeros(4))
    array = ImageArray.open(path)
    assert (len(array), array.shape) == (7, (7, SIDE, SIDE, 3))
    batches = list(array.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    stored = np.load(path)
    np.testing.assert_array_equal(torch.cat(batches).permute(0, 2, 3, 1), stored["arr_0"])
    assert sorted(array.arrays) == ["labels", "mu"]
    np.savez_compressed(path, arr_0=stored["arr_0"])
    np.testing.assert_array_equal(torch.cat(list(ImageArray.open(path).batches(4))), torch.cat(batches))


@pytest.mark.parametrize(
    "arr_0",
    [
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((2, 8, 9, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
    ],
)
def test_grey_alpha_and_other_pictures_are_refused(arr_0, tmp_path):
    np.savez(tmp_path / "s.npz", arr_0=arr_0)
    with pytest.raises(InputError, match="expected square RGB images as bytes"):
        ImageArray.open(tmp_path / "s.npz")


def test_a_truncated_a_damaged_and_a_missing_npz_are_named(tmp_path):
    path = write_samples(tmp_path / "s.npz", 50)
    whole = path.read_bytes()
    with pytest.raises(InputError, match=r"nowhere\.npz does not exist"):
        ImageArray.open(tmp_path / "nowhere.npz")
    path.write_bytes(whole[:5000])
    with pytest.raises(InputError, match="no whole npz file"):
        ImageArray.open(path)
    path.write_bytes(whole[:5000] + b"\0" * 50 + whole[5050:])
    with pytest.raises(InputError, match="ends too early or is damaged"):
        list(ImageArray.open(path).batches())
    np.savez(path, labels=np.zeros(3))
    with pytest.raises(InputError, match="holds labels, expected `arr_0`"):
        ImageArray.open(path)


def foreign(path, **arrays):
    """An npz of four images as somebody else writes it."""
    np.savez(path, **({"arr_0": np.zeros((4, 8, 8, 3), np.uint8)} | arrays))
    return path


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (
            {"labels": np.array(["cat", "dog", "cat", "dog"])},
            r"holds `labels` of shape \(4,\) and type <U3, expected 4 whole",
        ),
        ({"labels": np.array(3)}, r"`labels` of shape \(\)"),
        ({"labels": np.zeros(3, int)}, r"`labels` of shape \(3,\)"),
        ({"labels": np.zeros((4, 1), int)}, r"`labels` of shape \(4, 1\)"),
        ({"labels": np.array([0.5, 1, 2, 3])}, "type float64"),
        ({"labels": np.array([np.nan, 1, 2, 3])}, "type float64"),
        ({"labels": np.array([2**32 + 1, 1, 2, 3])}, "type int64"),
        ({"labels": np.array([None] * 4)}, "Python objects, which are never loaded"),
        ({"patches": np.array(["a"] * 4)}, "`patches` of shape"),
        ({"conditions": np.array("cfg=1.5")}, r"`conditions` .* no JSON object: 'cfg=1\.5'"),
        ({"conditions": np.array("[1, 2]")}, "no JSON object"),
        ({"conditions": np.array(3.0)}, "no JSON object"),
        ({"conditions": np.array(["{}", "{}"])}, "no JSON object"),
        ({"conditions": np.array({"a": 1}, dtype=object)}, "Python objects"),
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, "type float32, expected .* bring floats to 0 .. 255"),
        ({"arr_0": np.zeros((4, 3, 8, 8), np.uint8)}, "put channels last"),
        ({"arr_0": np.zeros((4, 8, 8), np.uint8)}, r"of shape \(4, 8, 8\)"),
        ({"arr_0": np.zeros((4, 8, 6, 3), np.uint8)}, "expected square"),
        ({"arr_0": np.zeros((4, 8, 8, 3), np.int64)}, "type int64"),
        ({"arr_0": np.asfortranarray(np.zeros((4, 8, 8, 3), np.uint8))}, "by columns"),
        ({"arr_0": np.array([None])}, "Python objects"),
    ],
)
def test_images_of_others_are_refused_by_what_is_wrong_with_them(arrays, said, tmp_path):
    with pytest.raises(InputError, match=rf"f\.npz.* {said}"):
        ImageArray.open(foreign(tmp_path / "f.npz", **arrays))


def test_labels_of_any_type_that_are_whole_are_taken(tmp_path):
    for labels in (np.arange(4), np.arange(4, dtype=np.uint64), np.arange(4.0)):
        found = ImageArray.open(foreign(tmp_path / "f.npz", labels=labels))
        np.testing.assert_array_equal(found.arrays["labels"], np.arange(4))
        assert found.arrays["labels"].dtype == np.int32


def test_statistics_alone_are_told_from_a_damaged_file(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(4), sigma=np.eye(4))
    for load in (ImageArray.open, load_features, load_logits):
        with pytest.raises(InputError, match=r"s\.npz holds statistics alone \(mu, sigma\).*`arr_0`"):
            load(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": np.zeros(4, int)}, "expected 5 whole numbers"),
        ({"labels": np.array(["a"] * 5)}, "expected 5 whole numbers"),
        ({"logits": np.zeros((4, 3), np.float32)}, r"expected numbers of shape \(5, D\)"),
        ({"spatial": np.zeros((6, 3), np.float32)}, r"expected numbers of shape \(5, D\)"),
        ({"features_mean": np.zeros(2)}, "`features_covariance` of shape"),
        ({"features_mean": np.zeros(2), "features_covariance": np.eye(3)}, r"expected \(D,\) and a symmetric"),
        ({"features_mean": np.zeros(2), "features_covariance": np.array([[1.0, 5], [0, 1]])}, "symmetric"),
        ({"features_mean": np.array([0, np.nan]), "features_covariance": np.eye(2)}, "all finite"),
        ({"features_mean": np.array(["a", "b"]), "features_covariance": np.eye(2)}, "all finite"),
        ({"conditions": np.array("{")}, "no JSON object"),
        ({"notes": np.array([None])}, "Python objects"),
    ],
)
def test_features_of_others_are_refused_by_what_is_wrong_with_them(arrays, said, tmp_path):
    np.savez(tmp_path / "f.npz", features=np.ones((5, 2), np.float32), **arrays)
    with pytest.raises(InputError, match=said):
        load_features(tmp_path / "f.npz")


def test_random_damage_is_features_or_one_line(tmp_path):
    write_samples(tmp_path / "images.npz", 4)
    save_features(tmp_path / "features.npz", gaussian_features(8))
    np.save(tmp_path / "features.npy", np.ones((5, 2), np.float32))
    rng, refused = np.random.default_rng(0), 0
    for name, load in (
        ("images.npz", ImageArray.open),
        ("features.npz", load_features),
        ("features.npy", load_features),
    ):
        whole = (tmp_path / name).read_bytes()
        ends = [*range(60), *range(max(60, len(whole) - 700), len(whole))]
        for number in range(100):
            data = bytearray(whole)
            for place in rng.choice(ends if number % 2 else len(whole), 2):
                data[place] = rng.integers(256)
            (tmp_path / f"x{name}").write_bytes(data if number % 3 else data[: rng.integers(len(data))])
            try:
                load(tmp_path / f"x{name}")
            except InputError as error:
                refused += "\n" not in str(error)
    assert refused > 130


def test_small_files_that_people_report(shared):
    for name in ("labels_str", "labels_0d", "conditions_text"):
        with pytest.raises(InputError, match=rf"{name}\.npz holds `(labels|conditions)`"):
            ImageArray.open(shared / "cases/npz" / f"{name}.npz")


def test_a_classifier_that_was_edited_since_its_job_is_not_used(tmp_path):
    experiment = write_experiment(tmp_path / "results")
    folder = tmp_path / "results" / "classifier"
    with tracking.job(rule="train_classifier", experiment=experiment, outputs=[folder]):
        write_classifier(folder)
    assert open_extractor(folder, CPU).name == "classifier"
    config = read_json(folder / CONFIG)
    (folder / CONFIG).write_text(json.dumps(config | {"provenance": {"accuracy": 1.0}}))  # without its seal
    with pytest.raises(InputError, match=r"config\.json is not what train_classifier left"):
        open_extractor(folder, CPU)
