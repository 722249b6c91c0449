"""The stage that writes the page."""

import json
import re
from pathlib import Path

import pytest

from dpar.errors import InputError
from dpar.experiment.loading import parse_experiment
from dpar.experiment.settings import FIGURES
from dpar.files import write_json
from dpar.report import gates
from dpar.report.figures import new_figure, save
from dpar.stages import describe_models, make_table, write_report
from dpar.tracking.makers import accept
from tests.experiment.test_settings import demo
from tests.report import made_up
from tests.report.test_gates import ROW
from tests.stages.test_make_table import arguments

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page(tmp_path):
    """Writes the page of made-up results; returns what makes it and where it is."""
    figure = {"title": "Uncurated, of a kind", "rows": [{"model": "dpar"}], "classes": [0]}
    experiment = parse_experiment(demo(figures={"figure5": figure}), "test")
    files = made_up.write(tmp_path, experiment)
    pareto = tmp_path / "figures" / "pareto" / "threshold_by_length.png"
    pictures = [pareto, *(tmp_path / "figures" / f"{n}.png" for n in (*experiment.tables, *FIGURES, "figure5"))]
    pictures.append(tmp_path / "tokenizer" / "reconstructions.png")
    for path in pictures:
        save(new_figure(1, 1), path)
    write_json(tmp_path / "tokenizer" / "report.json", {"psnr": 25.678, "classes": [1, 2]})
    history = tmp_path / "models" / "dpar" / "step400" / "history.jsonl"
    history.parent.mkdir(parents=True)
    lines = [{"step": 100, "train/loss": 5.0}, {"step": 100, "val/nll": 4.9}, {"step": 200, "val/nll": 4.5}]
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for table in experiment.tables:
        make_table.main(list(map(str, arguments(tmp_path, files, table))))
    flags = ["--experiment", str(tmp_path / "experiment.json"), "--output", str(tmp_path / "tables")]
    describe_models.main(flags)
    tables = list(experiment.tables)
    flags = [
        *("--experiment", tmp_path / "experiment.json"),
        *("--tables", *(tmp_path / "tables" / f"{t}.csv" for t in tables)),
        *("--ablations", *(tmp_path / "figures" / f"{t}.png" for t in tables)),
        *("--figures", *(tmp_path / "figures" / f"{n}.png" for n in (*FIGURES, "figure5"))),
        *("--models", tmp_path / "tables" / "table1.csv", tmp_path / "tables" / "table8.csv"),
        *("--paretos", pareto, "--captions", ROOT / "workflow" / "report"),
        *("--tokenizer", tmp_path / "tokenizer" / "report.json"),
        *("--reconstructions", tmp_path / "tokenizer" / "reconstructions.png"),
        *(part for name, path in files.items() if name != "patch-counts" for part in (f"--{name}", path)),
        *("--histories", history, "--output", tmp_path / "report.html"),
    ]

    def write(*more):
        write_report.main(list(map(str, [*flags, *more])))
        return (tmp_path / "report.html").read_text()

    return write


def test_the_page_holds_every_table_figure_and_condition(page, monkeypatch):
    monkeypatch.setattr(write_report, "git_commit", lambda: ("0123abc", True))
    text = page()
    assert "0123abc with uncommitted changes" in text
    assert "Entropy threshold and maximum patch length. A frame marks the smallest value, a broken one what" in text
    assert '<p class="verdict">dpar is worse than llamagen: FD[classifier, 4]' in text
    assert re.search(
        r'<p class="made">.* · commit .* · .*, \d+ cores.* · \d+ jobs, \d+ (s|min) one after the other', text
    )
    assert "DPAR compared with LlamaGen. Bars are standard deviations" in text
    # tables, one of them with a Pareto plot; figures, one of them the experiment's; curves, reconstructions
    assert text.count("data:image/png;base64,") == 3 + 5 + 1 + 1
    assert "Uncurated, of a kind" in text
    assert " ".join((ROOT / "workflow/report/completions.rst").read_text().split()) in text
    assert "Held-out images (above)" in text
    assert '<a href="metrics/dpar_pmax2">dpar</a>' in text
    assert "35.6 patches per image are assumed" in text
    assert "DPAR compared with LlamaGen" in text
    assert "Entropy threshold and maximum patch length" in text
    assert "Not comparable to published numbers" in text
    assert "25.68" in text
    assert "weight_decay" in text
    assert "<script" not in text


def test_a_duration_has_its_two_largest_units():
    assert [write_report.duration(s) for s in (3, 90, 7 * 60, 3600, 200 * 3600 + 130)] == [
        "3 s", "2 min", "7 min", "1 h 0 min", "200 h 2 min"
    ]  # fmt: skip


def test_a_machine_is_said_by_its_processor_and_cards():
    assert write_report.computer({"host": "n1", "processor": "P, 2 cores", "gpus": "8 x G"}) == "P, 2 cores, 8 x G"
    assert write_report.computer({"host": "n1"}) == ""


def test_gates_have_a_section_where_there_are_any(page, tmp_path):
    assert gates.TITLE not in page()
    write_json(tmp_path / "gates" / "comparison.json", {"images": 17, "rows": [ROW, ROW | {"gate": "small"}]})
    text = page("--gates", tmp_path / "gates" / "comparison.json")
    assert text.count(gates.TITLE) == 2  # in the list of sections, and above its own
    assert "<td>small</td>" in text
    assert "17 held-out images" in text


def test_a_curve_goes_to_the_end_of_its_training_in_whatever_order_states_are_listed(tmp_path):
    def history(model, *steps):
        path = tmp_path / "models" / model / f"step{steps[-1]}" / "history.jsonl"
        path.parent.mkdir(parents=True)
        records = [{"step": step, "perf/step_ms": 3000, "val/nll": 5 - step / 100} for step in steps]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    whole, half, other = history("dpar", 100, 200, 400), history("dpar", 100, 200), history("llamagen", 100)
    for listed in ([whole, half, other], [half, whole, other]):
        curves = write_report.training_curves(listed)
        assert curves == {"dpar": ([100, 200, 400], [5, 10, 20], [4, 3, 1]), "llamagen": ([100], [5], [4])}


def test_a_table_without_its_conditions_is_not_shown(page, tmp_path):
    (tmp_path / "tables" / "comparison.md").unlink()
    with pytest.raises(InputError, match=r"comparison\.md"):
        page()
    assert not (tmp_path / "report.html").exists()


def test_titles_and_names_reach_the_page_as_text(page, tmp_path):
    page()
    evil = "<script>alert(1)</script>"
    experiment = json.loads((tmp_path / "experiment.json").read_text())
    table = next(iter(experiment["tables"]))
    experiment["tables"][table]["title"] = experiment["figures"]["figure5"]["title"] = evil
    write_json(tmp_path / "experiment.json", experiment)
    write_json(tmp_path / "tokenizer" / "report.json", {evil: evil})
    notes = tmp_path / "tables" / f"{table}.md"
    notes.write_text(f"{notes.read_text()}- &lt;b> of `{evil}`\n")
    accept(tmp_path, [notes])
    text = page()
    assert evil not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6
    assert "<li>&lt;b&gt; of &lt;script&gt;" in text
