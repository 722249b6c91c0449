"""Table of compare_gates' measurements for people: gates compared with the entropy model, and the conditions."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

TITLE = "Gates compared with the entropy model"
BLIND = "another image's entropies"  # no gate's name has spaces


def readable(found: Mapping[str, Any]) -> pd.DataFrame:
    """The comparison as a table for people."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    rows = []
    for row in found["rows"]:
        is_gate, is_real, alike = row["gate"] is not None, row["gate"] != BLIND, row["agreement"]
        rows.append(
            {
                "Model": f"{row['model']}, {row['milestone']}",
                "Gate": row["gate"] or "entropy model",
                "Kind": row["kind"] if is_real else "–",
                "Parameters": f"{row['parameters']:,}" if is_real else "–",
                "Its GMACs/image": number(row["gate_gmacs"] if is_real else None),
                "Sampling GMACs/image": number(row["sampling_gmacs"] if is_real else None),
                "E_Th (nats)": number(row["threshold"]),
                "P_avg": number(row["mean_patch_length"]),
                "Steps": number(row["steps"]),
                "Correlation": number(row["correlation"]) if is_gate else "–",
                "Agreement (chance)": f"{alike['share']:.4f} ({alike['chance']:.4f})" if is_gate else "–",
                "Precision": number(alike["precision"]) if is_gate else "–",
                "Recall": number(alike["recall"]) if is_gate else "–",
                "Val. NLL (nats/token)": f"{row['nll']:.4f}",
            }
        )
    return pd.DataFrame(rows)


def notes(found: Mapping[str, Any]) -> list[str]:
    """Conditions of the numbers."""
    return [
        f"{found['images']} held-out images; the models were trained on the entropy model's patches alone.",
        f"With {BLIND} patches have the usual lengths in places that say nothing of the image: what a gate without any "
        "skill would do.",
        "A gate's E_Th gives the P_avg of the entropy model's on training images.",
        "Agreement: share of tokens that open a patch in both or in neither, of those that no rule decides beforehand "
        "(the first two, and beginnings of rows where they begin patches); chance: as many starts anywhere. Precision "
        "and recall are those of starts.",
        "GMACs: 1e9 multiply-accumulates of sampling one image, attention and guidance counted, softmax and the sum of "
        "Eq. 3 not.",
    ]
