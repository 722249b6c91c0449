"""What is said before the first job: jobs, trainings, time, and why finished work is done again, in settings."""

import io

import pytest

from dpar.data.workers import cores
from dpar.errors import InputError
from dpar.experiment.cells import model_cells
from dpar.experiment.loading import load_experiment, parse_experiment
from dpar.workflow import announcement, planning, speed
from dpar.workflow.announcement import (
    READS,
    Bill,
    OverBudgetError,
    Planned,
    again,
    announced,
    bill_of,
    changed_settings,
    check_budget,
    counted,
    in_words,
    jobs_in_words,
    read_by,
    trainings_in_words,
)
from dpar.workflow.journal import START
from dpar.workflow.recipes import RECIPES
from tests.experiment.test_settings import CONFIG, demo

DEMO = load_experiment(CONFIG / "demo.yaml")


def dumped(**changes):
    return parse_experiment(demo(**changes), "test").model_dump(mode="json")


def test_a_changed_setting_is_the_reason_of_the_jobs_that_read_it():
    changes = changed_settings(dumped(), dumped(sampling__cfg_scale=2.5))
    assert changes == {"sampling.cfg_scale": (2.0, 2.5)}
    jobs = [Planned("sample_images", f"dpar/{i}/00000", again=True) for i in range(15)]
    jobs += [Planned("train_model", "dpar/step400"), Planned("make_table", "t", again=True)]
    assert list(announced(DEMO, jobs, Bill(1.25, "this machine", 3e9), changes)) == [
        "this run: 17 jobs (1 training, 15 sets of samples, 1 table)",
        "  trains   dpar to step400",
        "  takes    about 1.2 hours of this machine, and 3.00 GB on disk",
        "  again    15 sets of samples, because sampling.cfg_scale was 2 and is 2.5",
        "  again    1 table, because the recipe of the stage is another one",
    ]


def test_trainings_are_named_by_model_once_in_whatever_order_their_jobs_come():
    """Milestones and seeds of one model are one item; of an experiment without seeds none are said."""
    experiment = load_experiment(CONFIG / "fashion28_coarse.yaml")
    jobs = [
        Planned("train_model", f"{cell.slug}/{milestone}")
        for cell in model_cells(experiment).values()
        for milestone in cell.milestones[: 3 if "_pmax" in cell.slug else None]
        if cell.slug not in ("llamagen", "llamagen_seed1")
    ]
    jobs += [Planned("train_tokenizer", ""), Planned("train_entropy_model", "entropy_model")]
    said = (
        "tokenizer; entropy_model; dpar, dpar_strategystatic to epoch16 (seeds 0, 1, 2); "
        "dpar_pmax1, dpar_pmax2, dpar_pmaxnone_rowsoff to epoch4 (seeds 0, 1, 2); "
        "llamagen to epoch16 (seed 2)"
    )
    assert trainings_in_words(experiment, jobs) == trainings_in_words(experiment, jobs[::-1]) == said
    counts = next(announced(experiment, jobs, None, {}))
    assert counts.startswith(f"this run: {len(jobs)} jobs (16 trainings in {len(jobs) - 2} milestones, 1 train_")


def test_more_models_than_a_line_holds_are_counted_and_numbers_in_names_rise():
    rows = [{"model": "dpar", "patchify.max_length": length} for length in range(2, 18) if length != 4]
    experiment = parse_experiment(demo(tables={"lengths": {"title": "T", "rows": rows}}), "test")
    jobs = [Planned("train_model", f"{slug}/step400") for slug in reversed(model_cells(experiment))]
    said = trainings_in_words(experiment, jobs)
    assert said.startswith("dpar, dpar_pmax2, dpar_pmax3, dpar_pmax5, ")
    assert said.endswith(f"dpar_pmax13 to step400; {len(jobs) - 12} more models")


def test_shards_are_told_apart_from_sets_of_samples():
    jobs = [Planned("sample_images", f"dpar/{seed}/{shard:05d}") for seed in range(2) for shard in range(16)]
    jobs += [Planned("compute_metrics", f"dpar/{seed}") for seed in range(2)]
    assert [text for _, text in counted(jobs)] == ["2 sets of samples in 32 shards", "2 measurements"]


def test_kinds_that_a_line_has_no_room_for_are_counted():
    jobs = [Planned(rule, f"{part}/0") for rule in ("z", *map(str, range(8)), "train_model") for part in ("dpar", "x")]
    said = next(jobs_in_words(DEMO, [job for job in jobs if job != Planned("train_model", "x/0")]))
    assert said == "this run: 19 jobs (1 training, 2 0, 2 1, 2 2, 2 3, 2 4, 2 5, 6 others)"


def test_settings_that_came_or_went_and_lists_are_said_too():
    changes = changed_settings(dumped(), dumped(patchify={"threshold": 3.0}, sampling__seeds=[0]))
    assert changes["patchify.threshold"] == (None, 3.0)
    assert changes["sampling.seeds"] == ([0, 1, 2], [0])
    assert changed_settings(None, dumped()) == {}
    _, line = announced(DEMO, [Planned("a", "", again=True)], None, {"x": (None, 1)})
    assert line == "  again    1 a, because x was not set and is 1"


