"""The report's first words follow from the numbers."""

import numpy as np
import pandas as pd
import pytest

from dpar.experiment.cells import described_models
from dpar.experiment.loading import parse_experiment
from dpar.report.verdict import ties, verdict
from tests.experiment.test_settings import demo

METRIC = "FD[classifier,32]"


def table(ours, theirs, **more):
    """The rows of the demo's two models; each value is a mean, or a mean with its spread."""
    rows = []
    for model, value in (("llamagen", theirs), ("dpar", ours)):
        mean, sd = value if isinstance(value, tuple) else (value, np.nan)
        rows.append({"model": model, "training": model, "cell": model, "milestone": "step400", "seeds": 3})
        rows[-1] |= {"frechet_distance": mean, "frechet_distance_sd": sd}
        rows[-1] |= {name: both[len(rows) - 1] for name, both in more.items()}
    return pd.DataFrame(rows)


@pytest.fixture
def experiment():
    return parse_experiment(demo(), "test")


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (
            (0.6, 0.07),
            (0.3, 0.05),
            "dpar is worse than llamagen: FD[classifier,32] 0.600 ± 0.070 against 0.300 ± 0.050, a diff",
        ),
        ((0.3, 0.05), (0.6, 0.07), "dpar is better than llamagen"),
        (
            (0.31, 0.05),
            (0.3, 0.05),
            "dpar cannot be told from llamagen: FD[classifier,32] 0.310 ± 0.050 against 0.300 ± 0.050",
        ),
        (
            0.4,
            0.3,
            "Of dpar and llamagen, the former has the higher FD[classifier,32]: 0.4 against 0.3 (one value each",
        ),
        (0.2, 0.3, "the former has the lower FD[classifier,32]"),
    ],
)
def test_better_worse_or_a_tie(experiment, ours, theirs, said):
    assert {"dpar", "llamagen"} <= described_models(experiment)
    (paragraph,) = verdict(experiment, {"comparison": table(ours, theirs)}, METRIC)
    assert said in paragraph
    assert ("trained once" in paragraph) == isinstance(ours, tuple)
    assert "p = " not in paragraph or isinstance(ours, tuple)


def test_a_spread_over_trainings_says_so(experiment):
    repeated = experiment.model_copy(update={"training_seeds": (0, 1, 2)})
    rows = table((0.6, 0.07), (0.3, 0.05)).assign(trainings=[3, 3], seeds=1)
    (paragraph,) = verdict(repeated, {"comparison": rows}, METRIC)
    assert "spread over 3 trainings" in paragraph
    assert "trained once" not in paragraph


def test_likelihood_and_costs_are_said(experiment):
    costs = {
        "nll": (2.0, 2.5),
        "training_gmacs": (2.0, 1.0),
        "sampling_gmacs": (1.0, 1.25),
        "patch_length": (None, 1.8),
    }
    (paragraph,) = verdict(experiment, {"comparison": table(0.4, 0.3, **costs)}, METRIC)
    assert "likelihood of held-out images is worse: 2.5 against 2 nats per token" in paragraph
    assert "With 1.8 tokens per patch, training costs 50 % less (1 against 2 GMACs per image)" in paragraph
    assert "sampling costs 25 % more (1.25 against 1 GMACs per image)" in paragraph
    even = costs | {"nll": (2.5, 2.5), "training_gmacs": (1.0, 1.001), "sampling_gmacs": (None, None)}
    (paragraph,) = verdict(experiment, {"comparison": table(0.4, 0.3, **even)}, METRIC)
    assert "is equal: 2.5 against 2.5" in paragraph
    assert "training costs as much" in paragraph
    assert "sampling" not in paragraph


def grid(*distances, sd=0.01):
    """The demo's grid with these Frechet distances."""
    settings = [(p_avg, length) for p_avg in (1.4, 1.8) for length in (2, 4)]
    rows = [
        {"model": "dpar", "training": f"m{i}", "cell": f"m{i}", "milestone": "step400", "seeds": 3,
         "threshold": 2 * p_avg, "patchify.p_avg": p_avg, "patchify.max_length": length,
         "frechet_distance": value, "frechet_distance_sd": sd}
        for i, ((p_avg, length), value) in enumerate(zip(settings, distances, strict=True))
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("distances", "sd", "said"),
    [
        (
            (0.5, 0.6, 0.7, 0.8),
            0.01,
            "E_Th 2.800, P_max 2 has the smallest FD[classifier,32], 0.500 ± 0.010; each of the oth",
        ),
        ((0.5, 0.505, 0.7, 0.8), 0.01, "1 of the other 3 cannot be told from it"),
        (
            (0.5, 0.505, 0.7, 0.49),
            0.3,
            "E_Th 3.600, P_max 4 has the smallest FD[classifier,32], 0.49 ± 0.30; none of the",
        ),
        ((0.5, 0.505, 0.7, 0.8), np.nan, "0.5; one value each, so that no spread is known"),
    ],
)
def test_a_grid_names_its_best_and_the_ties(experiment, distances, sd, said):
    (paragraph,) = verdict(experiment, {"threshold_by_length": grid(*distances, sd=sd)}, METRIC)
    assert said in paragraph
    assert "“Entropy threshold and maximum patch length”" in paragraph


def test_rows_that_were_quoted_or_not_measured_decide_nothing(experiment):
    rows = grid(0.5, 0.6, np.nan, 0.8).assign(source=["quoted, diffusion", "made here", "made here", "made here"])
    (paragraph,) = verdict(experiment, {"threshold_by_length": rows}, METRIC)
    assert "0.600 ± 0.010" in paragraph
    assert verdict(experiment, {"comparison": table(np.nan, np.nan)}, METRIC) == []
    assert verdict(experiment, {"comparison": table(np.nan, 0.3)}, METRIC) == []
    assert verdict(experiment, {}, METRIC) == []


def test_ties_are_with_the_best_alone():
    assert ties(grid(0.5, 0.505, 0.7, 0.8)).tolist() == [False, True, False, False]
    assert ties(grid(0.5, 0.5, np.nan, 0.8)).tolist() == [False, True, False, False]
    assert not ties(grid(0.5, 0.505, 0.7, 0.8, sd=np.nan)).any()
    assert not ties(grid(*[np.nan] * 4)).any()


def test_models_are_compared_with_the_baseline_of_their_size(experiment):
    models = {f"{kind}-{size}": experiment.models[kind.lower()] for kind in ("DPAR", "LlamaGen") for size in "BL"}
    sized = parse_experiment(demo(models={n: m.model_dump(mode="json") for n, m in models.items()}, tables={
        "t": {"title": "T", "rows": [{"model": name} for name in models]}
    }), "test")  # fmt: skip
    rows = pd.DataFrame([
        {"model": name, "training": name, "cell": name, "milestone": "step400", "seeds": 1, "frechet_distance": i + 1.0}
        for i, name in enumerate(models)
    ])  # fmt: skip
    found = verdict(sized, {"t": rows}, METRIC)
    assert [paragraph.split(",")[0] for paragraph in found] == ["Of DPAR-B and LlamaGen-B", "Of DPAR-L and LlamaGen-L"]
