"""The training benchmark: what it says of a tiny pair is true; how fast that pair is does not matter."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpar.benchmarks import train
from dpar.benchmarks.made_up import made_up_codes
from dpar.commands import bench
from dpar.data.loader import batches
from dpar.errors import InputError
from dpar.experiment.settings import VARIANTS, Training, Transformer
from dpar.model.flops import count_linear_macs
from dpar.model.variants import build_model
from dpar.patches.calibration import calibrate
from dpar.patches.rule import patch_starts
from dpar.train import loop

CPU = torch.device("cpu")
WIDTH, TURNS, BATCH = 32, 2, 3
SIZES = {
    "DPAR": {"architecture": "dpar", "width": WIDTH, "heads": 2, "encoder_layers": 1, "layers": 2, "decoder_layers": 1},
    "LlamaGen": {"architecture": "llamagen", "width": WIDTH, "heads": 2, "layers": 3},
}


def tiny_plan(**training) -> train.Plan:
    """4 x 4 tokens."""
    settings = {"steps": 1, "batch_size": BATCH, "precision": "float32"}
    return train.Plan(
        dpar=Transformer.model_validate(SIZES["DPAR"]),
        llamagen=Transformer.model_validate(SIZES["LlamaGen"]),
        resolution=64,
        p_avg=1.81,
        training=Training.model_validate(settings | training),
        turns=TURNS,
        attention=("sdpa", "varlen", "xformers", "flex"),
    )


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "xformers.ops", None)
        return train.measure(tiny_plan(), CPU)


def test_the_headline_is_that_of_its_row(found):
    llamagen, dpar = found["steps"]
    assert (dpar["model"], dpar["attention"], llamagen["model"]) == ("DPAR", "sdpa", "LlamaGen")
    assert llamagen["time_ratio"] == llamagen["flop_ratio"] == 1
    assert all(found[name] == dpar[name] for name in ("time_ratio", "time_ratio_quartiles", "flop_ratio"))
    assert found["time_over_flops"] == pytest.approx(found["time_ratio"] / found["flop_ratio"])
    for row in found["steps"]:
        assert row["tokens_per_s"] == pytest.approx(1000 * BATCH * 16 / row["step_ms"])
        assert row["step_ms_quartiles"][0] <= row["step_ms"] <= row["step_ms_quartiles"][1]
        assert set(row["shares"]) == {"forward", "backward", "optimizer", "rest"}
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["mfu"] is None
    assert set(found["preparation"]) == {"data", "patchify", "packing"}
    assert all(part["ms"] > 0 for part in found["preparation"].values())
    assert found["conditions"]["threads"] == torch.get_num_threads()
    assert found["conditions"]["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_the_flop_ratio_is_counted_on_the_batches_of_the_counted_steps(found, tmp_path):
    """Linear layers counted while they run on each of these images, attention pair by pair."""
    codes = made_up_codes(tmp_path, images=1024, resolution=64)
    threshold = calibrate(codes.entropy[:, 0], 1.81, max_length=4, grid_width=4)
    with torch.device("meta"):
        models = {
            name: build_model(Transformer.model_validate(sizes), vocab_size=16384, grid=(4, 4), num_classes=1000)
            for name, sizes in SIZES.items()
        }
    tokens, label = torch.zeros(1, 16, dtype=torch.long, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    pairs = {n: sum(range(1, n + 1)) for n in range(17)}
    costs, patches = [], []
    for batch in batches(codes, batch_size=BATCH, seed=0):
        if batch.step < 2:  # to warm up
            continue
        if batch.step == 2 + TURNS:
            break
        for starts in patch_starts(batch.entropy, threshold=threshold, max_length=4, grid_width=4):
            m = int(starts.sum())
            linear = count_linear_macs(models["DPAR"], tokens, label, starts[None])
            costs.append(linear + 2 * WIDTH * (pairs[15] + 15 + 2 * pairs[m] + pairs[16]))
            patches.append(m)
    llamagen = count_linear_macs(models["LlamaGen"], tokens, label) + 2 * WIDTH * 3 * pairs[16]
    assert len(costs) == TURNS * BATCH
    assert found["flop_ratio"] == pytest.approx(np.mean(costs) / llamagen, rel=1e-12)
    assert found["shapes"]["patches_mean"] == pytest.approx(np.mean(patches))
    assert found["shapes"]["p_avg"] == pytest.approx(np.mean(16 / np.array(patches)))


def test_what_cannot_train_here_is_named_with_its_reason(found):
    if torch.cuda.is_available():
        pytest.skip("the reasons are those of a CPU")
    said = found["attention"]
    assert said["sdpa"] == "timed"
    assert "_flash_attention_forward" in said["varlen"]
    assert "xformers" in said["xformers"]
    assert "backward on CPU" in said["flex"]
    assert all(f"{backend} cannot train here" in train.table(found) for backend in ("varlen", "xformers", "flex"))
    with pytest.raises(InputError, match=r"no packed attention .* varlen: .*_flash_attention_forward.*; flex: "):
        train.measure(replace(tiny_plan(), attention=("varlen", "flex")), CPU)


def test_the_steps_are_the_trainers_own(monkeypatch):
    taken, advance = [], loop.Trainer.advance

    def spy(trainer, stream):
        before = (
            trainer.model.output.weight if hasattr(trainer.model, "output") else trainer.model.decoder.output.weight
        )
        before = before.detach().clone()
        advance(trainer, stream)
        after = trainer.model.state_dict()
        assert not torch.equal(before, after.get("output.weight", after.get("decoder.output.weight")))
        taken.append(type(trainer.model).__name__)

    monkeypatch.setattr(loop.Trainer, "advance", spy)
    train.measure(replace(tiny_plan(accumulate=3), attention=("sdpa",)), CPU)
    assert taken[:4] == ["LlamaGen", "LlamaGen", "DPAR", "DPAR"]  # to warm up
    assert taken[4 : 4 + 2 * TURNS] == ["LlamaGen", "DPAR"] * TURNS
    assert taken.count("DPAR") == taken.count("LlamaGen")


def test_compiled_code_is_timed_beside_eager_code(monkeypatch):
    compiled = []

    def backend(graph, inputs):
        def run(*args):
            compiled.append(True)
            return graph(*args)

        return run

    def compile_all(model, *_):
        for layer in model.modules():
            if type(layer).__name__ == "FeedForward":
                layer.compile(backend=backend, dynamic=True)

    monkeypatch.setattr(loop, "compile_blocks", compile_all)
    ran, take = [], train.Variant.take

    def spy(variant, steps):
        compiled.clear()
        take(variant, steps)
        ran.append((variant.name, variant.compiled, bool(compiled)))

    monkeypatch.setattr(train.Variant, "take", spy)
    found = train.measure(replace(tiny_plan(compile=True), attention=("sdpa",)), CPU)
    assert {(name, was) for name, _, was in ran} == {
        ("LlamaGen", False), ("LlamaGen compiled", True), ("DPAR sdpa", False), ("DPAR sdpa compiled", True),
    }  # fmt: skip
    headline = [row for row in found["steps"] if row["model"] == "DPAR" and row["compiled"]]
    assert [row["time_ratio"] for row in headline] == [found["time_ratio"]]


def test_the_command_prints_json_and_a_table_for_people(monkeypatch, capsys):
    for name, sizes in SIZES.items():
        monkeypatch.setitem(VARIANTS, f"{name}-T", sizes)
    flags = "--size T --resolution 64 --batch-size 2 --turns 1 --attention sdpa --device cpu --json"
    bench.main(["train", *flags.split()])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert {"time_ratio", "flop_ratio", "table8_ratio"} <= set(found)
    assert f"**{found['time_ratio']:.3f}**" in said.err
    assert found["shapes"]["models"] == ["LlamaGen-T", "DPAR-T"]
    with pytest.raises(SystemExit):
        bench.main(["train", "--size", "nothing"])
    with pytest.raises(SystemExit):
        bench.main(["swim"])


@pytest.mark.gpu
def test_a_step_never_waits_for_the_gpu():
    """PyTorch raises at each call that would hold the process until the device is done."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    plan, waits = replace(tiny_plan(precision="bfloat16"), attention=("varlen",)), []
    advance = loop.Trainer.advance

    def strict(trainer, stream):
        given = next(stream)  # made on the host, by another thread
        if trainer.step:  # the first step makes the optimizer's state
            torch.cuda.set_sync_debug_mode("error")
        try:
            advance(trainer, iter([given]))
            waits.append(trainer.step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "advance", strict)
        train.measure(plan, torch.device("cuda", 0))
    assert max(waits) > 2