def test_a_group_that_is_new_or_gone_is_one_line_and_counts_for_the_jobs_that_read_it():
    more = dict(demo()["models"]) | {"dpar-small": demo()["models"]["dpar"]}
    rows = {"title": "T", "rows": [{"model": "dpar"}]}
    now = dumped(models=more, tables=dict(demo()["tables"]) | {"own": rows})
    changes = changed_settings(dumped(), now)
    assert [in_words(*change) for change in changes.items()] == ["models.dpar-small is new", "tables.own is new"]
    back = changed_settings(now, dumped())
    assert [in_words(*change) for change in back.items()] == ["models.dpar-small is gone", "tables.own is gone"]
    assert [*read_by(["train_model"], changes)] == ["models.dpar-small"]
    assert [*read_by(["index_images", "make_table"], changes)] == ["tables.own"]
    assert read_by(["write_report"], changes) == {}
    free = {"figures.own": (None, {"rows": []})}
    assert read_by(["write_report"], free) == free, "which no rule that is listed reads"
    assert read_by(["train_model"], free) == {}
    (line,) = again([Planned("write_report", "", again=True)], changes)
    assert line == "1 write_report, because models.dpar-small is new, tables.own is new"
    (line,) = again([Planned("train_model", "x", again=True)], changes)
    assert line == "1 training, because models.dpar-small is new"


def test_nothing_is_said_of_a_run_without_jobs():
    assert list(announced(DEMO, [], None, {"sampling.cfg_scale": (1, 2)})) == []


def test_the_rules_whose_settings_are_listed_exist():
    assert READS.keys() <= RECIPES.keys()


def test_the_bill_counts_the_jobs_of_this_run_alone():
    experiment = load_experiment(CONFIG / "imagenet256.yaml")
    one = [("train_model", {"model": "DPAR-L", "milestone": "epoch50"})]
    two = [*one, ("sample_images", {"cell": "DPAR-L-cfg1.9", "seed": "0"})]
    images = (1_281_167, 50_000)
    bills = [bill_of(experiment, jobs, images, here=False).hours for jobs in ([], one, two)]
    assert bills[0] == 0
    assert 20 < bills[1] < bills[2] < bills[1] + 100
    shards = [("sample_images", {"cell": "DPAR-L-cfg1.9", "seed": "0", "shard": str(i)}) for i in range(4)]
    bill = bill_of(experiment, [*one, *shards, ("make_table", {"table": "table2"})], images, here=False)
    assert bill.hours == pytest.approx(bills[2])
    assert sum(bill.seconds.values()) == pytest.approx(3600 * bills[2])
    assert bill.seconds["sample_images DPAR-L-cfg1.9/0/3"] == pytest.approx(900 * (bills[2] - bills[1]))


def test_on_this_machine_each_job_also_has_a_start(monkeypatch):
    monkeypatch.setattr(speed, "timed_rates", lambda experiment: planning.ASSUMED)
    jobs = [("train_model", {"model": "dpar", "milestone": "step400"}), *(("plot", {"n": str(i)}) for i in range(99))]
    there, here = (bill_of(DEMO, jobs, (1600, 640), here=here) for here in (False, True))
    assert here.hours - there.hours == pytest.approx(100 * START / cores() / 3600)
    assert here.seconds == there.seconds


@pytest.mark.parametrize(("budget", "refused"), [(None, False), ("7000", True), ("7069", False)])
def test_a_budget_is_compared_with_the_bill(budget, refused):
    bill = Bill(7068, "an A100", 0.0)
    if not refused:
        check_budget(bill, budget)
        return
    with pytest.raises(
        OverBudgetError, match=r"7,068\.0 hours of an A100, more than the budget of 7000 .*--budget 8482"
    ):
        check_budget(bill, budget)


@pytest.mark.parametrize(
    ("answer", "meant"), [("y\n", True), ("Yes\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_at_a_terminal_the_person_is_asked(monkeypatch, capsys, answer, meant):
    monkeypatch.setattr(announcement.sys, "stdin", io.StringIO(answer))
    assert not announcement.somebody_asks(), "an input without a terminal"
    bill = Bill(7068, "an A100", 0.0)
    if meant:
        check_budget(bill, "7000", announcement.approved)
    else:
        with pytest.raises(OverBudgetError) as error:
            check_budget(bill, "7000", announcement.approved)
        assert error.value.meant == 8482
    asked = "this run takes about 7,068.0 hours of an A100, more than the budget of 7000 hours. Start it? [y/N] "
    assert capsys.readouterr().err == asked


def test_a_budget_that_is_no_number_is_refused_and_what_is_not_known_passes():
    for given in ("much", "nan"):
        with pytest.raises(InputError, match=f"DPAR_BUDGET: found '{given}'"):
            check_budget(Bill(1, "", 0), given)
    check_budget(Bill(None, "", 0), "1")
