"""No file that was damaged, edited or exchanged is used: each case ends in one line of an `InputError`.

What is harmless, and so is not asked for here: white space and the order of keys outside a results folder (the records
there see every byte), what no stage reads (`verified.json`, LaTeX, the report), and flags that a stage does not look at
(`corruption.unread`).
"""

import io
import json
import random
import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file

from dpar import tracking
from dpar.commands import export, track
from dpar.errors import InputError
from dpar.files import is_sealed, read_json, sealed, sha256_file, unmarked, write_json, write_text
from dpar.generator import Generator
from dpar.statement import unstamped
from dpar.tracking.lineage import of_file
from dpar.tracking.makers import Makers
from dpar.tracking.settings import RUNNING, check_settings, running
from dpar.weights import write_tensors
from dpar.workflow import jobs
from tests.workflow import corruption
from tests.workflow.corruption import Corruption
from tests.workflow.jobs import Job, build, within

RESULTS = Path("results/tiny")
ASIDE = ("tracking", "logs", "state")


@dataclass(frozen=True)
class Graph:
    """Finished results, the jobs that made them, and their files."""

    jobs: list[Job]
    files: list[Path]

    def of(self, rule: str, *words: str) -> Job:
        """The first job of a rule whose command has all these words."""
        return next(job for job in self.jobs if job.rule == rule and all(word in str(job) for word in words))

    def readers(self, path: Path) -> list[Job]:
        """The jobs that read a file."""
        return [job for job in self.jobs if corruption.read_by(job, path)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Iterator[Graph]:
    folder = tmp_path_factory.mktemp("graph")
    jobs = build(folder)
    with within(folder):
        found = sorted(p for p in RESULTS.rglob("*") if p.is_file() and p.parts[2] not in ASIDE)
        yield Graph(jobs, [p for p in found if p.name != "experiment.json"])


def refusal(job: Job, corrupted: Corruption) -> str:
    """What the stage says about a file that was changed; the file is put back."""
    whole = corrupted.path.read_bytes()
    corrupted.path.write_bytes(corrupted.content)
    try:
        with pytest.raises(InputError) as caught:
            job.run()
    except BaseException as error:
        raise AssertionError(f"{corrupted.path}: {corrupted.what}: used by {job}") from error
    finally:
        corrupted.path.write_bytes(whole)
    return str(caught.value)


def test_no_change_of_any_file_is_read(graph):
    rng, kinds = random.Random(0), defaultdict(list)
    for path in graph.files:
        kinds[corruption.kind_of(path)].append(path)
    tried, without_readers = defaultdict(int), set()
    for path in graph.files:
        readers = graph.readers(path)
        if not readers:
            without_readers.add(path.suffix if path.suffix == ".tex" else path.name)
            continue
        first = path == kinds[corruption.kind_of(path)][0]
        cases = [
            *corruption.flips(path, rng, 1),
            *corruption.swaps(path, kinds[corruption.kind_of(path)], rng, 1),
            *(corruption.cuts(path, rng, 1) if first else ()),
            *(corruption.edits(path, rng, 1) if first else ()),
        ]
        for case in cases:
            said = refusal(rng.choice(readers), case)
            assert "\n" not in said
            assert str(path) in said
            tried[case.what.split()[0]] += 1
    assert sum(tried.values()) > 200
    assert min(tried[kind] for kind in ("bit", "cut", "content")) > 20
    # for people alone: LaTeX, Markdown of gates, the report, pictures of other shards and curves than it shows
    people = {".tex", "comparison.md", "report.html", "first_report.html", "00000.png", "00001.png", "history.jsonl"}
    assert without_readers == people | {"verified.json"}


@pytest.mark.parametrize(
    ("rule", "words", "flag", "wrong", "made_by"),
    [
        ("compute_metrics", ("dpar/seed0",), "reference", "features/dpar/seed1.npz", "extract_features[dpar/seed1]"),
        ("compute_metrics", ("dpar/seed0",), "samples", "features/dpar/seed1.npz", "extract_features[dpar/seed1]"),
        ("compute_metrics", ("dpar/seed0",), "samples", "features/reference.npz", "extract_features[features/ref"),
        ("measure_noise_floor", (), "reference", "features/dpar/seed0.npz", "extract_features[dpar/seed0]"),
        ("train_model", ("dpar", "step4"), "train", "scored/val/manifest.json", "index_codes[scored-val]"),
        ("train_model", ("dpar", "step4"), "val", "scored/train/manifest.json", "index_codes[scored-train]"),
        ("train_model", ("llamagen", "step4"), "previous", "models/dpar/step2/config.json", "train_model[dpar/step2]"),
        ("train_entropy_model", ("small",), "train", "codes/val/manifest.json", "index_codes[codes-val]"),
        ("calibrate_threshold", (), "manifest", "scored/val/manifest.json", "index_codes[scored-val]"),
        ("evaluate_likelihood", ("llamagen",), "manifest", "codes/train/manifest.json", "index_codes[codes-train]"),
        ("evaluate_likelihood", ("dpar/step4",), "model_folder", "models/dpar/step2", "train_model[dpar/step2]"),
        ("linear_probe", ("dpar/step4",), "model_folder", "models/dpar/step2", "train_model[dpar/step2]"),
        ("sample_images", ("dpar ",), "model_folder", "models/dpar/step2", "train_model[dpar/step2]"),
        ("sample_images", ("dpar ",), "model_folder", "models/llamagen/step4", "train_model[llamagen/step4]"),
        ("sample_images", ("dpar ",), "entropy_model", "gates/small", "train_entropy_model[gates/small]"),
        ("calibrate_gate", ("small",), "gate_folder", "gates/other", "train_entropy_model[gates/other]"),
        ("encode_images", ("train",), "index", "index/val.json", "index_images[val]"),
        ("train_tokenizer", (), "train_index", "index/val.json", "index_images[val]"),
        ("train_classifier", (), "val_index", "index/train.json", "index_images[train]"),
        ("score_entropies", ("00000",), "shard", "codes/train/00001.tar", "encode_images[train-00001]"),
        ("extract_features", ("reference",), "images", "index/val.json", "index_images[val]"),
        ("plot_samples", (), "index", "index/train.json", "index_images[train]"),
        ("plot_ablation", ("comparison",), "csv", "tables/gates.csv", "make_table[gates]"),
        ("complete_images", (), "model_folder", "models/dpar/step2", "train_model[dpar/step2]"),
    ],
)
def test_what_a_stage_is_told_to_read_is_what_its_rule_asks_for(graph, rule, words, flag, wrong, made_by):
    with pytest.raises(InputError) as caught:
        graph.of(rule, *words).given(**{flag: RESULTS / wrong}).run()
    assert f"was made by {made_by}" in str(caught.value)
    assert "expected is what" in str(caught.value)


def test_a_copy_of_the_file_of_another_job_is_known_wherever_it_lies(graph, tmp_path):
    copy = tmp_path / "reference.npz"
    copy.write_bytes((RESULTS / "features/dpar/seed1.npz").read_bytes())
    with pytest.raises(InputError, match=r"reference\.npz was made by extract_features\[dpar/seed1\]"):
        graph.of("measure_noise_floor").given(reference=copy).run()


def test_the_line_says_what_was_found_and_who_made_it(graph):
    path, other = RESULTS / "samples/dpar/seed0/00000.npz", RESULTS / "samples/dpar/seed1/00000.npz"
    said = refusal(graph.of("extract_features", "dpar/seed0"), Corruption(path, "swap", other.read_bytes()))
    assert f"{path} is not what sample_images[dpar/seed0/0] left" in said
    assert "it is the content of samples/dpar/seed1/00000.npz, made by sample_images[dpar/seed1/0]" in said
    assert f"`dpar track accept {path}`" in said


def test_whole_folders_that_were_exchanged_are_refused_by_commands_too(graph):
    one, two, aside = RESULTS / "models/dpar/step2", RESULTS / "models/dpar/step4", RESULTS / "models/dpar/aside"
    Generator.from_pretrained(one, device="cpu")
    exchange(one, two, aside)
    try:
        with pytest.raises(InputError, match=r"is not what train_model\[dpar/step2\] left.*made by train_model"):
            Generator.from_pretrained(one, device="cpu")
        with pytest.raises(InputError, match=r"is not what train_model\[dpar/step4\] left"):
            graph.of("evaluate_likelihood", "dpar/step4").run()
    finally:
        exchange(one, two, aside)
    Generator.from_pretrained(one, device="cpu")


def exchange(one: Path, two: Path, aside: Path) -> None:
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def test_a_meant_edit_is_accepted_by_name_and_stays_visible(graph, capsys):
    path = RESULTS / "thresholds" / "pavg1.8.json"
    whole, job = path.read_bytes(), graph.of("count_patches")
    try:
        path.write_bytes(whole.replace(b'"achieved": ', b'"achieved": 1'))
        with pytest.raises(InputError, match=f"track accept {path}"):
            job.run()
        track.main(["accept", str(path)])
        assert "accepted by hand" in capsys.readouterr().out
        job.run()
        assert "accepted by hand[thresholds/pavg1.8.json]" in of_file(path)
        assert "calibrate_threshold[1.8]" in of_file(path), "what it was before is part of its lineage"
        with pytest.raises(InputError, match=r"made by calibrate_threshold.*expected is what calibrate_gate"):
            tracking.check(RESULTS / "experiment.json", jobs.gate_thresholds("small", path))
        track.main(["accept", str(RESULTS / "thresholds")])
        assert "nothing to accept" in capsys.readouterr().out
    finally:
        path.write_bytes(whole)
    with pytest.raises(InputError, match="is what calibrate_threshold"):  # what was there before is another file now
        job.run()
    graph.of("calibrate_threshold").run()
    job.run()


def test_results_from_before_seals_and_caches_pass(graph, tmp_path):
    job = graph.of("compute_metrics", "dpar/seed0")
    made = RESULTS / "metrics/dpar/seed0.json"
    before = sha256_file(made)
    for entry in [*RESULTS.glob("tracking/makers/*"), *RESULTS.glob("tracking/hashes/*")]:
        entry.unlink()
    whole = {path: path.read_bytes() for path in [*RESULTS.glob("tracking/spool/*/*/*.json")]}
    sealed = (RESULTS / "experiment.json").read_bytes()
    for path in [*whole, RESULTS / "experiment.json"]:
        write_text(path, json.dumps(read_json(path)))
    job.run()
    assert sha256_file(made) == before
    refused = refusal(job, next(corruption.flips(RESULTS / "features/dpar/seed0.npz", random.Random(0), 1)))
    assert "is not what extract_features[dpar/seed0] left" in refused
    for path, content in [*whole.items(), (RESULTS / "experiment.json", sealed)]:
        path.write_bytes(content)


def test_damaged_records_prove_nothing_and_stop_nothing_that_they_do_not_concern(graph):
    job, rng = graph.of("compute_metrics", "dpar/seed0"), random.Random(1)
    made = RESULTS / "metrics/dpar/seed0.json"
    job.run()
    before = sha256_file(made)
    spools = RESULTS / "tracking/spool"
    own = next(spools.glob("extract_features/extract_features-dpar-seed0-*/manifest.json"))
    records = [own, *spools.glob("train_tokenizer/*/manifest.json"), *RESULTS.glob("tracking/hashes/*")]
    records += list(RESULTS.glob("tracking/makers/*"))
    for path in [own, *rng.sample(records, min(12, len(records)))]:
        for case in [*corruption.flips(path, rng, 2), *corruption.cuts(path, rng, 1)]:
            whole = path.read_bytes()
            path.write_bytes(case.content)
            try:
                job.run()
            finally:
                path.write_bytes(whole)
            assert sha256_file(made) == before
    # with neither the record nor the cache next to it nothing says who made it
    for entry in RESULTS.glob("tracking/makers/*"):
        entry.unlink()
    whole = own.read_bytes()
    own.write_bytes(b"{")
    try:
        with pytest.raises(InputError, match=r"no finished job has it among its outputs.*1 records are damaged"):
            job.run()
    finally:
        own.write_bytes(whole)
    job.run()


@contextmanager
def without_records() -> Iterator[None]:
    """The results as they are copied without `tracking/`; the records are put back."""
    aside = RESULTS.with_name("records")
    (RESULTS / "tracking").rename(aside)
    try:
        yield
    finally:
        shutil.rmtree(RESULTS / "tracking", ignore_errors=True)
        aside.rename(RESULTS / "tracking")


def test_files_without_records_say_themselves_what_they_are(graph):
    """Two whole files exchanged, each of its rule's folder and format, in results without `tracking/`."""
    rng, kinds, tried = random.Random(2), defaultdict(list), defaultdict(int)
    for path in graph.files:
        kinds[path.parts[2], path.suffix].append(path)
    with without_records():
        for path in graph.files:
            readers = [job for job in graph.readers(path) if not _is_of_any_maker(job, path)]
            for case in corruption.swaps(path, kinds[path.parts[2], path.suffix], rng, 1) if readers else ():
                said = refusal(rng.choice(readers), case)
                assert "\n" not in said
                assert str(path.parent) in said, said
                tried[path.suffix] += 1
                shutil.rmtree(RESULTS / "tracking", ignore_errors=True)
    assert set(tried) == {".json", ".npz", ".png", ".csv", ".md", ".jsonl", ".safetensors", ".tar", ".parquet"}
    assert sum(tried.values()) > 80


def _is_of_any_maker(job: Job, path: Path) -> bool:
    """Thresholds: each says which mean patch length it is for, and is looked up by that wherever it lies."""
    return path.parent.name == "thresholds"


def test_whole_folders_exchanged_without_records_are_refused_and_others_are_read(graph):
    job = graph.of("compute_metrics", "dpar/seed0")
    made = RESULTS / "metrics/dpar/seed0.json"
    one, two, aside = RESULTS / "models/dpar/step2", RESULTS / "models/dpar/step4", RESULTS / "models/dpar/aside"
    before = sha256_file(made)
    with without_records():
        job.run()
        assert sha256_file(made) == before, "the same job writes the same bytes"
        Generator.from_pretrained(one, device="cpu")
        exchange(one, two, aside)
        try:
            with pytest.raises(
                InputError, match=r"was made by train_model\[dpar/step4\], expected is what train_model"
            ):
                Generator.from_pretrained(one, device="cpu")
            with pytest.raises(InputError, match=r"was made by train_model\[dpar/step2\]"):
                graph.of("evaluate_likelihood", "dpar/step4").run()
        finally:
            exchange(one, two, aside)


@pytest.mark.parametrize("records", [True, False])
def test_an_experiment_that_is_not_that_of_its_results_is_refused(graph, records):
    path, job = RESULTS / "experiment.json", graph.of("compute_metrics", "dpar/seed0")
    whole, settings = path.read_bytes(), read_json(path)
    with nullcontext() if records else without_records():
        try:
            write_json(path, settings | {"name": "other"})
            with pytest.raises(
                InputError, match=r"experiment\.json is that of the experiment 'other', in the results of"
            ):
                job.run()
            write_text(path, json.dumps(settings | {"seed": 5}))
            with pytest.raises(InputError, match=r"experiment\.json has lost its seal"):
                job.run()
        finally:
            path.write_bytes(whole)
        job.run()


def test_another_experiment_than_the_running_one_is_refused_by_its_jobs_alone(graph, monkeypatch, tmp_path):
    path, job = RESULTS / "experiment.json", graph.of("compute_metrics", "dpar/seed0")
    settings = read_json(path)
    monkeypatch.setenv(RUNNING, running(settings | {"seed": 5}, RESULTS))
    with pytest.raises(InputError, match=r"experiment\.json is not the experiment that is running"):
        job.run()
    monkeypatch.setenv(RUNNING, running(settings | {"seed": 5}, tmp_path))
    job.run()
    monkeypatch.setenv(RUNNING, running(settings, RESULTS))
    job.run()


def test_a_renamed_folder_of_results_is_read(graph, tmp_path):
    """By its records' name, or, where the experiment was renamed with it, by its own."""
    path = RESULTS.with_name("renamed")
    RESULTS.rename(path)
    try:
        assert check_settings(path / "experiment.json", by_job=True)["name"] == "tiny"
        whole = (path / "experiment.json").read_bytes()
        write_json(path / "experiment.json", read_json(path / "experiment.json") | {"name": "renamed"})
        assert check_settings(path / "experiment.json", by_job=True)["name"] == "renamed"
        (path / "experiment.json").write_bytes(whole)
    finally:
        path.rename(RESULTS)


def test_a_description_without_its_seal_is_refused_next_to_weights_that_had_one(graph, tmp_path, capsys):
    source = RESULTS / "models/dpar/step4"
    export.main([str(source), str(tmp_path / "out")])
    config = tmp_path / "out" / "config.json"
    whole, described = config.read_bytes(), read_json(config)
    described["provenance"]["threshold"] += 1
    for folder in (tmp_path / "out", tmp_path / "out" / "tokenizer", tmp_path / "out" / "entropy_model"):
        before = (folder / "config.json").read_bytes()
        write_text(folder / "config.json", json.dumps(read_json(folder / "config.json")))
        with pytest.raises(InputError, match=r"config\.json has lost its seal"):
            Generator.from_pretrained(tmp_path / "out", device="cpu")
        (folder / "config.json").write_bytes(before)
    config.write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"config\.json has lost its seal.*dpar track accept"):
        Generator.from_pretrained(tmp_path / "out", device="cpu")
    track.main(["accept", str(config)])
    Generator.from_pretrained(tmp_path / "out", device="cpu")
    config.write_bytes(whole)
    with without_records(), pytest.raises(InputError, match="has lost its seal"):
        job, path = graph.of("evaluate_likelihood", "dpar/step4"), source / "config.json"
        try:
            path.write_text(json.dumps(described))
            job.run()
        finally:
            path.write_bytes(whole)


