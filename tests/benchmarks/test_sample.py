"""The sampling benchmark says what is true of tiny networks; no time is expected of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpar.benchmarks import sample as benchmark
from dpar.benchmarks.sample import CallCost, Sizes, Timings, fitted, gpu_costs, made_up_entropies, main, schedules
from dpar.config import Autoencoder, Patchify
from dpar.errors import InputError
from dpar.evaluation.flops import sampling_gmacs
from dpar.model.dpar import DPAR, DPARConfig
from dpar.model.llamagen import LlamaGen, LlamaGenConfig
from dpar.sampling.sampler import sample
from dpar.sampling.schedule import PARTS

_SIZES = {"vocab_size": 40, "grid": (4, 4), "width": 32, "heads": 2}
TINY = Sizes(
    DPARConfig(**_SIZES, num_classes=3, layers=1, decoder_layers=1),
    LlamaGenConfig(**_SIZES, layers=1),
    LlamaGenConfig(**_SIZES, num_classes=3, layers=2),
    Autoencoder(vocab_size=40, channels=8, multipliers=(1, 1), residual_blocks=1, z_channels=8, groups=1,
                code_dim=4, attention=False, pixel_shuffle=1),
    p_avg=1.81,
    batches=(2, 16),
    literal=(16,),
    turns=1,
    whole=True,
    compiled=False,
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(benchmark, "DEMO", TINY)
    monkeypatch.setattr(benchmark, "PIECES", 2)
    monkeypatch.setattr(benchmark, "gpu_costs", dict)
    monkeypatch.setattr(benchmark, "made_up_entropies", lambda: made_up_entropies(512, 4))


def test_what_it_says_of_tiny_networks(tiny, capsys):
    main(["--json", "--size", "demo"])
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    model = found["models"]["demo"]
    assert found["speedup_over_literal"] == model["speedup_over_literal"] > 0
    assert model["speedup_over_literal"] == max(model["speedup_over_literal_by_batch"].values())
    assert found["over_gmacs_ratio"] == model["over_gmacs_ratio"] == max(e["over_gmacs_ratio"] for e in model["engine"])
    for e, batch in zip(model["engine"], TINY.batches, strict=True):
        assert e["batch"] == batch
        assert e["over_llamagen"] == pytest.approx(e["images_per_s"] / e["llamagen_images_per_s"])
        assert e["patch_transformer_calls"] * e["patch_transformer_rows_per_call"] == pytest.approx(
            2 * batch * e["mean_patches"]
        )
        assert 1 <= 16 / e["mean_patches"] <= 4
        assert sum(e["shares"].values()) == pytest.approx(1)
        assert e["shares"]["pixels"] > 0
        assert e["llamagen_gmacs_per_image"] == pytest.approx(sampling_gmacs(TINY.llamagen))
        assert e["inverse_gmacs_ratio"] == pytest.approx(e["llamagen_gmacs_per_image"] / e["gmacs_per_image"])
        assert e["over_gmacs_ratio"] == pytest.approx(e["over_llamagen"] / e["inverse_gmacs_ratio"])
    (plain,) = model["literal"]
    assert plain["batch"] == 16
    assert plain["patch_transformer_calls"] == model["engine"][1]["patch_transformer_calls"]
    assert plain["speedup"] == pytest.approx(model["engine"][1]["images_per_s"] / plain["images_per_s"])
    assert model["images_that_differ"]["float64"] == 0
    assert set(found["schedules"]["speed_over_lock_step"]) == {"cpu, demo"}
    assert found["conditions"]["seconds_of"] in ("wall", "processor")
    assert "Algorithm 2 as written" in shown.err
    assert "speed over lock-step" in shown.err


def test_without_guidance_and_in_half_precision(tiny, capsys, monkeypatch):
    """One branch is computed and counted, and both models are in the precision that is asked for."""
    monkeypatch.setattr(benchmark, "DEMO", replace(TINY, whole=False))
    seen = []

    def sampled(model, gate, **settings):
        seen.append((model.tok_embeddings.weight.dtype, gate.tok_embeddings.weight.dtype))
        return sample(model, gate, **settings)

    monkeypatch.setattr(benchmark, "sample", sampled)
    main(["--json", "--size", "demo", "--cfg", "1", "--precision", "bfloat16", "--batches", "3", "--turns", "2"])
    found = json.loads(capsys.readouterr().out)
    assert found["conditions"]["precision"] == "bfloat16"
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    (e,), (plain,) = found["models"]["demo"]["engine"], found["models"]["demo"]["literal"]
    assert e["batch"] == plain["batch"] == plain["patch_transformer_rows_per_call"] == 3
    assert e["llamagen_gmacs_per_image"] == pytest.approx(sampling_gmacs(TINY.llamagen, guided=False))
    assert e["patch_transformer_calls"] * e["patch_transformer_rows_per_call"] == pytest.approx(3 * e["mean_patches"])


def test_compiled_code_is_timed_beside(tiny, capsys, monkeypatch):
    seen = []

    def sampled(model, gate, compile=False, **settings):
        seen.append((len(settings["labels"]), type(model), compile))
        return sample(model, gate, **settings)

    monkeypatch.setattr(benchmark, "DEMO", replace(TINY, batches=(1, 16), whole=False))
    monkeypatch.setattr(benchmark, "sample", sampled)
    main(["--json", "--size", "demo", "--compile"])
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    model = found["models"]["demo"]
    single, batch = model["engine"]
    assert "compiled" not in single
    compiled = batch["compiled"]
    assert compiled["over_llamagen"] == pytest.approx(compiled["images_per_s"] / compiled["llamagen_images_per_s"])
    assert compiled["over_gmacs_ratio"] == pytest.approx(compiled["over_llamagen"] / batch["inverse_gmacs_ratio"])
    assert compiled["first_draws_seconds"] > 0
    (plain,) = model["literal"]
    assert plain["speedup_compiled"] == pytest.approx(compiled["images_per_s"] / plain["images_per_s"])
    assert found["speedup_over_literal_compiled"] == {"demo": plain["speedup_compiled"]}
    for kind in (DPAR, LlamaGen):
        assert seen.count((16, kind, True)) == 2, "once to compile, once a turn"
        assert (1, kind, True) not in seen
    assert "sampler, compiled" in shown.err


def test_llamagens_own_code_takes_turns(tiny, tmp_path, capsys, monkeypatch):
    drawn = []

    def opponent(folder, model, cfg_scale):
        assert (folder, model.config, cfg_scale) == (tmp_path, TINY.llamagen, 2.0)
        return drawn.append

    monkeypatch.setattr(benchmark, "DEMO", replace(TINY, whole=False, turns=2))
    monkeypatch.setattr(benchmark, "own_sampler", opponent)
    main(["--json", "--size", "demo", "--llamagen", str(tmp_path)])
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["conditions"]["llamagens_own_code"] == {"commit": None, "compiled": False}
    for e in found["models"]["demo"]["engine"]:
        assert drawn.count(e["batch"]) == 3, "once to warm up, once a turn"
        own = e["llamagens_own_code"]
        assert set(own) == {"images_per_s", "over_it"}
        assert own["over_it"] < 1, "it did nothing"
    assert "LlamaGen, own code" in shown.err


def test_flags_choose_pairs_of_table_1():
    args = benchmark.parser().parse_args(["--size", "demo", "XL", "--resolution", "384", "--batches", "64", "128"])
    pairs = benchmark.chosen(args)
    assert pairs["demo"].dpar == benchmark.DEMO.dpar
    for sizes in pairs.values():
        assert (sizes.batches, sizes.literal) == ((64, 128), (64,))
    big = pairs["XL"]
    assert (big.dpar.width, big.dpar.layers, big.dpar.grid, big.p_avg) == (1280, 30, (24, 24), 2.06)
    assert (big.llamagen.layers, big.llamagen.num_classes) == (36, 1000)
    assert (big.entropy_model.layers, big.entropy_model.width, big.entropy_model.num_classes) == (12, 768, None)


def test_both_take_turns_and_the_last_to_go_goes_first(monkeypatch):
    order = []
    monkeypatch.setattr(benchmark, "timed", lambda work, device: (work(), None))
    works = [lambda: order.append("a") or 1.0, lambda: order.append("b") or 2.0]
    assert benchmark.in_turns(works, 3, torch.device("cpu")) == [[1.0] * 3, [2.0] * 3]
    assert "".join(order) == "abbaab"


def test_a_warm_up_is_the_beginning_of_a_draw():
    networks, threshold = benchmark.untrained(TINY, torch.device("cpu"))
    how = {"patchify": Patchify(threshold=threshold, max_length=4), "threshold": threshold, "cfg_scale": 2.0}
    request, calls = benchmark._request(2, TINY, torch.device("cpu")), []
    handle = networks.model.decoder.output.register_forward_hook(lambda *_: calls.append(1))
    benchmark.begun(lambda observe: sample(networks.model, networks.entropy_model, **request, **how, observe=observe))
    handle.remove()
    assert len(calls) == benchmark.WARM_UP < 16


def test_batches_beyond_the_memory_end_the_list(tiny, capsys, monkeypatch):
    def sampled(model, gate, **settings):
        if len(settings["labels"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return sample(model, gate, **settings)

    monkeypatch.setattr(benchmark, "DEMO", replace(TINY, literal=(2,), whole=False))
    monkeypatch.setattr(benchmark, "sample", sampled)
    main(["--json", "--size", "demo"])
    shown = capsys.readouterr()
    assert [e["batch"] for e in json.loads(shown.out)["models"]["demo"]["engine"]] == [2]
    assert "16 images at a time do not fit the memory" in shown.err
    with pytest.raises(InputError, match="16 images at a time do not fit the memory; give fewer: --batches"):
        main(["--size", "demo", "--batches", "16"])


def test_watching_counts_what_the_sampler_computes():
    device = torch.device("cpu")
    networks, threshold = benchmark.untrained(TINY, device)
    patchify = Patchify(threshold=threshold, max_length=4)
    request = benchmark._request(5, TINY, device)
    with benchmark.watched(networks) as timing:
        timing.total, result = benchmark.timed(
            lambda: sample(
                networks.model, networks.entropy_model, **request, patchify=patchify, threshold=threshold, cfg_scale=2.0
            ),
            device,
        )
    assert timing.rows["patch_transformer"] == result.starts.sum()
    assert timing.calls["patch_transformer"] == result.starts.any(0).sum()
    assert timing.calls["decoder"] == 16
    assert timing.calls["encoder"] == timing.calls["entropy_model"] == 15
    assert timing.rows["decoder"] == 5 * 16
    assert min(timing.seconds.values()) > 0
    assert sum(timing.seconds.values()) < timing.total
    assert not networks.model.decoder.output._forward_hooks


def test_the_cost_of_a_call_and_of_an_image_is_found_again():
    cost = {part: CallCost(0.01 * (i + 1), 0.002 * (i + 1)) for i, part in enumerate(PARTS)}
    timings = []
    for calls, rows in ((64, 64), (64, 900), (60, 9000)):
        timing = Timings(calls=dict.fromkeys(PARTS, calls), rows=dict.fromkeys(PARTS, rows))
        timing.seconds = {p: calls * cost[p].fixed + rows * cost[p].per_image for p in PARTS}
        timings.append(timing)
    for part, found in fitted(timings).items():
        assert found.fixed == pytest.approx(cost[part].fixed)
        assert found.per_image == pytest.approx(cost[part].per_image)


def test_the_assumed_gpu_reads_every_weight_once_a_call():
    costs = gpu_costs()["GPU (assumed), DPAR-B, in a graph"]
    with torch.device("meta"):
        gate = LlamaGen(benchmark.table1("B", 256).entropy_model)
    weights = sum(p.numel() for name, p in gate.named_parameters() if p.ndim == 2 and "embeddings" not in name)
    assert costs["entropy_model"].fixed == pytest.approx(2 * weights / benchmark.BANDWIDTH)
    launched = gpu_costs()["GPU (assumed), DPAR-B, launched one by one"]
    assert launched["entropy_model"].fixed - costs["entropy_model"].fixed == pytest.approx(
        gate.config.layers * benchmark.KERNELS * benchmark.LAUNCH
    )


def test_made_up_entropies_have_the_papers_patches_and_a_spread():
    found = schedules(made_up_entropies(), {})
    assert found["mean_patch_length"] == pytest.approx(1.81, abs=0.005)
    few, median, many = found["patches_percentiles"].values()
    assert few < 0.6 * median
    assert many > 1.4 * median


def test_a_file_of_entropies_takes_their_place(tiny, tmp_path, capsys, monkeypatch):
    costs = {part: CallCost(1.0, 0.1) for part in PARTS}
    found = {"speedup_over_literal": 1.0, "speedup_over_literal_compiled": None, "over_gmacs_ratio": 1.0}
    monkeypatch.setattr(benchmark, "measure", lambda *_: {**found, "costs": costs})
    monkeypatch.setattr(benchmark, "table", lambda _: "")
    np.save(tmp_path / "entropy.npy", made_up_entropies(128, 4))
    main(["--json", "--size", "demo", "--entropies", str(tmp_path / "entropy.npy")])
    found = json.loads(capsys.readouterr().out)["schedules"]
    assert found["images"] == 128
    assert list(found["speed_over_lock_step"]["cpu, demo"]) == ["16", "64"]
    with pytest.raises(InputError, match="does not exist"):
        main(["--entropies", str(tmp_path / "missing.npy")])
