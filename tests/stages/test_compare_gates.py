"""What is said of a gate, against a count of every token and every image by itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dpar.data.codes import open_codes
from dpar.errors import InputError
from dpar.files import read_json, write_json
from dpar.model.entropy import token_entropies
from dpar.model.flops import full_gmacs, sampling_gmacs
from dpar.patches.rule import patch_starts
from dpar.report.gates import BLIND
from dpar.stages import calibrate_gate, compare_gates
from dpar.weights import load_model, model_config
from tests.stages.gated import KINDS, calibrate_flags, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPAR_CACHE", str(folder / "cache"))
        made = write_results(folder / "tiny")
        for gate in KINDS:
            calibrate_gate.main(calibrate_flags(made, gate))
        compare_gates.main(flags(made))
        yield made


def flags(results):
    folder = results.folder
    return list(
        map(
            str,
            [
                *("--experiment", folder / "experiment.json", "--manifest", folder / "scored/val/manifest.json"),
                *("--entropy-model", folder / "entropy_model", "--gates", *(folder / "gates" / gate for gate in KINDS)),
                *("--models", folder / "models/dpar/step8", "--thresholds", folder / "thresholds.json"),
                *("--output", folder / "gates/comparison.json", "--markdown", folder / "gates/comparison.md"),
            ],
        )
    )


@pytest.mark.parametrize("gate", [None, *KINDS])
@pytest.mark.parametrize(("max_length", "guided"), [(3, False), (2, True)])
@torch.no_grad()
def test_every_number_is_that_of_a_count(results, gate, max_length, guided):
    folder, experiment = results.folder, results.experiment
    (row,) = (
        row
        for row in read_json(folder / "gates/comparison.json")["rows"]
        if (row["gate"], row["patchify"]["max_length"]) == (gate, max_length)
    )
    codes = open_codes(folder / "scored/val/manifest.json")
    tokens = torch.from_numpy(codes.tokens[:, 0].astype(np.int64))
    labels = torch.from_numpy(codes.labels.astype(np.int64))

    def starts(network, settings, threshold):
        entropy = token_entropies(network, tokens, settings.kind)
        return entropy, patch_starts(entropy, threshold=threshold, max_length=max_length, grid_width=4)

    entropy_model = load_model(folder / "entropy_model", "llamagen")
    threshold = read_json(folder / "thresholds.json")["p_avg"]["1.6"]["threshold"]
    usual, expected = starts(entropy_model, experiment.entropy_model, threshold)
    network, nats = entropy_model, threshold
    settings = experiment.gates.get(gate, experiment.entropy_model)
    if gate is not None:
        network = load_model(folder / "gates" / gate, settings.stored_as)
        rules = read_json(folder / "gates" / f"{gate}.thresholds.json")["rules"]
        (nats,) = (rule["threshold"] for rule in rules if rule["patchify"]["max_length"] == max_length)
    entropy, found = starts(network, settings, nats)

    assert row["threshold"] == nats
    assert row["kind"] == settings.kind
    assert row["parameters"] == sum(p.numel() for p in network.parameters())
    free = [t for t in range(16) if t > 1 and t % 4]
    agreement = row["agreement"]
    assert agreement["tokens"] == 6 * len(free)
    assert agreement["share"] == pytest.approx((expected == found)[:, free].double().mean().item())
    both = (expected & found)[:, free].sum().item()
    assert agreement["precision"] == pytest.approx(both / found[:, free].sum().item())
    assert agreement["recall"] == pytest.approx(both / expected[:, free].sum().item())
    assert row["correlation"] == pytest.approx(np.corrcoef(usual[:, 1:].flatten(), entropy[:, 1:].flatten())[0, 1])

    model = load_model(folder / "models/dpar/step8", "dpar")
    losses = [
        F.cross_entropy(model(tokens[i : i + 1], labels[i : i + 1], found[i : i + 1])[0], tokens[i]).item()
        for i in range(6)
    ]
    assert row["nll"] == pytest.approx(np.mean(losses), rel=1e-5)
    patches = found.sum(1).double().numpy()
    assert row["steps"] == pytest.approx(patches.mean())
    assert row["mean_patch_length"] == pytest.approx((16 / patches).mean())
    together = sampling_gmacs(model.config, patches, entropy_model=network.config, guided=guided)
    assert row["sampling_gmacs"] == pytest.approx(np.mean(together))
    assert row["gate_gmacs"] == pytest.approx(full_gmacs(network.config))


def test_the_entropy_model_agrees_with_itself_and_other_networks_do_not(results):
    rows = read_json(results.folder / "gates/comparison.json")["rows"]
    by_gate = {row["gate"]: row for row in rows if row["patchify"]["max_length"] == 3}
    assert by_gate["same"]["agreement"]["share"] == by_gate[None]["agreement"]["share"] == 1
    assert by_gate["same"]["nll"] == by_gate[None]["nll"]
    blind = by_gate[BLIND]
    assert blind["steps"] == pytest.approx(by_gate[None]["steps"])
    assert blind["agreement"]["share"] < 1
    assert blind["nll"] != by_gate[None]["nll"]
    for gate in ("small", "distilled", "null"):
        assert by_gate[gate]["agreement"]["share"] < 1
        assert by_gate[gate]["sampling_gmacs"] < by_gate[None]["sampling_gmacs"]


def test_the_table_names_every_gate_and_its_conditions(results):
    text = (results.folder / "gates/comparison.md").read_text()
    assert all(f"| {gate} " in text for gate in ("entropy model", *KINDS))
    assert "6 held-out images; the models were trained on the entropy model's patches alone" in text


def test_a_model_of_another_entropy_model_is_refused(results, tmp_path):
    path = results.folder / "models/dpar/step8/config.json"
    described = read_json(path)
    try:
        write_json(path, described | {"provenance": described["provenance"] | {"entropy_model": "0" * 64}})
        with pytest.raises(InputError, match="entropy_model is"):
            compare_gates.main([*flags(results), "--output", str(tmp_path / "comparison.json")])
    finally:
        write_json(path, described)
    assert not (tmp_path / "comparison.json").exists()
    assert model_config(results.folder / "models/dpar/step8") == described
