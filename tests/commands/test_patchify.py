import json
import math

import numpy as np
import pytest

from dpar import cli
from dpar.commands import patchify
from dpar.patches.rule import patch_starts
from tests.oracles import patchify as oracle


@pytest.fixture
def entropies(tmp_path):
    entropy = np.random.default_rng(0).normal(7.8, 0.6, (6, 64)).astype(np.float32)
    entropy[:, 0] = math.inf
    path = tmp_path / "entropies.npy"
    np.save(path, entropy)
    return str(path), entropy


def say(capsys, path: str, *flags: str) -> str:
    patchify.main([path, "--grid-width", "8", *flags])
    return capsys.readouterr().out


def found(capsys, path: str, *flags: str) -> dict:
    return json.loads(say(capsys, path, *flags, "--json"))


@pytest.mark.parametrize(
    ("flags", "max_length", "row_boundary"),
    [
        (["--max-length", "4"], 4, True),
        (["--max-length", "4", "--no-row-boundary"], 4, False),
        (["--no-row-boundary"], None, False),
        (["--max-length", "none"], None, True),
    ],
)
def test_starts_counts_and_mean_length(entropies, capsys, flags, max_length, row_boundary):
    path, entropy = entropies
    told = found(capsys, path, "--threshold", "7.8", *flags)
    rule = {"threshold": 7.8, "max_length": max_length, "grid_width": 8, "row_boundary": row_boundary}
    patches = [oracle.patches(row.tolist(), **rule) for row in entropy]
    assert told["starts"] == [oracle.starts(image) for image in patches]
    assert told["M"] == [len(image) for image in patches]
    assert told["P_avg"] == pytest.approx(np.mean([64 / len(image) for image in patches]))
    assert told["M_mean"] == pytest.approx(np.mean(told["M"]))
    assert told["M_histogram"] == [told["M"].count(m) for m in range(65)]
    assert told["threshold"] == 7.8


def test_people_see_starts_counts_and_mean_length(entropies, capsys):
    path, entropy = entropies
    told = say(capsys, path, "--threshold", "7.8", "--max-length", "4")
    starts = patch_starts(entropy, threshold=7.8, max_length=4, grid_width=8)
    assert f"P_avg {np.mean(64 / starts.sum(1)):.4f}" in told
    for image in range(patchify.SHOWN):
        picture = "\n".join("".join(".#"[start] for start in row) for row in starts[image].reshape(8, 8).astype(int))
        assert f"image {image}: M = {starts[image].sum()}\n{picture}\n" in told
    assert "2 more images" in told


def test_static_patches_do_not_look_at_the_rest(entropies, capsys):
    path, _ = entropies
    told = found(capsys, path, "--static", "1.81")
    assert told["starts"] == [oracle.starts(oracle.static_patches(64, 1.81))] * 6
    assert "static patches of 1.81" in say(capsys, path, "--static", "1.81")


def test_an_infinite_threshold_is_still_json(entropies, capsys):
    told = json.loads(say(capsys, entropies[0], "--threshold", "inf", "--json"), parse_constant=pytest.fail)
    assert told["threshold"] == "inf"
    assert told["M"] == [9] * 6


def test_a_grid_of_settings_is_counted_without_a_model(entropies, capsys):
    path, _ = entropies
    flags = ["--threshold", "7.6,7.8,inf", "--max-length", "2,4,none"]
    cells = found(capsys, path, *flags)["cells"]
    assert len(cells) == 9
    for cell in cells:
        length = "none" if cell["max_length"] is None else str(cell["max_length"])
        alone = found(capsys, path, "--threshold", str(cell["threshold"]), "--max-length", length)
        assert cell == {name: alone[name] for name in cell}
    assert "starts" not in cells[0]
    table = say(capsys, path, *flags)
    for cell in cells:
        assert f"{cell['P_avg']:.4f}" in table


def test_thresholds_are_calibrated_to_a_mean_length(entropies, capsys):
    path, entropy = entropies
    told = found(capsys, path, "--p-avg", "1.6", "--max-length", "4")
    assert told["P_avg"] == pytest.approx(1.6, abs=0.02)
    starts = patch_starts(entropy, threshold=told["threshold"], max_length=4, grid_width=8)
    assert told["starts"] == starts.tolist()
    cells = found(capsys, path, "--p-avg", "1.6", "--max-length", "2,4")["cells"]
    assert [cell["max_length"] for cell in cells] == [2, 4]
    assert cells[0]["threshold"] > cells[1]["threshold"]


def test_thresholds_are_calibrated_to_a_cost(entropies, capsys):
    path, _ = entropies
    told = found(capsys, path, "--gmacs", "15", "--model", "DPAR-L", "--max-length", "4")
    assert told["forward_gmacs"] == pytest.approx(15, rel=0.01)
    config_costs = patchify.model_costs("DPAR-L", 64, 8)
    assert told["forward_gmacs"] == pytest.approx(np.mean([config_costs(m)[0] for m in told["M"]]))
    assert told["training_gmacs"] > 3 * told["forward_gmacs"]
    assert "GMACs" in say(capsys, path, "--threshold", "7.8", "--model", "DPAR-L")
    assert "GMACs" in say(capsys, path, "--threshold", "7.8,7.9", "--model", "DPAR-L")


