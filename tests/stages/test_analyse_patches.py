"""The stage analyse_patches: every number against a loop over the tokens of held-out images."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dpar.data.codes import open_codes
from dpar.errors import InputError
from dpar.files import read_json, write_json
from dpar.model.variants import build_model
from dpar.patches.rule import patch_starts
from dpar.stages import analyse_patches
from dpar.weights import load_model, model_config, save_model
from tests.stages.gated import ORIGIN, SIZES, randomised_weights, write_results

DRAWN = np.array([6, 9, 9, 16, 10])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of a DPAR and a LlamaGen that were never trained, and two shards of samples."""
    folder = tmp_path_factory.mktemp("analysed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPAR_CACHE", str(folder / "cache"))
        made = write_results(folder / "tiny")
        llamagen = randomised_weights(build_model(made.experiment.models["llamagen"], **SIZES), 11)
        origin = {"patchify": None, "threshold": None, "entropy_model": None, "precision": "float32", "step": 8}
        save_model(made.folder / "models/llamagen/step8", llamagen, ORIGIN | origin)
        for shard, counts in enumerate((DRAWN[:3], DRAWN[3:])):
            path = made.folder / f"samples/dpar-cfg1/seed0/{shard:05d}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_samples(path, counts, 1.0, shard)
        analyse_patches.main(flags(made))
        yield made


def write_samples(path, counts, scale, shard):
    conditions = {"cell": "dpar-cfg1", "sampling": {"cfg_scale": scale}, "shard": shard}
    images = np.zeros((len(counts), 8, 8, 3), np.uint8)
    np.savez(path, arr_0=images, patches=counts, conditions=np.array(json.dumps(conditions)))


def test_shards_that_were_drawn_otherwise_or_do_not_say_how_are_refused(tmp_path):
    paths = [tmp_path / "0.npz", tmp_path / "1.npz"]
    for shard, path in enumerate(paths):
        write_samples(path, DRAWN, 1.0, shard)
    counts, conditions = analyse_patches.samples_of(paths)
    assert (counts.tolist(), conditions) == ([*DRAWN, *DRAWN], {"samples": "dpar-cfg1", "cfg_scale": 1.0})
    write_samples(paths[1], DRAWN, 2.0, 1)
    with pytest.raises(InputError, match="were not drawn alike"):
        analyse_patches.samples_of(paths)
    np.savez(paths[0], arr_0=np.zeros((2, 8, 8, 3), np.uint8), patches=DRAWN[:2])
    with pytest.raises(InputError, match=r"0\.npz lacks a field"):
        analyse_patches.samples_of(paths[:1])


def flags(results, *models):
    folder = results.folder
    states = [folder / "models" / model / "step8" for model in models or ("dpar", "llamagen")]
    values = [
        *("--experiment", folder / "experiment.json", "--manifest", folder / "scored/val/manifest.json"),
        *("--models", *states, "--samples", *sorted(folder.glob("samples/dpar-cfg1/seed0/*.npz"))),
        *("--output", folder / "patches/analysis.json", "--markdown", folder / "patches/analysis.md"),
        *("--figure", folder / "patches/analysis.png"),
    ]
    return list(map(str, values))