def test_an_exports_files_belong_together(graph, tmp_path, capsys):
    """Descriptions of another milestone with their weights, networks of another export, edits of the experiment."""
    two, four = tmp_path / "two", tmp_path / "four"
    export.main([str(RESULTS / "models/dpar/step2"), str(two)])
    export.main([str(RESULTS / "models/dpar/step4"), str(four)])
    Generator.from_pretrained(four, device="cpu")
    model, tokenizer = ["config.json", "model.safetensors"], ["tokenizer/config.json"]
    whole = {name: (four / name).read_bytes() for name in [*model, *tokenizer, "experiment.json"]}
    other = {name: (two / name).read_bytes() for name in model}
    resolved = read_json(four / "experiment.json")
    edited = json.dumps(sealed(resolved | {"seed": resolved["seed"] + 1})).encode()
    for changed in (other, {"experiment.json": edited}, {tokenizer[0]: whole[tokenizer[0]].replace(b"{", b"{ ", 1)}):
        for name, content in changed.items():
            (four / name).write_bytes(content)
        with pytest.raises(InputError, match=r"is not what was exported with the files around it.*track accept"):
            Generator.from_pretrained(four, device="cpu")
        for name, content in whole.items():
            (four / name).write_bytes(content)
    (four / "tokenizer/config.json").rename(tmp_path / "aside")
    with pytest.raises(InputError):
        Generator.from_pretrained(four, device="cpu")
    (tmp_path / "aside").rename(four / "tokenizer/config.json")
    (four / "experiment.json").write_bytes(edited)
    track.main(["accept", str(four / "experiment.json")])
    assert "sealed as it is" in capsys.readouterr().out
    Generator.from_pretrained(four, device="cpu")
    (four / "experiment.json").unlink()
    Generator.from_pretrained(four, device="cpu")
    (four / "export.json").unlink()
    Generator.from_pretrained(four, device="cpu"), "one from before"


