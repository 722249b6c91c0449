from dpar.report.gates import BLIND, notes, readable

ROW = {
    "model": "dpar", "milestone": "step8", "gate": None, "kind": "unconditional", "parameters": 1234567,
    "correlation": 1.0, "threshold": 5.11949, "mean_patch_length": 1.8, "nll": 4.56789, "gate_gmacs": 0.25,
    "sampling_gmacs": 1.5, "steps": 35.5,
    "agreement": {"tokens": 10, "share": 1.0, "chance": 0.5, "precision": 1.0, "recall": 1.0},
}  # fmt: skip


def test_a_gate_stands_beside_the_entropy_model_and_what_is_not_there_is_a_dash():
    agreement = {"tokens": 10, "share": 0.91234, "chance": 0.5123, "precision": None, "recall": 0.0}
    gate = ROW | {"gate": "small", "kind": "distilled", "correlation": 0.87654, "agreement": agreement}
    usual, small = readable({"rows": [ROW, gate]}).to_dict("records")
    assert (usual["Gate"], small["Gate"], small["Kind"]) == ("entropy model", "small", "distilled")
    assert usual["Parameters"] == "1,234,567"
    assert usual["Agreement (chance)"] == usual["Correlation"] == usual["Recall"] == "–"
    assert small["Agreement (chance)"] == "0.9123 (0.5123)"
    assert (small["Precision"], small["Recall"], small["Correlation"]) == ("–", "0", "0.8765")
    assert usual["Val. NLL (nats/token)"] == "4.5679"


def test_a_blind_clock_is_no_network():
    (row,) = readable({"rows": [ROW | {"gate": BLIND}]}).to_dict("records")
    assert row["Kind"] == row["Parameters"] == row["Its GMACs/image"] == row["Sampling GMACs/image"] == "–"
    assert row["Steps"] == "35.5"


def test_the_notes_say_on_how_many_images():
    assert notes({"images": 17, "rows": []})[0].startswith("17 held-out images")
