"""The sampling benchmark says what is true of tiny networks; no time is expected of it."""

import json
from dataclasses import replace

import pytest
import torch

from dpar.benchmarks import literal_cost
from dpar.benchmarks import sample as benchmark
from dpar.benchmarks.sample import main
from dpar.errors import InputError
from dpar.model.dpar import DPAR
from dpar.model.flops import sampling_gmacs
from dpar.model.llamagen import LlamaGen
from dpar.sampling.sampler import sample
from tests.benchmarks.tiny import TINY
from tests.recorded import stand_in_for_graphs
from tests.rehearsal import rehearsing


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(benchmark, "DEMO", TINY)
    monkeypatch.setattr(literal_cost, "PIECES", 2)


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
    assert found["conditions"]["seconds_of"] in ("wall", "processor")
    assert "Algorithm 2 as written" in shown.err


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

    def sampled(model, gate, **given):
        seen.append((len(given["labels"]), type(model), given["settings"].compile))
        return sample(model, gate, **given | {"settings": replace(given["settings"], compile=False)})

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


@pytest.mark.parametrize("works", [True, False])
def test_a_gpu_is_timed_captured_and_launched(tiny, capsys, monkeypatch, works):
    """In rehearsal: both take turns, and it is said whether what was captured is what was timed."""
    drawn = []

    def sampled(model, gate, **given):
        result = sample(model, gate, **given)  # the first tokens of a warm-up end in an exception
        drawn.append((type(model), given["store"], given["settings"].entropy_precision))
        return result

    few = {
        name: getattr(TINY, name).model_copy(update={"grid": (2, 3)}) for name in ("dpar", "entropy_model", "llamagen")
    }
    monkeypatch.setattr(benchmark, "DEMO", replace(TINY, **few, batches=(3,), literal=(3,), whole=False))
    monkeypatch.setattr(benchmark, "sample", sampled)
    graphs = stand_in_for_graphs(monkeypatch) if works else []
    with rehearsing():
        main(["--json", "--size", "demo", "--precision", "float32"])
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    (e,) = found["models"]["demo"]["engine"]
    assert e["captured"] == works == bool(graphs)
    assert not e["launched"]["captured"]
    assert e["launched"]["over_llamagen"] > 0
    for kind in (DPAR, LlamaGen):
        stores = [store for model, store, _ in drawn if model is kind]
        assert len({store for store in stores if store is not None}) == 1, "graphs are made anew in each turn"
        assert stores.count(None) == 1 + (kind is DPAR), "once in the turn, once watched"
        assert len(stores) - stores.count(None) == 3, "once to launch, once to capture, once in the turn"
    assert {precision for _, _, precision in drawn} == {"tf32"}
    assert found["conditions"]["gate_precision"] == "tf32"
    assert ("sampler, graphs" in shown.err) == works
    assert "sampler, launched" in shown.err
