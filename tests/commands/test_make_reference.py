"""`dpar make-reference`: a file as ADM's, whose statistics are those of all images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dpar.cli import main
from dpar.commands import evaluate, make_reference
from dpar.evaluation.features import Extractor, open_extractor
from dpar.evaluation.frechet import fit_gaussian
from dpar.evaluation.image_sets import open_set
from dpar.evaluation.passes import describe
from dpar.files import sha256_file
from tests.commands.test_evaluate import small_inception
from tests.evaluation.tiny import SIDE, picture, write_classifier, write_index, write_samples


def run(folder, data, *flags, out="ref.npz"):
    command = ["make-reference", folder / data, folder / out, "--extractor", folder / "weights.pth", *flags]
    return main(list(map(str, command)))


@pytest.fixture
def inception(monkeypatch):
    monkeypatch.setattr(make_reference, "open_extractor", small_inception)
    monkeypatch.setattr(evaluate, "open_extractor", small_inception)


def expected(images):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    return [fit_gaussian(part.double() / 9) for part in (pixels.mean((2, 3)), pixels.mean((2, 3))[:, :2])]


def test_it_holds_statistics_of_all_images_and_some_of_them(tmp_path, inception, capsys):
    images = np.load(write_samples(tmp_path / "data.npz", 150))["arr_0"]
    assert run(tmp_path, "data.npz", "--images", 12, "--seed", 3) == 0
    assert "ref.npz: statistics of 150 images, 12 images of 16 pixels as arr_0" in capsys.readouterr().out
    found = np.load(tmp_path / "ref.npz")
    pool, spatial = expected(images)
    np.testing.assert_allclose(found["mu"], pool.mean, rtol=1e-6)
    np.testing.assert_allclose(found["sigma"], pool.covariance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["mu_s"], spatial.mean, rtol=1e-6)
    np.testing.assert_allclose(found["sigma_s"], spatial.covariance, rtol=1e-4, atol=1e-6)
    assert {found[name].dtype for name in ("mu", "sigma", "mu_s", "sigma_s")} == {np.dtype(np.float64)}
    assert (found["arr_0"].shape, found["arr_0"].dtype) == ((12, SIDE, SIDE, 3), np.uint8)
    places = [next(i for i in range(150) if np.array_equal(images[i], image)) for image in found["arr_0"]]
    assert places == sorted(set(places)) != list(range(12))
    assert found["labels"].tolist() == [place % 3 for place in places]
    stated = json.loads(str(found["conditions"]))
    assert (stated["made_from"], stated["statistics_of"], stated["images"]) == (str(tmp_path / "data.npz"), 150, 12)
    assert stated["source_digest"] == sha256_file(tmp_path / "data.npz")
    run(tmp_path, "data.npz", "--images", 12, "--seed", 3, out="again.npz")
    assert sha256_file(tmp_path / "again.npz") == sha256_file(tmp_path / "ref.npz")


def test_without_statistics_it_is_images_alone(tmp_path, capsys):
    """OpenAI's evaluator takes statistics that it finds in a file of samples for those of the samples."""
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        write_samples(tmp_path / "shards" / f"{shard}.npz", 40, first=40 * shard)
    assert main(["make-reference", str(tmp_path / "shards"), str(tmp_path / "all.npz"), "--no-statistics"]) == 0
    assert "all.npz: 80 images of 16 pixels as arr_0" in capsys.readouterr().out
    found = np.load(tmp_path / "all.npz")
    assert set(found.files) == {"arr_0", "labels", "conditions"}
    images = [np.load(tmp_path / "shards" / f"{shard}.npz")["arr_0"] for shard in range(2)]
    np.testing.assert_array_equal(found["arr_0"], np.concatenate(images))
    assert json.loads(str(found["conditions"]))["shards"] == 2


