"""`dpar bench roofline`: the bars, by counted kernels and bytes; nothing here was measured on a GPU."""

import json

import pytest

from dpar import cli
from dpar.benchmarks import roofline
from dpar.errors import InputError


def rows(capsys, *flags):
    """The rows by batch."""
    assert cli.main(["bench", "roofline", "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    return {row["batch"]: row for row in found["rows"]}, found


def test_dpar_xl_is_ahead_of_llamagen_xl(capsys):
    found, whole = rows(capsys, "--size", "XL", "--batches", "32", "128", "256")
    assert list(found) == [32, 128, 256]
    assert found[128]["ratio"] >= 1.35
    assert found[256]["ratio"] >= 1.45
    assert whole["patches"] == 141.8
    assert whole["measured"] is False
    assert whole["card"]["name"] == "H200"
    for row in found.values():
        assert row["ratio"] == pytest.approx(row["llamagen_ms"] / row["dpar_ms"])
        assert row["dpar_ms"] == pytest.approx(sum(row["dpar_terms_ms"].values()))
        assert row["dpar_terms_ms"][row["bound_by"]] == max(row["dpar_terms_ms"].values())
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / (256 * row["dpar_ms"]))
        assert row["ratio_with_short_kernels"] < row["ratio"], "DPAR has more kernels"
        assert row["launched"]["dpar_ms"] >= row["dpar_ms"]
    assert found[32]["bound_by"] == "products"
    assert found[256]["bound_by"] == "keys_and_values"
    assert found[128]["launched"]["bound_by"] == "launches"


def test_dpar_xl_at_384_px(capsys):
    found, _ = rows(capsys, "--resolution", "384", "--batches", "128", "--plain-noise")
    assert found[128]["ratio"] >= 1.5


def test_dpar_b_with_the_distilled_gate_is_ahead_of_llamagen_b(capsys):
    found, _ = rows(capsys, "--size", "B", "--gate", "distilled", "--batches", "128")
    assert found[128]["ratio"] >= 1.1
    with_entropy_model, _ = rows(capsys, "--size", "B", "--batches", "128", "--gate-precision", "float32")
    assert with_entropy_model[128]["ratio"] < 1, "as large as the model, and in float32"


def test_other_cards_and_their_numbers(capsys):
    flags = ("--size", "B", "--batches", "16", "--gate", "none")
    usual, _ = rows(capsys, *flags)
    faster, whole = rows(capsys, *flags, "--bandwidth", "9.6", "--launch", "1")
    assert whole["card"]["bandwidth"] == 9.6
    assert faster[16]["dpar_ms"] < usual[16]["dpar_ms"]
    assert faster[16]["launched"]["dpar_ms"] < usual[16]["launched"]["dpar_ms"]
    other, whole = rows(capsys, *flags, "--card", "A100", "--gate", "small")
    assert (whole["card"]["name"], whole["gate"]) == ("A100", "small")
    assert other[16]["dpar_ms"] > usual[16]["dpar_ms"]


def test_the_table_says_which_term_binds(capsys):
    assert cli.main(["bench", "roofline", "--size", "B", "--batches", "8", "16", "--patches", "100"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("DPAR-B and LlamaGen-B at 256 px, 100 patches per image")
    assert "Bounds, not measured." in text
    lines = {line[:44].strip(): line[44:].split() for line in text.splitlines()}
    assert lines["ms per token"] == ["B", "=", "8", "B", "=", "16"]
    assert len(lines["images per second over LlamaGen's, captured"]) == 2
    assert lines["DPAR is bound by"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--resolution", "512"], "not at 512: give --patches"),
        (["--resolution", "250"], "not a multiple of the tokenizer's 16"),
        (["--patches", "300"], "256 tokens cannot have 300 patches"),
        (["--bandwidth", "-1"], "--bandwidth is -1"),
        (["--tf32", "0"], "--tf32 is 0"),
    ],
)
def test_bad_requests(flags, said):
    with pytest.raises(InputError, match=said):
        roofline.main(flags)
