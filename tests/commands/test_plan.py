"""`dpar plan`: alone, beyond what stands above, and together; rates assumed or measured."""

import json
import re

import pytest

from dpar import cli
from dpar.commands import plan
from dpar.errors import InputError
from dpar.files import write_json
from dpar.workflow.planning import Data, JobCost, Rates
from tests.experiment.test_settings import CONFIG, demo, parse_experiment

TRAINING, SAMPLING = 100.0, 10.0


def job(hours, size=0.0):
    return JobCost(hours * 3600 * TRAINING / 2, "training", size)


def test_what_two_targets_share_is_paid_once():
    shared, own = ("train_model", "a", "epoch50"), ("train_model", "b", "epoch50")
    longer = ("train_model", "a", "epoch300")
    needed = {
        "table4": {shared: job(2, 1e9), own: job(3, 2e9)},
        "table11": {shared: job(2, 1e9), longer: job(10, 4e9)},
        "extra": {own: job(3, 2e9)},
    }
    found = plan.bill(needed, Rates(TRAINING, 1.0, SAMPLING), gpus=5)
    alone = [target["alone"]["gpu_hours"] for target in found["targets"]]
    new = [target["beyond_those_above"]["gpu_hours"] for target in found["targets"]]
    assert alone == pytest.approx([5, 12, 3])
    assert new == pytest.approx([5, 10, 0])
    assert found["whole"] == pytest.approx(
        {"gpu_hours": 15, "preparation": 0, "training": 15, "sampling": 0, "measuring": 0}
        | {"days": 15 / 5 / 24, "gigabytes": 7}
    )
    assert found["paper"]["gpu_hours"] == pytest.approx(15)
    assert [(t["model"], t["to"], t["targets"]) for t in found["trainings"]] == [
        ("a", "epoch50", ["table4", "table11"]),
        ("b", "epoch50", ["table4", "extra"]),
        ("a", "epoch300", ["table11"]),
    ]