def test_models_and_exports_from_before_seals_draw_and_are_exported_with_them(graph, tmp_path):
    out = tmp_path / "out"
    export.main([str(RESULTS / "models/dpar/step4"), str(out)])
    digests = {}
    for name in ("tokenizer", "entropy_model", "."):  # each names the weights of those before it
        weights, config = out / name / "model.safetensors", out / name / "config.json"
        write_tensors(weights, load_file(weights))
        described, digests[name] = read_json(config), sha256_file(weights)
        known = {other: digests[other] for other in described["provenance"].keys() & digests.keys()}
        changed = {"sha256": digests[name], "provenance": described["provenance"] | known}
        write_text(config, json.dumps(described | changed))
    (out / "export.json").unlink()
    Generator.from_pretrained(out, device="cpu")
    export.main([str(out), str(tmp_path / "again")])
    Generator.from_pretrained(tmp_path / "again", device="cpu")
    assert is_sealed(tmp_path / "again" / "config.json")
    assert not is_sealed(out / "config.json")


def stripped(path: Path) -> bytes:
    """A file as before there were seals and statements, with the same content for whoever reads it."""
    whole = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(unmarked(json.loads(whole))).encode()
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            return whole[: len(whole) - 2 - len(archive.comment)] + b"\0\0"
    if path.suffix == ".png":
        out = io.BytesIO()
        with Image.open(path) as image:
            Image.fromarray(np.asarray(image)).save(out, "PNG")
        return out.getvalue()
    if path.suffix == ".parquet":
        table, out = pq.read_table(path), io.BytesIO()
        kept = {key: value for key, value in table.schema.metadata.items() if not key.startswith(b"made_")}
        pq.write_table(table.replace_schema_metadata(kept), out)
        return out.getvalue()
    if path.suffix == ".tar":
        return whole.replace(b"made_by", b"mode_by")  # the header's checksum is not of its content
    if path.suffix == ".md":
        return unstamped(whole.decode()).encode()
    if path.suffix == ".jsonl":
        return b"".join(json.dumps(unmarked(json.loads(line))).encode() + b"\n" for line in whole.splitlines())
    return whole


