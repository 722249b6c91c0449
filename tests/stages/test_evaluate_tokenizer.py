"""The stage that measures a tokenizer."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from dpar.data.crops import center_crop, to_model_input, to_uint8
from dpar.data.images import ImageIndex
from dpar.errors import InputError
from dpar.evaluation.classifier import ImageClassifier
from dpar.files import read_json, write_json
from dpar.stages import evaluate_tokenizer
from dpar.stages.evaluate_tokenizer import main
from dpar.tokenizer.autoencoder import VQAutoencoder, to_bytes
from dpar.weights import load_model, model_config, save_model
from tests.oracles import metrics as oracle
from tests.stages.tokenizers import SIDE, SIZES, write_index, write_tokenizer_experiment


@pytest.fixture
def flags(tmp_path):
    """Flags that measure a random tokenizer on seven pictures."""
    torch.manual_seed(0)
    save_model(tmp_path / "tokenizer", VQAutoencoder(VQAutoencoder.Config.model_validate(SIZES)), {})
    write_classifier(tmp_path / "classifier", SIDE)
    return [
        "--extractor", str(tmp_path / "classifier"),
        "--experiment", str(write_tokenizer_experiment(tmp_path)), "--tokenizer", str(tmp_path / "tokenizer"),
        "--index", str(write_index(tmp_path, "val", 7)), "--report", str(tmp_path / "report.json"),
        "--picture", str(tmp_path / "reconstructions.png"),
    ]  # fmt: skip


def write_classifier(folder, resolution, dims=4):
    config = ImageClassifier.Config(resolution=resolution, num_classes=2, channels=4, dims=dims)
    save_model(folder, ImageClassifier(config).eval(), {})


def described(classifier, images):
    """Features in float64 of bytes (N, 3, H, W)."""
    with torch.inference_mode():
        return classifier(to_model_input(images))[0].double()


def test_report_holds_the_numbers_of_all_images_and_their_conditions(tmp_path, flags, monkeypatch):
    monkeypatch.setitem(evaluate_tokenizer.PIXELS, "cpu", 3 * SIDE**2)
    main(flags)
    report = read_json(tmp_path / "report.json")
    index = ImageIndex.load(tmp_path / "val.json")
    tokenizer = load_model(tmp_path / "tokenizer", "tokenizer")
    decibels, codes, pictures = [], [], []
    with torch.inference_mode():
        for i in range(7):
            pixels = to_uint8(center_crop(index.read(i), SIDE))
            codes.append(tokenizer.encode(to_model_input(pixels[None])))
            rebuilt = to_bytes(tokenizer.decode(codes[-1]))[0]
            pictures.append(torch.stack([pixels, rebuilt]))
            mse = np.mean((pixels.numpy().astype(float) - rebuilt.numpy().astype(float)) ** 2)
            decibels.append(10 * math.log10(255**2 / mse))
    assert report["psnr"] == pytest.approx(np.mean(decibels), abs=1e-3)
    assert report["psnr_std"] == pytest.approx(np.std(decibels), abs=1e-3)
    assert 0 < report["ssim"] < 1
    assert report["codebook_use"] == len(torch.cat(codes).unique()) / 16
    assert 1 <= report["codebook_perplexity"] <= 16
    assert report["bits_per_pixel"] == 64 * 4 / SIDE**2
    originals, rebuilt = torch.stack(pictures, 1)
    classifier = load_model(tmp_path / "classifier", "classifier")
    expected = oracle.frechet_distance(described(classifier, originals), described(classifier, rebuilt))
    assert report["metric"] == "rFD[classifier,4]"
    assert report["reconstruction_distance"] == pytest.approx(expected, rel=1e-3)
    assert report["conditions"] == {
        "images": 7,
        "index": index.digest,
        "resolution": SIDE,
        "crop": "centre",
        "tokens": 64,
        "vocab_size": 16,
        "tokenizer": model_config(tmp_path / "tokenizer")["sha256"],
        "extractor_sha256": model_config(tmp_path / "classifier")["sha256"],
    }
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.width > 4 * 128
        assert picture.height > 2 * 128


def test_a_distance_needs_more_images_than_dimensions_and_the_classifiers_size(tmp_path, flags, capsys):
    write_classifier(tmp_path / "classifier", SIDE, dims=7)
    main(flags)
    report = read_json(tmp_path / "report.json")
    assert (report["metric"], report["reconstruction_distance"]) == ("rFD[classifier,7]", None)
    assert "7 images are too few for a rFD[classifier,7]" in capsys.readouterr().err
    write_classifier(tmp_path / "classifier", SIDE // 2)
    main(flags)
    assert read_json(tmp_path / "report.json")["reconstruction_distance"] > 0


def test_a_tokenizer_that_does_not_fit_the_pictures_is_refused(tmp_path, flags):
    config = VQAutoencoder.Config.model_validate(SIZES | {"multipliers": [1] * 6})
    save_model(tmp_path / "tokenizer", VQAutoencoder(config), {})
    with pytest.raises(InputError, match="tokenizer was made for another experiment: downsample is 64, expected 4"):
        main(flags)
    assert not (tmp_path / "report.json").exists()


def test_an_index_of_another_resolution_is_refused(tmp_path, flags):
    path = write_tokenizer_experiment(tmp_path)
    write_json(path, (values := read_json(path)) | {"images": values["images"] | {"resolution": 64}})
    with pytest.raises(InputError, match=r"val\.json was made for another experiment: resolution is 32, expected 64"):
        main(flags)
