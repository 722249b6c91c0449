"""Files of features and of images: what is written comes back, and what is damaged is named."""

import numpy as np
import pytest
import torch
from torch import nn

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
from dpar.files import sha256_file
from dpar.weights import load_model
from tests.evaluation.tiny import CLASSES, DIMS, SIDE, gaussian_features, write_classifier, write_index, write_samples

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
        (np.array([[object()]]), "no whole .npy or .npz file of numbers"),
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
    with pytest.raises(InputError, match=r"begins with b'<html>'.*6 bytes"):
        load_features(path)
    save_features(path, gaussian_features(50))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="700 bytes long"):
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
    with pytest.raises(InputError, match=r"maps\.pt gives \(5, 3, 8, 8\) torch.float32; expected features \(B, D\)"):
        extract(open_extractor(tmp_path / "maps.pt", CPU), [images])


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
    with pytest.raises(InputError, match="images as `arr_0`"):
        ImageArray.open(path)