@pytest.mark.parametrize("records", ["none", "all but its own"])
def test_a_file_that_lost_its_marks_is_no_old_one_next_to_files_that_have_theirs(graph, records):
    """Of every format, where `tracking/` is gone, and where only what is known of this file is."""
    rng, formats = random.Random(3), defaultdict(list)
    for path in graph.files:
        if path.suffix != ".safetensors" and path.suffix != ".csv" and graph.readers(path):
            formats[path.suffix].append(path)
    assert set(formats) == {".json", ".npz", ".png", ".md", ".jsonl", ".tar", ".parquet"}
    with without_records() if records == "none" else nullcontext():
        for path in (path for found in formats.values() for path in rng.sample(found, min(3, len(found)))):
            job = next(job for job in graph.readers(path))
            with nullcontext() if records == "none" else without_own_record(path):
                said = refusal(job, Corruption(path, "no marks", stripped(path)))
            assert re.search(rf"{path.stem}\.\w+ has lost its (seal|statement)", said), said
            assert "track accept" in said
            assert "\n" not in said
            if records == "none":
                shutil.rmtree(RESULTS / "tracking", ignore_errors=True)


@contextmanager
def without_own_record(path: Path) -> Iterator[None]:
    """The results without the records of all jobs of the rule that made a file."""
    name = path.relative_to(RESULTS).as_posix()
    maker = Makers(RESULTS, keep=False).last(name)
    assert maker is not None
    rule, entry = RESULTS / "tracking/spool" / Path(maker.spool).parent, Makers(RESULTS)._entry(name)
    entry.unlink(missing_ok=True)
    rule.rename(RESULTS.with_name("rule"))
    try:
        yield
    finally:
        shutil.rmtree(rule, ignore_errors=True)
        RESULTS.with_name("rule").rename(rule)


