import json
from functools import cache

import pytest

from dpar import cli, paper
from dpar.commands import info
from dpar.errors import InputError
from dpar.experiment.settings import VARIANTS
from dpar.model.description import describe

described = cache(describe)


def say(capsys, *argv: str) -> str:
    info.main(argv)
    return capsys.readouterr().out


@pytest.mark.parametrize(("variant", "resolution"), paper.PAPER_GMACS)
def test_table_8_comes_out(variant, resolution):
    found = described(variant, resolution)
    assert found["forward_gmacs"] == pytest.approx(paper.PAPER_GMACS[variant, resolution], rel=2e-3)
    assert found["counted_gmacs"] == pytest.approx(found["forward_gmacs"], rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_table_1_comes_out_but_for_the_papers_own_contradiction(variant):
    found = described(variant, 256)
    off = found["parameters"] / 1e6 / paper.PAPER_PARAMETERS[variant] - 1
    assert abs(off) < (0.05 if variant == "DPAR-B" else 0.03 if variant.endswith("XXL") else 0.003)
    told = info.table(found)
    assert ("contradicts itself" in told) == (variant == "DPAR-B")
    assert f"paper: {paper.PAPER_PARAMETERS[variant]} M" in told


def test_numbers_belong_together(capsys):
    found = json.loads(say(capsys, "DPAR-L", "--resolution", "384", "--json"))
    parts = found["parts"].values()
    assert found == described("DPAR-L", 384)
    assert found["tokens"] == 576
    assert found["patches"] == 280.2
    assert sum(part["linear"] for part in parts) == pytest.approx(found["forward_gmacs"])
    assert sum(part["attention"] for part in parts) == pytest.approx(found["attention_gmacs"])
    assert found["training_gmacs"] == pytest.approx(3 * (found["forward_gmacs"] + found["attention_gmacs"]))
    theirs = described("LlamaGen-L", 384)
    assert found["against"] == theirs["variant"]
    assert found["ratios"]["forward"] == pytest.approx(found["forward_gmacs"] / theirs["forward_gmacs"])
    assert set(found["ratios"]["sampling"]) == set(found["sampling"])
    for name, ratio in found["ratios"]["sampling"].items():
        assert ratio == pytest.approx(found["sampling"][name] / theirs["sampling"][name])
    assert "ratios" not in theirs
    assert theirs["patches"] is None


@pytest.mark.parametrize(("variant", "ratio"), [("DPAR-B", 1.27), ("DPAR-L", 0.83), ("DPAR-XL", 0.72)])
def test_sampling_is_told_honestly(variant, ratio):
    found = described(variant, 256)
    assert found["ratios"]["sampling"]["guided_linear_gmacs"] == pytest.approx(ratio, abs=0.005)
    assert f"{ratio:.2f}x" in info.table(found)


def test_other_resolutions_need_the_number_of_patches():
    with pytest.raises(InputError, match="--patches"):
        describe("DPAR-L", 512)
    found = describe("DPAR-B", 512, 500)
    assert found["counted_gmacs"] == pytest.approx(found["forward_gmacs"])
    assert found["paper"]["forward_gmacs"] is None
    assert "G" in info.table(found)
    assert describe("LlamaGen-B", 512)["tokens"] == 1024


def test_every_token_a_patch():
    found = describe("DPAR-B", 256, 256)
    assert found["counted_gmacs"] == pytest.approx(found["forward_gmacs"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["DPAR-M", "--resolution", "256"], "there is no variant 'DPAR-M'; variants are LlamaGen-B"),
        (["DPAR-B", "--resolution", "250"], "250 pixels is not a multiple of the tokenizer's 16"),
        (["DPAR-B", "--resolution", "8"], "8 pixels"),
        (["DPAR-B", "--resolution", "256", "--patches", "257"], "cannot have 257 patches"),
        (["DPAR-B", "--resolution", "256", "--patches", "0.5"], "cannot have 0.5 patches"),
        (["DPAR-B", "--resolution", "256", "--patches", "nan"], "cannot have nan patches"),
        (["LlamaGen-B", "--resolution", "256", "--patches", "100"], "LlamaGen has no patches"),
    ],
)
def test_what_makes_no_sense_is_refused(argv, message, capsys):
    assert cli.main(["info", *argv]) == 2
    assert message in capsys.readouterr().err