def test_the_bill_of_one_table_is_printed(capsys):
    config = str(CONFIG / "imagenet256.yaml")
    assert cli.main(["plan", "--config", config, "--target", "table4", "--gpus", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [target["target"] for target in found["targets"]] == ["table4"]
    assert found["images"] == [1_281_167, 50_000]
    assert {training["model"] for training in found["trainings"]} == {
        "DPAR-L", *(f"DPAR-L_eth{threshold}" for threshold in ("7.6", "7.7", "7.9", "8"))
    }  # fmt: skip
    # 50 epochs of L-256: 3 x 57.5e9 MACs per image by 2 operations, at 40 % of 312e12 per second
    by_hand = 50 * 1_281_167 * 2 * 172.5e9 / (0.4 * 312e12) / 3600
    (default,) = [t["gpu_hours"] for t in found["trainings"] if t["model"] == "DPAR-L"]
    assert default == pytest.approx(by_hand, rel=0.01)
    assert found["whole"]["days"] == pytest.approx(found["whole"]["gpu_hours"] / 4 / 24)

    plan.main(["--config", config, "--target", "table4"])
    shown = capsys.readouterr().out
    assert "assumed: A100, 40% of 312 TFLOP/s in training" in shown
    assert "all together" in shown


def test_targets_come_in_the_papers_order_and_then_the_experiments_own():
    assert plan.default_targets(plan.load_experiment(CONFIG / "imagenet256.yaml")) == [
        "table2", "table3", "table4", "table5", "table6", "table7", "table9", "table10", "table11",
        "figure1b", "figure2", "figure5", "figure6", "figure7", "figure8", "gates", "grid", "queries", "largest",
    ]  # fmt: skip


def test_images_that_nobody_counted_are_asked_for(tmp_path):
    config = CONFIG / "photos64.yaml"
    with pytest.raises(InputError, match=r"say it with --images, or name results of it, .* with --measured"):
        plan.main(["--config", str(config)])


def started(cell):
    """The first line of the record of a job that drew samples of `cell`."""
    text = dict.fromkeys(("rule", "name", "identity", "experiment", "config"), "sample_images")
    return text | {
        "t": 1, "event": "start", "commit": None, "dirty": False, "params": {"cell": cell},
        "machine": {"host": "a", "user": "b"}, "versions": {}, "inputs": [],
    }  # fmt: skip


def test_measured_speeds_take_the_place_of_assumed_ones(tmp_path):
    experiment = parse_experiment(demo(), "test")
    write_json(tmp_path / "experiment.json", experiment.model_dump(mode="json"))
    cells = {name: {"steps": 40.0} for name in plan.model_cells(experiment)}
    write_json(tmp_path / "patch_counts.json", {"cells": cells})
    with pytest.raises(InputError, match="no finished training"):
        plan.known_rates(plan.parser().parse_args(["--measured", str(tmp_path)]))
    history = tmp_path / "models" / "llamagen" / "step400" / "history.jsonl"
    history.parent.mkdir(parents=True)
    history.write_text("".join(json.dumps({"step": s, "perf/images_per_s": v}) + "\n" for s, v in ((1, 9), (2, 10))))
    events = tmp_path / "tracking" / "spool" / "sample_images" / "a" / "events.jsonl"
    events.parent.mkdir(parents=True)
    lines = [started("llamagen")]
    lines += [
        {"t": 2, "event": "metrics", "step": s, "values": {"sample/images_per_s": v}}
        for s, v in ((64, 1.0), (128, 4.0))
    ]
    torn = '{"event": "metrics", "step": 192, "val'  # by a kill
    events.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    rates, source = plan.known_rates(plan.parser().parse_args(["--measured", str(tmp_path)]))
    config = plan.cost.network(experiment, experiment.models["llamagen"])
    assert rates.training == pytest.approx(2e9 * plan.flops.training_gmacs(config) * 9.5)
    assert rates.sampling == rates.float32 == pytest.approx(2e9 * plan.flops.sampling_gmacs(config) * 4.0)
    assert "measured in" in source


def test_a_model_whose_patches_were_never_counted_measures_nothing(tmp_path):
    experiment = parse_experiment(demo(), "test")
    write_json(tmp_path / "experiment.json", experiment.model_dump(mode="json"))
    write_json(tmp_path / "patch_counts.json", {"cells": {}})
    for model in ("dpar", "llamagen"):
        history = tmp_path / "models" / model / "step400" / "history.jsonl"
        history.parent.mkdir(parents=True)
        history.write_text(json.dumps({"step": 1, "perf/images_per_s": 9}) + "\n")
        events = tmp_path / "tracking" / "spool" / "sample_images" / model / "events.jsonl"
        events.parent.mkdir(parents=True)
        lines = (
            started(model),
            {"t": 2, "event": "metrics", "step": 1, "values": {"sample/images_per_s": 1}},
        )
        events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = plan.parser().parse_args(["--measured", str(tmp_path)])
    assert len(list(plan.measured_training(experiment, tmp_path))) == 1  # LlamaGen, which has no patches
    rates, _ = plan.known_rates(args)
    assert rates.training > 0
    write_json(tmp_path / "patch_counts.json", {"cells": {"dpar": {"steps": 9.0}}})
    assert len(list(plan.measured_training(experiment, tmp_path))) == 2
    for broken in ([], {}, {"cells": {"dpar": 3}}, {"cells": {"dpar": {"steps": "x"}}}):
        write_json(tmp_path / "patch_counts.json", broken)
        with pytest.raises(InputError, match=r"lacks a field|holds a JSON list"):
            plan.known_rates(args)


@pytest.mark.parametrize(
    ("changes", "images", "patches", "told"),
    [
        ({}, (40, 8), {"dpar": 30.0}, "speeds, numbers of images, patches"),
        ({"models__dpar__layers": 9}, (40, 8), {"dpar": 30.0}, "speeds, numbers of images, patches"),
        ({"patchify__max_length": 3}, (40, 8), {}, "speeds, numbers of images; demo has other settings of patchify"),
        ({"images__resolution": 32}, (1600, 640), {}, "speeds; demo has other settings of images"),
    ],
)
def test_what_was_counted_in_another_experiment_is_not_taken(tmp_path, changes, images, patches, told):
    write_json(tmp_path / "experiment.json", parse_experiment(demo(), "test").model_dump(mode="json"))
    write_json(tmp_path / "patch_counts.json", {"cells": {"dpar": {"steps": 30.0}}})
    for split, count in (("train", 40), ("val", 8)):
        write_json(tmp_path / "index" / f"{split}.json", {"count": count})
    args = plan.parser().parse_args(["--measured", str(tmp_path)])
    data, taken = plan.known_data(parse_experiment(demo(**changes), "test"), args)
    assert ((data.train, data.val), data.patches) == (images, patches)
    assert taken is not None
    assert taken.startswith(f"Taken from {tmp_path}: {told}")


def test_speeds_of_another_experiment_leave_imagenet_its_images(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "experiment.json", parse_experiment(demo(), "test").model_dump(mode="json"))
    for split in ("train", "val"):
        write_json(tmp_path / "index" / f"{split}.json", {"count": 1600})
    monkeypatch.setattr(plan, "known_rates", lambda *_: (Rates(TRAINING, SAMPLING, SAMPLING), "measured"))
    plan.main(["--config", str(CONFIG / "imagenet256.yaml"), "--measured", str(tmp_path), "--target", "table1"])
    shown = capsys.readouterr().out
    assert "imagenet256: 1,281,167 training images" in shown
    assert f"Taken from {tmp_path}: speeds; imagenet256 has other settings of images, tokenizer, entropy_model" in shown


def test_images_of_the_same_experiment_may_lie_elsewhere(tmp_path):
    experiment = plan.load_experiment(CONFIG / "photos64.yaml")
    args = plan.parser().parse_args(["--measured", str(tmp_path)])
    elsewhere = experiment.images.model_copy(update={"train": "elsewhere.parquet"})
    for split in ("train", "val"):
        write_json(tmp_path / "index" / f"{split}.json", {"count": 40})
    for name in ("other", experiment.name):
        before = experiment.model_copy(update={"name": name, "images": elsewhere})
        write_json(tmp_path / "experiment.json", before.model_dump(mode="json"))
        if name == "other":
            with pytest.raises(InputError, match=r"say it with --images, or name results of it, .* with --measured"):
                plan.known_data(experiment, args)
    assert plan.known_data(experiment, args)[0].train == 40


@pytest.mark.slow
def test_sampling_is_by_the_roofline_or_at_a_share_of_the_peak(capsys):
    """At twice the share it takes half the time, pixels aside."""
    config = ["--config", str(CONFIG / "imagenet256.yaml"), "--target", "table11", "--json"]

    def sampling(*flags):
        plan.main([*config, *flags])
        found = json.loads(capsys.readouterr().out)
        return found["whole"]["sampling"], found["rates"]

    usual, stated = sampling()
    assert "sampling by its roofline" in stated
    assert usual > sampling("--gpu", "H200")[0] > 0
    five, stated = sampling("--sampling-mfu", "0.05")
    assert "sampling 5%" in stated
    ten, _ = sampling("--sampling-mfu", "0.1")
    pixels = 2 * ten - five
    assert five - pixels == pytest.approx(2 * (ten - pixels))
    assert five > usual


def test_the_bill_in_the_documents_is_what_is_printed(capsys):
    """As exactly as it is written there; a line of several targets is their sum."""
    bills = {}
    for side in ("256", "384"):
        plan.main(["--config", str(CONFIG / f"imagenet{side}.yaml"), "--json"])
        bills[side] = json.loads(capsys.readouterr().out)
    new = {
        (side, line["target"]): line["beyond_those_above"] for side, bill in bills.items() for line in bill["targets"]
    }
    text = (CONFIG.parent / "docs" / "paper.md").read_text().replace("**", "")
    rows = re.findall(r"^\| (.+?) \| ([\d,.]+) \| ([\d,.]+) \| ([\d,.]+) (GB|TB) \|$", text, re.MULTILINE)
    written = []
    for what, hours, days, size, unit in rows:
        if what == "every table and figure of the paper":
            parts = [bill["paper"] for bill in bills.values()]
        elif what == "beyond the paper: XXL at both resolutions":
            written += [(side, "largest") for side in bills]
            parts = [new[side, "largest"] for side in bills]
        else:
            (side,) = re.findall(r"\d+(?= px)", what)
            paper = re.findall("(?:Table|Figure) \\d+", what)[:1]
            keys = [(side, name.lower().replace(" ", "")) for name in paper or re.findall("`(\\w+)`", what)]
            written += keys
            parts = [new[key] for key in keys]
        divided = {"GB": 1, "TB": 1000}[unit]
        for shown, name in ((hours, "gpu_hours"), (days, "days"), (size, "gigabytes")):
            value = sum(part[name] for part in parts) / (divided if name == "gigabytes" else 1)
            assert shown == f"{value:,.{len(shown.partition('.')[2])}f}", (what, name)
    unwritten = [new[key]["gpu_hours"] for key in new.keys() - set(written)]
    assert {what for what, *_ in rows} >= {"every table and figure of the paper", "256 px: Table 3"}
    assert sum(unwritten) == 0, "figures that are drawn from the samples of tables"


def test_what_is_left_of_a_training_is_counted_from_its_last_checkpoint(tmp_path):
    training = {"steps": 400, "milestones": [100], "batch_size": 8}
    experiment = parse_experiment(demo(training=training), "test")
    data = Data(1000, 100, {})

    def checkpoint(state, step):
        write_json(tmp_path / "state" / state / f"step{step:08d}.json", {"step": step})

    def share(*key):
        return plan.share_left(key, tmp_path, experiment, data)

    pieces = ("train_model", "dpar", "step100"), ("train_model", "dpar", "step400")
    assert [share(*piece) for piece in pieces] == [1, 1]
    checkpoint("models/dpar", 50)
    assert [share(*piece) for piece in pieces] == [0.5, 1]
    checkpoint("models/dpar", 250)
    assert [share(*piece) for piece in pieces] == [0, 0.5]
    assert share("train_model", "llamagen", "step400") == 1
    checkpoint("tokenizer", experiment.tokenizer.training.steps // 4)
    checkpoint("entropy_model", experiment.entropy_model.training.steps)
    assert share("train_tokenizer") == 0.75
    assert share("train_entropy_model") == 0
    assert share("encode_images") == share("sample_images", "dpar", "0") == 1
    wanted = {piece: job(2, 1e9) for piece in pieces}
    left = dict(plan.still_to_do(wanted, tmp_path, experiment, data))
    assert [Rates(TRAINING, 1.0, SAMPLING).hours([job]) for job in left.values()] == [0, 1]
    epochs = parse_experiment(demo(training={"epochs": 4, "batch_size": 10}), "test")
    assert plan.share_left(("train_model", "dpar", "epoch4"), tmp_path, epochs, data) == pytest.approx(1 - 2500 / 4000)