def test_results_from_before_statements_are_read_without_records_and_go_on(graph, tmp_path):
    """All marks are gone, and `tracking/` is: the first job's new file makes no suspects of the old ones."""
    whole = {path: path.read_bytes() for path in [*graph.files, RESULTS / "experiment.json"]}
    table = graph.of("make_table", "comparison")
    try:
        with without_records():
            for path in whole:
                path.write_bytes(stripped(path))
            for job in [graph.of("compute_metrics", "dpar/seed0"), table] * 2:
                job.run()
            (RESULTS / "metrics/dpar/seed1.json").write_text("{}")  # of now, when others state their makers
            with pytest.raises(InputError, match=r"seed1\.json has lost its seal"):
                table.run()
    finally:
        for path, content in whole.items():
            path.write_bytes(content)


def test_what_was_made_from_other_files_than_are_here_is_refused_without_records(graph):
    """A model of the same name and settings, trained on other codes: its folder fits all but what it was made of."""
    path, job = RESULTS / "scored/train/manifest.json", graph.of("evaluate_likelihood", "dpar/step4")
    whole = path.read_bytes()
    with without_records():
        job.run()
        shutil.rmtree(RESULTS / "tracking")
        try:
            write_json(path, read_json(path) | {"another": 1})
            with pytest.raises(
                InputError, match=r"was made by train_model\[dpar/step4\] from another \S+/scored/train/manifest\.json"
            ):
                job.run()
            with pytest.raises(InputError, match=r"from another \S+/scored/train/manifest\.json.*track accept"):
                Generator.from_pretrained(RESULTS / "models/dpar/step4", device="cpu")
        finally:
            path.write_bytes(whole)