def test_labels_keep_the_names_of_their_classes(tmp_path):
    """A classifier's classes are matched by name; as numbers, `bee` would be its first class here, and `cat` `bee`."""
    write_classifier(tmp_path / "classifier", {"classes": ["ant", "bee", "cat"]})
    classifier = open_extractor(tmp_path / "classifier", torch.device("cpu"))
    for name in ("bee", "cat"):
        (tmp_path / "named" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(picture(1, number)).save(tmp_path / "named" / name / f"{number}.png")
    for data, out in (("named", "one"), ("one.npz", "two")):
        assert main(["make-reference", str(tmp_path / data), str(tmp_path / f"{out}.npz"), "--no-statistics"]) == 0
    sets = [describe(open_set(tmp_path / name), classifier) for name in ("named", "one.npz", "two.npz")]
    assert [found.labels.tolist() for found in sets if found.labels is not None] == [[1] * 4 + [2] * 4] * 3
    for found in sets:
        assert not {"class_folders", "class_order", "other_classes"} & found.conditions.keys()
    (tmp_path / "named" / "bee").rename(tmp_path / "named" / "dog")
    assert main(["make-reference", str(tmp_path / "named"), str(tmp_path / "dog.npz"), "--no-statistics"]) == 0
    assert "lack: dog" in describe(open_set(tmp_path / "dog.npz"), classifier).conditions["other_classes"]


@pytest.mark.parametrize("data", ["shards", "shards/*.npz", "shards/0.npz", "link.npz"])
def test_a_reference_never_takes_the_place_of_its_images(tmp_path, capsys, data):
    (tmp_path / "shards").mkdir()
    write_samples(tmp_path / "shards/0.npz", 40)
    (tmp_path / "link.npz").symlink_to(tmp_path / "shards/0.npz")
    before = sha256_file(tmp_path / "shards/0.npz")
    flags = ["make-reference", str(tmp_path / data), str(tmp_path / "shards/0.npz"), "--no-statistics", "--images", "3"]
    assert main(flags) == 2
    assert "0.npz would be written over what is read" in capsys.readouterr().err
    assert sha256_file(tmp_path / "shards/0.npz") == before


def test_dpar_evaluate_compares_with_its_statistics_and_says_whose_it_is(tmp_path, inception, capsys):
    write_samples(tmp_path / "data.npz", 150)
    write_samples(tmp_path / "samples.npz", 60, first=500)
    assert run(tmp_path, "data.npz", "--images", 20) == 0
    capsys.readouterr()
    flags = ["--extractor", str(tmp_path / "weights.pth"), "--json"]
    found = {}
    for reference in ("ref.npz", "data.npz"):
        assert main(["evaluate", str(tmp_path / "samples.npz"), str(tmp_path / reference), *flags]) == 0
        found[reference] = json.loads(capsys.readouterr().out)
    for name in ("frechet_distance", "spatial_frechet_distance"):
        of_all = found["data.npz"]["values"][name]
        assert found["ref.npz"]["values"][name] == pytest.approx(of_all, rel=1e-4)
    assert found["ref.npz"]["conditions"]["reference_samples"] == 20
    assert f"the reference was made from {tmp_path / 'data.npz'}" in found["ref.npz"]["comparable_reason"]


def test_image_files_are_cut_to_squares(tmp_path, inception, capsys):
    write_index(tmp_path, "train", 4)
    assert run(tmp_path, "train") == 2
    assert "expected squares of one size" in capsys.readouterr().err
    assert run(tmp_path, "train", "--resolution", 8) == 0
    assert np.load(tmp_path / "ref.npz")["arr_0"].shape == (12, 8, 8, 3)


def test_what_makes_no_reference_leaves_nothing_behind(tmp_path, inception, monkeypatch, capsys):
    write_samples(tmp_path / "few.npz", 3)
    write_samples(tmp_path / "data.npz", 30)
    for data, flags, said in (
        ("few.npz", [], "3 samples are too few for features of 3 dimensions"),
        ("missing", [], "missing does not exist"),
    ):
        assert run(tmp_path, data, *flags) == 2
        assert said in capsys.readouterr().err
    assert run(tmp_path, "data.npz", out="ref.npy") == 2
    assert "name it OUT.npz" in capsys.readouterr().err
    monkeypatch.setattr(make_reference, "open_extractor", lambda path, device: Extractor("classifier", "", 16, len))
    assert run(tmp_path, "data.npz") == 2
    assert "are Inception's by definition" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "few.npz"]


def test_a_mixture_and_nothing_at_all_are_refused(tmp_path, capsys):
    for name in ("flat/a.png", "flat/b.png", "flat/sub/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    np.savez(tmp_path / "none.npz", arr_0=np.zeros((0, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
    for data, said in (
        ("flat", "holds 2 images (a.png, b.png) and 1 sub-folder (sub) with 1 image"),
        ("none.npz", "holds no images"),
        ("statistics.npz", "holds statistics alone"),
    ):
        flags = ["--no-statistics", str(tmp_path / data), str(tmp_path / "ref.npz")]
        assert main(["make-reference", *flags]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
    assert not (tmp_path / "ref.npz").exists()