def test_costs_are_those_of_table_8():
    forward, _ = patchify.model_costs("DPAR-XL", 256, 16)(np.array([141.8]))
    assert forward[0] == pytest.approx(125.52, rel=2e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "found none of them"),
        (["--threshold", "7.8", "--p-avg", "2"], "found --threshold and --p-avg"),
        (["--gmacs", "20"], "name it with --model"),
        (["--threshold", "7.8", "--model", "LlamaGen-L"], "no variant with patches"),
        (["--threshold", "7.8", "--model", "DPAR-M"], "no variant with patches"),
        (["--threshold", "7.8", "--max-length", "0"], "max_length is 0"),
        (["--threshold", "nan"], "threshold is NaN"),
        (["--threshold", "7.8", "--grid-width", "7"], "not whole rows of 7"),
        (["--static", "2", "--grid-width", "7"], "not whole rows of 7"),
        (["--static", "2", "--threshold", "7.8"], "found --threshold and --static"),
        (["--static", "2", "--p-avg", "3"], "found --p-avg and --static"),
        (["--static", "2", "--max-length", "4"], "static patches know neither"),
        (["--static", "2", "--no-row-boundary"], "static patches know neither"),
        (["--static", "0.5"], "static patch length of 0.5"),
        (["--p-avg", "-1"], "no threshold gives a mean patch length of -1 tokens"),
        (["--gmacs", "-20", "--model", "DPAR-L"], "no threshold gives a cost of -20 GMACs per image"),
        (["--p-avg", "5", "--max-length", "4"], "they reach from 1.0000 to 3.7647"),
    ],
)
def test_what_makes_no_sense_is_refused(entropies, capsys, flags, message):
    assert cli.main(["patchify", entropies[0], "--grid-width", "8", *flags]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


@pytest.mark.parametrize("target", [["--p-avg", "2"], ["--gmacs", "15", "--model", "DPAR-L"]])
def test_a_target_that_is_missed_by_far_is_warned_of(tmp_path, capsys, target):
    np.save(tmp_path / "equal.npy", np.ones((4, 64), np.float32))
    assert cli.main(["patchify", str(tmp_path / "equal.npy"), "--grid-width", "8", *target]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {target[1]} ")
    assert "are wanted, and" in said
    assert said.count("\n") == 1
    np.save(tmp_path / "others.npy", np.random.default_rng(0).random((64, 64), np.float32))
    assert cli.main(["patchify", str(tmp_path / "others.npy"), "--grid-width", "8", *target]) == 0
    assert capsys.readouterr().err == ""


def test_files_that_hold_no_entropies_are_refused(tmp_path, capsys):
    whole = tmp_path / "whole.npy"
    np.save(whole, np.ones((4, 16), np.float32))
    files = {
        "absent.npy": (None, "does not exist"),
        "page.npy": (b"<html>not found</html>", "is no whole .npy file"),
        "empty.npy": (b"", "is no whole .npy file"),
        "truncated.npy": (whole.read_bytes()[:-7], "is no whole .npy file"),
        "header.npy": (whole.read_bytes().replace(b"}", b" "), "is no whole .npy file"),
        "archive.npz": (b"PK\x03\x04 and no more", "is no whole .npy file"),
        "shard.parquet": (b"PAR1 and more", "it is a Parquet file); save the entropies alone"),
        "claims.npy": (whole.read_bytes().replace(b"(4, 16), ", b"(4, 10**9"), "is no whole .npy file"),
        "huge.npy": (whole.read_bytes().replace(b"(4, 16), }  ", b"(4, 160), } "), "takes 2560 bytes, of which 256"),
    }
    arrays = {
        "flat.npy": (np.ones(16), r"has the shape (16,)"),
        "none.npy": (np.ones((0, 16)), r"has the shape (0, 16)"),
        "numbers.npy": (np.ones((2, 16), int), "int64"),
        "objects.npy": (np.array([[None]]), "it holds Python objects, which are never loaded"),
        "likelihoods.npy": (np.full((2, 16), -3.0), "holds -3, expected entropies, which are 0 or more"),
        "nan.npy": (np.full((2, 16), np.nan), "token 0 of image 0 is NaN"),
    }
    for name, (content, _) in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    for name, (array, _) in arrays.items():
        np.save(tmp_path / name, array, allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.ones((2, 16)))
    (tmp_path / "folder.npy").mkdir()
    messages = {name: message for name, (_, message) in (files | arrays).items()} | {
        "several.npz": "an archive",
        "folder.npy": "is no whole .npy file",
    }
    for name, message in messages.items():
        argv = ["patchify", str(tmp_path / name), "--threshold", "7.8", "--grid-width", "4"]
        assert cli.main(argv) == 2, name
        said = capsys.readouterr().err
        assert message in said, name
        assert "allow_pickle" not in said
        assert said.count("\n") == 1
