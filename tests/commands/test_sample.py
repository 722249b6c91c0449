"""`dpar sample`: a person's way from a model folder to a picture."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dpar import cli
from dpar.commands.sample import main
from dpar.errors import InputError
from dpar.files import read_json, write_json
from dpar.patches.rule import PatchRule
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import load_networks
from dpar.sampling.noise import image_seed
from dpar.sampling.request import Request
from tests.data.samples import png
from tests.stages.sampled import GATE_THRESHOLDS, THRESHOLD, add_gates, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


def draw(capsys, results, out, *flags, model="dpar"):
    checkpoint = results / "models" / model / "step1"
    main(["--checkpoint", str(checkpoint), "--labels", "2,0", "--n", "6", "--out", str(out), "--json", *flags])
    return json.loads(capsys.readouterr().out)


def test_a_line_a_label(results, tmp_path, capsys):
    found = draw(capsys, results, tmp_path / "grid.png")
    assert found["labels"] == [2, 2, 2, 0, 0, 0]
    assert found["threshold"] == THRESHOLD
    assert len(found["patches"]) == 6
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (2 * 8 + 2, 3 * 8 + 2 * 2, 3)
    again = draw(capsys, results, tmp_path / "again.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), picture)
    assert again["patches"] == found["patches"]
    draw(capsys, results, tmp_path / "other.png", "--seed", "1")
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "other.png")), picture)


def test_more_than_a_line_of_one_label(results, tmp_path, capsys):
    draw(capsys, results, tmp_path / "grid.png", "--labels", "1", "--n", "11")
    assert Image.open(tmp_path / "grid.png").size == (8 * 8 + 7 * 2, 2 * 8 + 2)


def test_the_words_for_people(results, tmp_path, capsys):
    out = tmp_path / "grid.png"
    flags = ["--checkpoint", str(results / "models/dpar/step1"), "--labels", "1", "--n", "2", "--cfg", "1"]
    assert cli.main(["sample", *flags, "--out", str(out)]) == 0
    assert f"{out}: 2 images of classes 1 in" in capsys.readouterr().out


def test_settings_reach_the_sampler(results, tmp_path, capsys):
    usual = draw(capsys, results, tmp_path / "a.png")
    assert sum(draw(capsys, results, tmp_path / "b.png", "--threshold", "1.0")["patches"]) > sum(usual["patches"])
    single = draw(capsys, results, tmp_path / "c.png", "--max-length", "1")
    assert single["patches"] == [16] * 6
    guided = np.asarray(Image.open(tmp_path / "a.png"))
    draw(capsys, results, tmp_path / "a.png", "--cfg-interval", "0,0.25")
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), guided)
    greedy = draw(capsys, results, tmp_path / "d.png", "--labels", "1", "--top-k", "1")
    assert len(set(greedy["patches"])) == 1
    pictures = np.asarray(Image.open(tmp_path / "d.png"))
    assert np.array_equal(pictures[:, :8], pictures[:, 10:18])


def test_compiled_code_is_asked_for(results, tmp_path, capsys, monkeypatch):
    original, told = ImageSampler.draw, []

    def tell(self, request):
        told.append(self.settings.compile)
        return original(replace(self, settings=replace(self.settings, compile=False)), request)

    monkeypatch.setattr(ImageSampler, "draw", tell)
    draw(capsys, results, tmp_path / "a.png")
    draw(capsys, results, tmp_path / "a.png", "--compile")
    assert told == [False, True]


def test_a_picture_is_continued(results, tmp_path, capsys):
    draw(capsys, results, tmp_path / "begun.png")
    begun = np.asarray(Image.open(tmp_path / "begun.png"))[:8, :8]
    Image.fromarray(begun).save(tmp_path / "image.png")
    flags = "--image", str(tmp_path / "image.png"), "--keep-rows"
    found = draw(capsys, results, tmp_path / "more.png", *flags, "3", "--n", "2")
    assert found["keep_rows"] == 3
    networks = load_networks(
        results / "models/dpar/step1", results / "entropy_model", results / "tokenizer",
        precision="float32", device=torch.device("cpu"),
    )  # fmt: skip
    kept = networks.tokens(begun[None])[:, :12]
    seeds = np.array([image_seed(0, i) for i in range(2)])
    request = Request(np.arange(2), np.array([2, 0]), seeds, kept.expand(2, -1))
    rule = PatchRule.of_model(read_json(results / "models/dpar/step1/config.json"))
    tokens = ImageSampler(networks, rule, DrawSettings(2.0)).draw(request).tokens
    expected = networks.pixels(tokens, 8)
    picture = np.asarray(Image.open(tmp_path / "more.png"))
    assert np.array_equal(picture[:8], expected[0])
    assert np.array_equal(picture[10:], expected[1])
    with pytest.raises(InputError, match="an image has 4 rows of tokens; keep 1 to 3"):
        draw(capsys, results, tmp_path / "x.png", *flags, "4")
    with pytest.raises(InputError, match=r"image\.png would be written over what is read"):
        draw(capsys, results, tmp_path / "image.png", *flags, "2")
    with pytest.raises(InputError, match="--image and --keep-rows go together"):
        draw(capsys, results, tmp_path / "x.png", "--keep-rows", "2")


def test_an_image_that_is_none_is_one_line(results, tmp_path, capsys):
    deep = Image.fromarray(np.full((9, 9), 40_000, np.uint16))
    deep.save(tmp_path / "deep.png")
    whole = (tmp_path / "deep.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-20])
    (tmp_path / "empty.png").touch()
    (tmp_path / "bomb.png").write_bytes(png(30_000, 30_000, 8, 2, b""))
    (tmp_path / "header.png").write_bytes(whole[:8] + b"\0\0\0\2IHDR" + whole[16:])
    expected = {
        "deep.png": "more than 8 bits",
        "cut.png": "cannot be read",
        "empty.png": "cannot be read",
        "bomb.png": "limit of",
        "header.png": "cannot be read",
        "missing.png": "is not there",
        "": "is no file",
    }
    flags = ["--checkpoint", str(results / "models/dpar/step1"), "--labels", "0", "--n", "1", "--keep-rows", "2"]
    for name, message in expected.items():
        assert cli.main(["sample", *flags, "--out", str(tmp_path / "x.png"), "--image", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert f"--image {tmp_path / name}" in said[0]
        assert message in said[0]
    assert not (tmp_path / "x.png").exists()


def test_an_image_is_read_as_for_training(results, tmp_path, capsys):
    begun = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    clear = begun.convert("RGBA")
    clear.putalpha(7)
    found = []
    for name, image in (("plain.png", begun), ("clear.tiff", clear)):
        image.save(tmp_path / name)
        draw(capsys, results, tmp_path / "x.png", "--image", str(tmp_path / name), "--keep-rows", "3")
        found.append((tmp_path / "x.png").read_bytes())
    assert found[0] == found[1]


def test_the_baseline_needs_no_entropy_model(results, tmp_path, capsys):
    alone = tmp_path / "moved"
    shutil.copytree(results / "models" / "llamagen" / "step1", alone)
    flags = ["--labels", "0", "--n", "1", "--tokenizer", str(results / "tokenizer")]
    main(["--checkpoint", str(alone), *flags, "--out", str(tmp_path / "grid.png"), "--json"])
    assert json.loads(capsys.readouterr().out)["patches"] == [16]
    with pytest.raises(InputError, match="is a model without patches"):
        main(["--checkpoint", str(alone), *flags, "--out", str(tmp_path / "x.png"), "--threshold", "2"])


def test_a_gate_by_name_or_by_folder(tmp_path, capsys):
    results = write_results(tmp_path)
    add_gates(results)
    usual = draw(capsys, results, tmp_path / "usual.png")
    named = draw(capsys, results, tmp_path / "named.png", "--gate", "distilled")
    assert (usual["gate"], named["gate"], named["threshold"]) == (None, "distilled", GATE_THRESHOLDS["distilled"])
    assert named["patches"] != usual["patches"]
    assert named["networks"] == usual["networks"] | {"entropy_model": named["networks"]["entropy_model"]}
    given = draw(capsys, results, tmp_path / "given.png", "--gate", str(results / "gates/distilled"))
    assert (given["gate"], given["patches"]) == ("distilled", named["patches"])
    finer = draw(capsys, results, tmp_path / "finer.png", "--gate", "distilled", "--threshold", "2")
    assert sum(finer["patches"]) > sum(named["patches"])
    with pytest.raises(InputError, match=r"no gates/smal folder in .* takes --gate DIR"):
        draw(capsys, results, tmp_path / "x.png", "--gate", "smal")
    with pytest.raises(InputError, match="entropy_model is no gate of an experiment"):
        draw(capsys, results, tmp_path / "x.png", "--gate", str(results / "entropy_model"), "--threshold", "2")
    with pytest.raises(InputError, match="depend on no entropy"):
        draw(capsys, results, tmp_path / "x.png", "--gate", "small", model="llamagen")
    with pytest.raises(SystemExit):
        draw(capsys, results, tmp_path / "x.png", "--gate", "small", "--entropy-model", str(results / "entropy_model"))
    assert "not allowed with" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_networks_that_are_not_there_or_are_others(results, tmp_path, capsys):
    alone = tmp_path / "moved"
    shutil.copytree(results / "models" / "dpar" / "step1", alone)
    flags = ["--checkpoint", str(alone), "--labels", "0", "--n", "1", "--out", str(tmp_path / "grid.png")]
    with pytest.raises(InputError, match=r"no entropy_model folder in .* takes --entropy-model DIR"):
        main(flags)
    config = read_json(alone / "config.json")
    config["provenance"]["tokenizer"] = "0" * 64
    write_json(alone / "config.json", config)
    with pytest.raises(InputError, match="made with another tokenizer"):
        main([*flags, "--entropy-model", str(results / "entropy_model"), "--tokenizer", str(results / "tokenizer")])
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "3"], "label 3 is out of range; the model knows the classes 0 to 2"),
        (["--cfg", "-1"], "guidance scale is -1"),
        (["--cfg-interval", "0.6,0.2"], "guidance from 0.6 to 0.2 is no part of the sequence"),
        (["--n", "1"], "--n 1: expected at least one image for each of the 2 labels"),
        (["--n", "99999999999999"], "--n 99999999999999: expected .* at most 10,000: `dpar run` draws large sets"),
        (["--threshold", "nan"], "--threshold nan: expected a number of nats"),
        (["--cfg", "nan"], "guidance scale is nan"),
    ],
)
def test_bad_flags(results, tmp_path, capsys, flags, message):
    with pytest.raises(InputError, match=message):
        draw(capsys, results, tmp_path / "grid.png", *flags)
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("name", ["grid.jpg", "grid.WEBP"])
def test_a_picture_is_never_called_what_it_is_not(results, tmp_path, capsys, name):
    with pytest.raises(InputError, match=rf"{name}: a PNG is written, expected a name that ends in \.png"):
        draw(capsys, results, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_model_without_names_knows_numbers_alone(results, tmp_path, capsys):
    with pytest.raises(
        InputError, match="no class 'cat': this model knows its 3 classes by their numbers alone, 0 to 2"
    ):
        draw(capsys, results, tmp_path / "grid.png", "--labels", "cat")


def test_classes_are_drawn_by_name(results, tmp_path, capsys):
    shutil.copytree(results, tmp_path / "named")
    config = tmp_path / "named" / "models" / "dpar" / "step1" / "config.json"
    described = read_json(config)
    described["provenance"]["classes"] = ["tulips", "red roses", None]
    write_json(config, described)
    expected = draw(capsys, results, tmp_path / "numbers.png", "--labels", "1,0")
    found = draw(capsys, tmp_path / "named", tmp_path / "names.png", "--labels", "red roses,tulips")
    assert found["labels"] == expected["labels"]
    assert (tmp_path / "names.png").read_bytes() == (tmp_path / "numbers.png").read_bytes()
    assert found["classes"] == ["red roses"] * 3 + ["tulips"] * 3
    main(["--checkpoint", str(config.parent), "--labels", "all", "--out", str(tmp_path / "all.png"), "--cfg", "1"])
    assert "16 images of tulips (0), red roses (1), class 2 (2) in" in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"no class 'rose'; did you mean red roses\? The classes are tulips, red roses"
    ):
        draw(capsys, tmp_path / "named", tmp_path / "x.png", "--labels", "rose")
    described["provenance"]["classes"] = ["tulips"]
    write_json(config, described)
    with pytest.raises(InputError, match="draws 3 classes, but 1 names are kept for them"):
        draw(capsys, tmp_path / "named", tmp_path / "x.png")


def test_a_folder_in_place_of_the_picture_is_named_before_anything_is_loaded(results, tmp_path, capsys):
    with pytest.raises(InputError, match=f"--out {tmp_path} is a folder; give the name of the picture"):
        draw(capsys, results, tmp_path)
