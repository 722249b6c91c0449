"""`dpar evaluate`: numbers with everything they rest on, features kept and read again, mismatches refused."""

import json
import sys
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from dpar.cli import main
from dpar.commands import evaluate
from dpar.data.images import ImageIndex
from dpar.errors import InputError
from dpar.evaluation.features import Extractor
from dpar.evaluation.image_sets import open_set
from dpar.evaluation.passes import describe
from dpar.files import sha256_file
from tests.data.samples import image_bytes
from tests.evaluation.tiny import CLASSES, SIDE, picture, write_classifier, write_index, write_samples
from tests.oracles import metrics as oracle

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # a form that users have


class Colours(nn.Module):
    """The user's own network: the mean of each colour in either half; class scores from the thirds."""

    def forward(self, images):
        means = images.unflatten(2, (2, images.shape[2] // 2)).mean((3, 4)).flatten(1)
        scores = torch.stack([images[:, :, i * 5 : i * 5 + 5].mean((1, 2, 3)) for i in range(3)], 1) / 10
        return means, scores


@pytest.fixture
def files(tmp_path):
    torch.jit.script(Colours()).save(tmp_path / "colours.pt")
    write_samples(tmp_path / "samples.npz", 90)
    write_samples(tmp_path / "reference.npz", 80, first=90)
    return tmp_path


def run(files, *arguments, samples="samples.npz", reference="reference.npz", extractor="colours.pt"):
    named = [files / samples, files / reference, *(["--extractor", files / extractor] if extractor else [])]
    return main(["evaluate", *map(str, [*named, *arguments])])


def described(files, name):
    images = torch.from_numpy(np.load(files / name)["arr_0"]).permute(0, 3, 1, 2).float()
    return [output.numpy() for output in Colours()(images)]


@pytest.mark.parametrize("seed", ["-1", str(2**63), "1.5"])
def test_a_seed_that_no_generator_takes_is_refused_before_anything_is_read(files, seed, capsys):
    with pytest.raises(SystemExit):
        run(files, "--seed", seed)
    assert "--seed" in capsys.readouterr().err


def test_json_holds_the_metrics_of_a_users_network_and_all_conditions(files, capsys):
    assert run(files, "--split-size", 30, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (a, logits), (b, _) = described(files, "samples.npz"), described(files, "reference.npz")
    values = found["values"]
    assert found["metric"] == "FD[colours,6]"
    assert values["frechet_distance"] == pytest.approx(oracle.frechet_distance(a, b), rel=1e-3)
    assert (values["precision"], values["recall"]) == pytest.approx(oracle.precision_recall(a, b, 3), abs=0.02)
    assert values["inception_score"] == pytest.approx(oracle.inception_score(logits, 30), rel=1e-4)
    stated = found["conditions"]
    assert (stated["extractor"], stated["extractor_sha256"]) == ("colours", sha256_file(files / "colours.pt"))
    assert (stated["k"], stated["split_size"], stated["splits"], stated["seed"]) == (3, 30, 3, 0)
    assert (stated["profile"], stated["resize"], stated["dtype"]) == ("adm", "none", "float64")
    assert set(stated["versions"]) == {"dpar", "torch", "numpy"}
    for side, count in (("samples", 90), ("reference", 80)):
        assert stated[side]["images"] == count
        assert stated[side]["resolution"] == SIDE
        assert stated[side]["source"] == str(files / f"{side}.npz")
        assert stated[side]["source_digest"] == sha256_file(files / f"{side}.npz")
    assert not found["comparable_to_published"]
    assert found["comparable_reason"].startswith("the feature network is colours, not Inception")


def test_kept_features_never_take_the_place_of_what_is_measured(files, capsys):
    before = {path.name: sha256_file(path) for path in files.glob("*.npz")}
    assert run(files, "--keep", files) == 2
    assert "samples.npz would be written over what is read" in capsys.readouterr().err
    assert {path.name: sha256_file(path) for path in files.glob("*.npz")} == before


def test_features_that_were_kept_give_the_same_numbers_without_the_images(files, capsys):
    assert run(files, "--keep", files / "kept", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    (files / "samples.npz").unlink()
    assert run(files, "--json", samples="kept/samples.npz", reference="kept/reference.npz", extractor=None) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert run(files, "--json", samples="kept/samples.npz") == 0
    write_classifier(files / "classifier")
    assert run(files, samples="kept/samples.npz", extractor="classifier") == 2
    assert "holds features of another network (colours, sha256" in capsys.readouterr().err
    assert run(files, "--profile", "clean", samples="kept/samples.npz", extractor=None) == 2
    assert "features by the profile adm, not clean" in capsys.readouterr().err
    assert run(files, "--resolution", "8", samples="kept/samples.npz", extractor=None) == 2
    assert "holds features of images at 16 pixels, not at --resolution 8; leave" in capsys.readouterr().err


def test_a_classifier_is_compared_with_what_it_has_not_learnt_from(files, capsys):
    index = ImageIndex.load(write_index(files, "train", 20))
    write_classifier(files / "classifier", {"train_digest": index.digest, "seed": 1, "accuracy": 0.5})
    assert run(files, reference="index/train.json", extractor="classifier") == 0
    said = capsys.readouterr().out
    assert said.startswith("FD[classifier,4]")
    assert "train.json: 30 images, digest" in said
    assert "class agreement" in said
    assert "comparable to published: no, because the feature network is classifier" in said


def test_a_sorted_folder_is_shuffled_and_says_so(files, capsys):
    for label in range(CLASSES):
        (files / "sorted" / f"class{label}").mkdir(parents=True)
        for number in range(30):
            Image.fromarray(picture(label, number)).save(files / "sorted" / f"class{label}" / f"{number}.png")
    write_classifier(files / "classifier")
    assert run(files, "--split-size", 30, "--seed", 7, "--json", samples="sorted", extractor="classifier") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["conditions"]["order"] == "shuffled with seed 7, because the file is sorted by class"


def small_inception(path, device):
    return Extractor("inception", "ab" * 32, None, lambda images: tuple(x.float() / 9 for x in parts(images.float())))


def parts(images):
    means = images.mean((2, 3))
    return means, means / 10, means[:, :2]


def test_the_two_profiles_name_themselves_and_do_not_mix(files, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "open_extractor", small_inception)
    results = {}
    for profile in ("adm", "clean"):
        assert run(files, "--profile", profile, "--keep", files / profile, "--json") == 0
        results[profile] = json.loads(capsys.readouterr().out)
    adm, clean = results["adm"], results["clean"]
    assert adm["metric"] == clean["metric"] == "FID"
    assert adm["values"]["spatial_frechet_distance"] > 0
    assert "not as ADM does" in clean["comparable_reason"]
    assert "not as ADM does" not in adm["comparable_reason"]
    assert clean["conditions"]["resize"] == "Pillow's bicubic, antialiased, on floats"
    assert "second_opinion" in clean
    assert "second_opinion" not in adm
    assert run(files, samples="adm/samples.npz", reference="clean/reference.npz") == 2
    assert "holds features by the profile clean, not adm" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [True, False])
def test_clean_fid_is_asked_where_it_can_be_imported(files, capsys, monkeypatch, broken):
    package = ModuleType("cleanfid")
    if not broken:
        package.fid = ModuleType("cleanfid.fid")
        package.fid.frechet_distance = lambda *moments: sum(float(part.sum()) for part in moments)
        monkeypatch.setattr(evaluate, "version", lambda name: "0.1")
    monkeypatch.setitem(sys.modules, "cleanfid", package)
    monkeypatch.delitem(sys.modules, "cleanfid.fid", raising=False)  # which another test may have imported
    monkeypatch.setattr(evaluate, "open_extractor", small_inception)
    assert run(files, "--profile", "clean", "--json") == 0
    found = json.loads(capsys.readouterr().out)["second_opinion"]
    if broken:
        assert "ImportError" in found["unavailable"]
    else:
        assert found["package"] == "clean-fid 0.1"
        assert found["frechet_distance"] > 0


def test_adms_own_protocol_is_comparable(files, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "open_extractor", small_inception)
    moments = {"mu": np.full(3, 9.0), "sigma": np.eye(3), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    write_samples(files / "stored.npz", 20, **moments)
    assert run(files, "--json", reference="stored.npz") == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["comparable_reason"] == "90 samples, not 50,000; images of 16 pixels, not 256; "
        "an Inception Score of splits of 90, not 5,000"
    )
    assert found["conditions"]["reference_statistics"] == "stored in the reference"
    write_samples(files / "other.npz", 20, side=24, **moments)
    assert run(files, reference="other.npz") == 2
    assert "resolution of the samples" in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_one_line_and_status_two(files, capsys):
    (files / "page.pth").write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    (files / "cut.npz").write_bytes((files / "samples.npz").read_bytes()[:9000])
    np.savez(files / "grey.npz", arr_0=np.zeros((9, SIDE, SIDE, 1), np.uint8))
    write_samples(files / "few.npz", 6)
    for changes, said in (
        ({"extractor": "page.pth"}, "is a web page of 35 bytes"),
        ({"extractor": None}, "holds images: give --extractor"),
        ({"samples": "cut.npz"}, "no whole npz file"),
        ({"samples": "grey.npz"}, "repeat grey, blend alpha"),
        ({"samples": "few.npz"}, "few.npz: 6 samples are too few for features of 6 dimensions"),
        ({"samples": "missing"}, "does not exist"),
    ):
        assert run(files, **changes) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert printed.out == ""


def test_features_that_are_not_finite_are_refused(files, capsys):
    class Broken(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) / 0 * 0

    torch.jit.script(Broken()).save(files / "broken.pt")
    assert run(files, extractor="broken.pt") == 2
    assert "NaN, infinity" in capsys.readouterr().err


def test_a_set_that_is_compared_with_itself_is_warned_of(files, capsys):
    assert run(files, reference="samples.npz") == 0
    assert "warning: samples and reference are the same images" in capsys.readouterr().err


def test_statistics_in_the_file_of_the_samples_are_not_used(files, capsys):
    assert run(files, "--json") == 0
    own = json.loads(capsys.readouterr().out)["values"]
    stored = dict(np.load(files / "samples.npz"))
    dims = np.eye(6)
    np.savez(files / "foreign.npz", **stored, mu=9 * dims[0], sigma=dims)
    inception = Extractor("inception", "ab" * 32, None, lambda images: Colours()(images.float()))
    described = [describe(open_set([files / name]), inception) for name in ("foreign.npz", "reference.npz")]
    assert "features" in described[0].statistics
    found = evaluate.report(*described, split_size=30, seed=0)
    assert found["values"]["frechet_distance"] == pytest.approx(own["frechet_distance"], rel=1e-4)
    assert any("statistics in the file of the samples are not used" in warning for warning in found["warnings"])


def test_statistics_of_another_network_are_refused(files):
    images, rng = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3), np.uint8), np.random.default_rng(1)
    network, sigma = torch.randn(768, 40, generator=torch.Generator().manual_seed(2)), np.eye(40)
    inception = Extractor("inception", "ab" * 32, None, lambda seen: (seen.float().flatten(1) @ network,))
    own = images.transpose(0, 3, 1, 2).reshape(120, -1).mean(0) @ network.numpy()
    for name, mean in (("own", own + rng.normal(size=40)), ("other", rng.permutation(own)), ("flat", 0 * own)):
        np.savez(files / f"{name}.npz", arr_0=images, mu=mean, sigma=sigma)
    for name in ("own", "flat"):  # a flat mean tells nothing
        assert "features" in describe(open_set([files / f"{name}.npz"]), inception).statistics
    with pytest.raises(InputError, match=r"holds `mu`, whose correlation .* 120 images .* of another network"):
        describe(open_set([files / "other.npz"]), inception)


@pytest.mark.parametrize("pattern", ["shard*.parquet", "shard0.parquet"])
def test_patterns_name_shards(files, capsys, pattern):
    for number in range(2):
        images = [picture(i % CLASSES, 40 * number + i) for i in range(40)]
        columns = {"key": [f"{number}/{i}" for i in range(40)], "label": [i % CLASSES for i in range(40)]}
        columns["image"] = list(map(image_bytes, map(Image.fromarray, images)))
        pq.write_table(pa.table(columns), files / f"shard{number}.parquet")
    assert run(files, "--json", samples=pattern) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["conditions"]["samples"]["images"] == (80 if "*" in pattern else 40)
    assert run(files, samples="none*.parquet") == 2
    assert "none*.parquet does not exist" in capsys.readouterr().err


def test_grey_images_are_warned_of(files, capsys):
    (files / "grey").mkdir()
    for number in range(30):
        image = Image.fromarray(picture(number % CLASSES, number))
        (image.convert("L") if number < 3 else image).save(files / "grey" / f"{number}.png")
    assert run(files, samples="grey") == 0
    assert "warning: 3 of 30 images of the samples are grey" in capsys.readouterr().err


def test_images_that_were_enlarged_are_warned_of(files, capsys):
    (files / "small").mkdir()
    for number in range(30):
        Image.fromarray(picture(number % CLASSES, number, 8 if number < 3 else 16)).save(files / f"small/{number}.png")
    assert run(files, "--resolution", "16", samples="small") == 0
    assert "warning: 3 of 30 images of the samples are smaller than 16 pixels and were" in capsys.readouterr().err
    assert run(files, "--resolution", "16", samples="small", reference="small") == 0
    assert "images of the reference are smaller" in capsys.readouterr().err


def test_samples_and_reference_that_change_places_are_warned_of(files, capsys):
    write_samples(files / "drawn.npz", 60, conditions=json.dumps({"sampling": {"cfg_scale": 2.0}}))
    for samples, reference in (("samples.npz", "drawn.npz"), ("drawn.npz", "reference.npz")):
        assert run(files, samples=samples, reference=reference) == 0
        said = "warning: the reference was drawn by a model and the samples were not: SAMPLES come first"
        assert (said in capsys.readouterr().err) == (samples == "samples.npz")