@torch.no_grad()
def test_every_mean_is_that_of_a_loop(results):
    found = read_json(results.folder / "patches/analysis.json")
    codes = open_codes(results.folder / "scored/val/manifest.json")
    tokens, labels = (torch.from_numpy(a.astype(np.int64)) for a in (codes.tokens[:, 0], codes.labels))
    rule = {"threshold": found["rule"]["threshold"], "max_length": 3, "grid_width": 4}
    assert codes.entropy is not None
    entropy = torch.from_numpy(codes.entropy[:, 0].copy())
    starts = patch_starts(entropy, **rule)
    dpar, llamagen = (load_model(results.folder / "models" / name / "step8", name) for name in ("dpar", "llamagen"))
    places, inside, lengths = {}, [], []
    for i in range(6):
        own = F.cross_entropy(
            dpar(tokens[i : i + 1], labels[i : i + 1], starts[i : i + 1])[0], tokens[i], reduction="none"
        )
        other = F.cross_entropy(llamagen(tokens[i : i + 1], labels[i : i + 1])[0], tokens[i], reduction="none")
        length = 0
        for t in range(16):
            length = 1 if starts[i, t] else length + 1
            places.setdefault(length - 1, []).append((own[t].item(), other[t].item()))
            if not starts[i, t]:
                inside.append((own[t].item(), other[t].item()))
            if t == 15 or starts[i, t + 1]:
                lengths.append(length)
    assert [row["group"] for row in found["by_place"]] == sorted(places) == [0, 1, 2]
    for row in found["by_place"]:
        values = np.array(places[row["group"]])
        assert row["loss"] == pytest.approx(values.mean(0), rel=1e-5)
        assert row["difference"] == pytest.approx((values[:, 0] - values[:, 1]).mean(), rel=1e-4)
        assert row["tokens"] == pytest.approx(len(values) / 96)
        assert row["starts"] == (row["group"] == 0)
    assert found["by_reason"][0]["loss"] == pytest.approx(np.mean(inside, 0), rel=1e-5)
    assert sum(row["tokens"] for row in found["by_reason"]) == pytest.approx(1)
    whole = np.concatenate(list(places.values()))
    assert [m["nll"] for m in found["models"]] == pytest.approx(whole.mean(0), rel=1e-5)
    assert found["lengths"] == pytest.approx(np.bincount(lengths) / len(lengths))
    entropies = [row["entropy"] for row in found["by_entropy"]]
    assert entropies == sorted(entropies)
    assert sum(row["tokens"] for row in found["by_entropy"]) == pytest.approx(15 / 16)


def test_drawn_patches_are_those_of_all_shards(results):
    found = read_json(results.folder / "patches/analysis.json")
    assert found["distribution"]["drawn"] == sorted(DRAWN.tolist())
    assert found["patches"]["drawn"]["mean"] == DRAWN.mean()
    assert found["patches"]["drawn"]["mean_patch_length"] == pytest.approx((16 / DRAWN).mean())
    assert found["patches"]["held-out"]["mean"] == np.mean(found["distribution"]["held-out"])


def test_people_are_told_the_same_with_its_conditions(results):
    found = read_json(results.folder / "patches/analysis.json")
    text = " ".join((results.folder / "patches/analysis.md").read_text().split())
    for row in found["by_place"]:
        assert f"| {row['loss'][0]:.3f} | {row['loss'][1]:.3f} | {row['difference']:+.4f} ± " in text
    assert "6 held-out images of 16 tokens" in text
    assert f"dpar/step8 {found['models'][0]['nll']:.4f} over all tokens" in text
    assert "samples `dpar-cfg1`, guidance 1" in text
    assert (results.folder / "patches/analysis.png").read_bytes().startswith(b"\x89PNG")


def test_one_network_has_nothing_to_differ_from(results, tmp_path):
    outputs = [w for name in ("output", "markdown", "figure") for w in (f"--{name}", str(tmp_path / name))]
    analyse_patches.main([*flags(results, "dpar"), *outputs])
    assert "Difference" not in (tmp_path / "markdown").read_text()
    assert all("difference" not in row for row in read_json(tmp_path / "output")["by_place"])


def test_a_model_without_patches_of_entropies_is_refused_first(results, tmp_path):
    with pytest.raises(InputError, match=r"llamagen/step8 holds a model whose patches do not follow entropies"):
        analyse_patches.main([*flags(results, "llamagen", "dpar"), "--output", str(tmp_path / "a.json")])
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(("model", "field"), [("dpar", "entropy_model"), ("llamagen", "tokenizer")])
def test_codes_of_something_else_are_refused(results, tmp_path, model, field):
    path = results.folder / "models" / model / "step8/config.json"
    described = read_json(path)
    try:
        write_json(path, described | {"provenance": described["provenance"] | {field: "0" * 64}})
        with pytest.raises(InputError, match=f"{field} is"):
            analyse_patches.main([*flags(results), "--output", str(tmp_path / "a.json")])
    finally:
        write_json(path, described)
    assert not (tmp_path / "a.json").exists()
    assert model_config(path.parent) == described