def test_a_renamed_cell_without_records_is_accepted_by_name(graph, capsys):
    old, new = RESULTS / "models/dpar/step4", RESULTS / "models/dpar/renamed"
    with without_records():
        old.rename(new)
        try:
            with pytest.raises(InputError, match=rf"made by train_model\[dpar/step4\], expected.*track accept {new}"):
                Generator.from_pretrained(new, device="cpu")
            track.main(["accept", str(new)])
            assert "accepted by hand" in capsys.readouterr().out
            Generator.from_pretrained(new, device="cpu")
        finally:
            new.rename(old)


def test_a_folder_that_was_renamed_alone_is_told_what_to_do(graph):
    path = RESULTS.with_name("renamed")
    with without_records():
        RESULTS.rename(path)
        try:
            with pytest.raises(
                InputError, match=r"name the folder 'tiny' again, or set `name: renamed` in the .* YAML"
            ):
                check_settings(path / "experiment.json", by_job=True)
        finally:
            path.rename(RESULTS)


def test_a_seal_made_by_hand_is_no_statement(graph):
    """Of records and what is kept of them nothing is left for this rule; the other seed's file says who made it."""
    path, job = RESULTS / "metrics/dpar/seed0.json", graph.of("make_table", "comparison")
    whole = path.read_bytes()
    found = read_json(path)
    found["values"]["frechet_distance"] = 1.0
    forged = [{"made_of": ["x"]}, {"made_of": {"../x": "0" * 16}}, {"made_of": {"features/reference.npz": 5}}, {}]
    with without_own_record(path):
        for more in forged:
            content = json.dumps(sealed(found, {"made_by": "compute_metrics[dpar,seed0]"} | more if more else None))
            said = refusal(job, Corruption(path, "sealed anew", content.encode()))
            assert "seed0.json has lost its statement" in said
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["tracking", "tracking/spool", "tracking/makers"])
def test_a_file_in_the_place_of_the_records_is_one_line(graph, name):
    place, aside = RESULTS / name, RESULTS.with_name("aside")
    place.rename(aside)
    try:
        place.write_text("x")
        with pytest.raises(InputError, match=r"a file is where its folder should be|cannot record the job") as caught:
            graph.of("compute_metrics", "dpar/seed0").run()
        assert "\n" not in str(caught.value)
    finally:
        place.unlink()
        aside.rename(place)
    graph.of("compute_metrics", "dpar/seed0").run()
