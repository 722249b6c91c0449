"""Tables: numbers from the right files, the paper's next to ours, nothing that was not measured."""

import html
import math

import pandas as pd
import pytest

from dpar.errors import InputError
from dpar.experiment.loading import parse_experiment
from dpar.model.flops import sampling_gmacs
from dpar.model.variants import model_config
from dpar.report import tables
from dpar.report.measured import Measurements
from tests.experiment.test_settings import demo
from tests.report.made_up import metrics

COSTS = {name: {"parameters": 2_000_000, "training_gmacs": 3.25} for name in ("dpar", "llamagen", "dpar_pmax2")}


def built(*rows, measured=None, experiment=None, **replaced):
    if experiment is None:
        experiment = parse_experiment(demo(tables={"t": {"title": "T", "rows": list(rows)}}), "test")
    given = {
        "metrics": {("dpar", s): metrics(d) for s, d in enumerate((1.0, 2.0, 6.0))} if measured is None else measured,
        "likelihoods": {("dpar", "step400"): {"nll": 4.5, "mean_patch_length": 1.79}},
        "thresholds": {"p_avg": {"1.8": {"threshold": 3.21}}},
        "costs": COSTS,
    }
    return tables.build(experiment, "t", Measurements(**{**given, **replaced}))


def test_a_cell_is_the_mean_over_its_seeds_with_the_sample_standard_deviation():
    row = built({"model": "dpar"}).iloc[0]
    assert row["frechet_distance"] == pytest.approx(3.0)
    assert row["frechet_distance_sd"] == pytest.approx(math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2))
    assert (row["seeds"], row["images"], row["cfg_scale"]) == (3, 320, 2.0)
    assert (row["threshold"], row["max_length"], row["patch_length"], row["nll"]) == (3.21, 4, 1.79, 4.5)


def test_the_spread_of_repeated_trainings_is_over_trainings_and_not_over_all_sets():
    """Two trainings of two sampling seeds each are two numbers, of which a training's own seeds make one."""
    experiment = parse_experiment(
        demo(training_seeds=[0, 7], tables={"t": {"title": "T", "rows": [{"model": "dpar"}]}}), "test"
    )
    distances = {("dpar", 0): 1.0, ("dpar", 1): 3.0, ("dpar_seed7", 0): 5.0, ("dpar_seed7", 1): 9.0}
    states = {("dpar", "step400"): 4.0, ("dpar_seed7", "step400"): 4.5}
    measured = Measurements(
        metrics={key: metrics(d) for key, d in distances.items()},
        likelihoods={key: {"nll": nll, "mean_patch_length": 1.8} for key, nll in states.items()},
        thresholds={"p_avg": {"1.8": {"threshold": 3.21}}},
        costs=COSTS,
    )
    frame = tables.build(experiment, "t", measured)
    row = frame.iloc[0]
    assert (row["frechet_distance"], row["nll"], row["trainings"], row["seeds"]) == (4.5, 4.25, 2, 2)
    assert row["frechet_distance_sd"] == pytest.approx((7 - 2) / math.sqrt(2))
    assert row["nll_sd"] == pytest.approx(0.5 / math.sqrt(2))
    assert tables.readable(frame, "FD").iloc[0]["Val. NLL (nats/token)"] == "4.25 ± 0.35"


def test_a_linear_probe_stands_beside_the_papers_without_a_difference():
    row = {"model": "dpar", "paper.top1": 37.82, "paper.top5": 61.15}
    probes = {("dpar", "step400"): {"top1": 31.25, "top5": 55.5, "top1_training": 40.0}}
    published = {("dpar", 0): metrics(3.0, published=True)}
    frame = built(row, measured=published, probes=probes)
    assert frame[["top1", "paper_top1", "top5", "paper_top5"]].values.tolist() == [[31.25, 37.82, 55.5, 61.15]]
    assert not {"difference_top1", "difference_top5"} & set(frame)
    shown = tables.readable(frame, "FID")
    assert shown.iloc[0][["Top-1 (%)", "Paper top-1 (%)", "Paper top-5 (%)"]].tolist() == ["31.25", "37.82", "61.15"]
    assert not {"top1", "top5"} & set(built({"model": "dpar"}))


def test_the_paper_stands_beside_ours_and_the_difference_only_where_comparable():
    row = {"model": "dpar", "paper.fid": 2.5}
    ours = built(row).iloc[0]
    assert ours["paper_fid"] == 2.5
    assert "difference_fid" not in ours
    published = {("dpar", 0): metrics(3.0, published=True)}
    assert built(row, measured=published).iloc[0]["difference_fid"] == pytest.approx(0.5)


def test_samples_with_other_patches_have_a_mean_length_of_their_own():
    """Table 6: what the model's likelihood was measured with says nothing of them."""
    measured = {("dpar-eth4", seed): metrics(1.0) for seed in range(3)}
    for found, steps in zip(measured.values(), (20.0, 30.0, 40.0), strict=True):
        found["values"]["steps"] = steps
    row = built({"model": "dpar", "inference.threshold": 4.0}, {"model": "dpar"}, measured=measured).iloc[0]
    assert row["threshold"] == 4.0
    assert row["patch_length"] == pytest.approx(64 / 30)
    assert math.isnan(row["nll"])


def test_samples_through_a_gate_have_its_patches_and_not_the_entropy_models_likelihood():
    measured = {("dpar-gatesmall", seed): metrics(1.0) for seed in range(3)}
    for found, steps in zip(measured.values(), (20.0, 30.0, 40.0), strict=True):
        found["values"]["steps"] = steps
    gate = {"model": {"variant": "LlamaGen-B"}, "training": {"steps": 1}}
    rows = [{"model": "dpar", "inference.gate": "small"}, {"model": "dpar"}]
    values = demo(gates={"small": gate}, tables={"t": {"title": "T", "rows": rows}})
    frame = built(experiment=parse_experiment(values, "test"), measured=measured)
    gated, usual = (row for _, row in frame.iterrows())
    assert gated["patch_length"] == pytest.approx(64 / 30)
    assert math.isnan(gated["nll"])
    assert math.isnan(gated["threshold"])
    assert (usual["nll"], usual["threshold"]) == (4.5, 3.21)
    assert tables.readable(frame, "FD")["Gate"].tolist() == ["small", "–"]


def test_a_number_of_the_paper_that_nothing_of_ours_matches_is_an_error():
    with pytest.raises(InputError, match="sfid"):
        built({"model": "dpar", "paper.sfid": 1.0})


def test_llamagen_has_no_patches():
    row = built({"model": "llamagen"}, {"model": "dpar"}, measured={("llamagen", 0): metrics(1.0)}).iloc[0]
    assert math.isnan(row["threshold"])
    assert math.isnan(row["patch_length"])


def test_a_cell_without_measurements_is_missing_and_never_zero():
    frame = built({"model": "llamagen"}, {"model": "dpar"})
    shown = tables.readable(frame, "FD[x, 4]")
    assert shown["FD[x, 4]"].tolist() == ["missing", "3.0 ± 2.6"]
    assert shown["Parameters"].tolist() == ["2,000,000", "2,000,000"]


def test_what_varies_is_a_column():
    frame = built({"model": "dpar", "patchify.max_length": 2}, {"model": "dpar", "patchify.max_length": 4})
    assert frame["patchify.max_length"].tolist() == [2, 4]
    assert frame["max_length"].tolist() == [2, 4]
    assert "P_max" in tables.readable(frame, "FD")
    assert "max_length" not in tables.readable(frame, "FD")


def test_a_setting_of_several_values_is_shown_as_the_experiment_writes_it():
    rows = [{"model": "dpar"}, {"model": "dpar", "sampling.cfg_interval": [0.0, 0.5]}]
    shown = tables.readable(built(*rows), "FD")
    assert shown["cfg_interval"].tolist() == ["–", "[0.0, 0.5]"]


def test_markdown_and_latex_hold_every_cell():
    shown = tables.readable(built({"model": "dpar"}), "FD[x, 4]")
    markdown = tables.to_markdown(shown, "Title", ["a condition"])
    assert markdown.startswith("## Title\n")
    assert markdown.endswith("- a condition\n")
    latex = tables.to_latex(shown, "50% & more")
    assert r"\caption{50\% \& more}" in latex
    assert r"\caption{\$x\{\_\}\textbackslash{}\textasciitilde{}\textasciicircum{}}" in tables.to_latex(
        shown, "$x{_}\\~^"
    )
    assert r"3.0 $\pm$ 2.6" in latex
    assert latex.count("&") == 2 * (len(shown.columns) - 1) + 1


def test_latex_is_a_table_for_booktabs():
    frame = pd.DataFrame({"P_avg": ["1.8 ± 0.1", "–"], "Δ FID": ["~1 ^2", r"a\b"]}, index=[0, 0])
    assert tables.to_latex(frame, "A & B").splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{A \& B}",
        r"\begin{tabular}{ll}",
        r"\toprule",
        r"P\_avg & $\Delta$ FID \\",
        r"\midrule",
        r"1.8 $\pm$ 0.1 & \textasciitilde{}1 \textasciicircum{}2 \\",
        r"-- & a\textbackslash{}b \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_names_are_neither_html_nor_commands():
    evil = "<script>alert(1)</script>|x\n\\input{/etc/passwd} $y$ ~^"
    frame = pd.DataFrame({"<b>|": [evil, 3.5], "n": [1, 2]})
    markdown = tables.to_markdown(frame, evil, [evil])
    assert "<" not in markdown
    assert len(markdown.splitlines()) == 2 + 4 + 1 + 1  # title, table and note, each on its lines
    assert r"&lt;script>alert(1)&lt;/script>\|x" in markdown
    assert html.unescape(tables.plain("a < b")) == "a < b"
    latex = tables.to_latex(frame, evil)
    assert r"\input" not in latex
    assert r"\textbackslash{}input\{/etc/passwd\} \$y\$" in latex


def test_rows_that_the_paper_quotes_stand_above_ours_and_say_so():
    frame = built({"model": "dpar", "paper.fid": 2.5})
    assert tables.with_quoted(frame, []) is frame
    entry = {"kind": "diffusion", "model": "ADM", "parameters": 554e6, "fid": 4.59, "steps": 250}
    whole = tables.with_quoted(frame, [entry])
    assert whole["source"].tolist() == ["quoted, diffusion", tables.MADE]
    shown = tables.readable(whole, "FID")
    assert shown["Paper FID"].tolist() == ["4.59", "2.5"]
    assert shown["FID"].tolist() == ["–", "3.0 ± 2.6"]
    assert shown["Parameters"].tolist() == ["554,000,000", "2,000,000"]
    assert shown["Seeds"].tolist() == ["–", "3"]


def test_the_cost_of_sampling_follows_from_the_steps_that_were_drawn():
    measured = {(cell, 0): metrics(1.0) for cell in ("dpar", "dpar-eth4", "llamagen")}
    for (cell, _), found in measured.items():
        found["values"]["steps"] = 20.0 if cell == "dpar-eth4" else 40.0
    rows = [{"model": "dpar"}, {"model": "dpar", "inference.threshold": 4.0}, {"model": "llamagen"}]
    usual, fewer, baseline = built(*rows, measured=measured)["sampling_gmacs"]
    assert fewer < usual
    experiment = parse_experiment(demo(), "test")
    config = model_config(
        experiment.models["llamagen"], vocab_size=256, grid=experiment.grid, num_classes=experiment.images.num_classes
    )
    assert baseline == pytest.approx(sampling_gmacs(config))
    assert built({"model": "dpar"}).get("sampling_gmacs") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", 5), ("reference", "val"), ("reference_digest", "cd"), ("extractor_sha256", "cd" * 32), ("resolution", 64)],
)
def test_numbers_of_different_conditions_make_no_table(name, value):
    one, other = metrics(1.0), metrics(2.0)
    one["conditions"] |= {"k": 3, "reference_digest": "ab", "resolution": 32}
    other["conditions"] |= one["conditions"]
    assert built({"model": "dpar"}, measured={("dpar", 0): one, ("dpar", 1): other})["seeds"].iloc[0] == 2
    other["conditions"][name] = value
    with pytest.raises(InputError, match=rf"dpar/seed1\.json and metrics/dpar/seed0\.json .* their `{name}` differs"):
        built({"model": "dpar"}, measured={("dpar", 0): one, ("dpar", 1): other})
    del other["conditions"][name]
    built({"model": "dpar"}, measured={("dpar", 0): one, ("dpar", 1): other})  # older files do not state all


def test_another_number_of_samples_or_another_feature_network_makes_no_table():
    with pytest.raises(InputError, match=r"metrics/dpar/seed0\.json measures 40 samples, .*num_images.* is 320"):
        built({"model": "dpar"}, measured={("dpar", 0): metrics(1.0, samples=40)})
    with pytest.raises(InputError, match="their `metric` differs"):
        built({"model": "dpar"}, measured={("dpar", 0): metrics(1.0), ("dpar", 1): metrics(1.0) | {"metric": "FID"}})


def test_probes_of_different_protocols_make_no_table():
    stated = {"states": "s", "training_images": 10, "training_views": "v", "val_images": 5, "penalty": 0.1}
    probes = {
        (model, "step400"): {"top1": 5.0, "conditions": stated | {"val_images": count}}
        for model, count in (("dpar", 5), ("llamagen", 6))
    }
    with pytest.raises(InputError, match=r"linear_probe/llamagen/step400\.json and .* their `val_images` differs"):
        built({"model": "llamagen"}, {"model": "dpar"}, measured={}, probes=probes)


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (2.3, 0.0059, "2.3000 ± 0.0059"),
        (0.7548, 0.031, "0.755 ± 0.031"),
        (196.0, 0.0, "196 ± 0"),
        (1234.56, 12.3, "1,235 ± 12"),
        (1234.56, 123.0, "1,235 ± 123"),
        (3.0, float("inf"), "3 ± inf"),
    ],
)
def test_a_mean_has_the_decimals_of_its_standard_deviation(mean, sd, text):
    assert tables.with_spread(mean, sd) == text
