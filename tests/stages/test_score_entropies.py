"""A shard gains the entropies of its own tokens, in full precision, whatever the batch."""

import numpy as np
import pytest
import torch

from dpar.data.shards import CodeRows, read_shard, write_shard
from dpar.errors import InputError
from dpar.model.entropy import next_token_entropy
from dpar.model.variants import build_model
from dpar.stages import score_entropies
from dpar.train import scoring
from dpar.train.scoring import score
from dpar.weights import model_config, save_model
from tests.rehearsal import rehearsing
from tests.train.tiny import CLASSES, GRID, VOCAB, Results, code_rows, experiment_values, transformer


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path)
    results.set(experiment_values())
    return results


def entropy_model(results, *, classes=None, tokenizer="f" * 64):
    torch.manual_seed(0)
    model = build_model(transformer("llamagen"), vocab_size=VOCAB, grid=GRID, num_classes=classes).eval()
    with torch.no_grad():
        model.output.weight.normal_()
    save_model(results.folder / "entropy_model", model, {"tokenizer": tokenizer} if tokenizer else {})
    return model


def flags(results, suffix=".parquet"):
    if not (results.folder / f"00000{suffix}").exists():
        write_shard(results.folder / f"00000{suffix}", code_rows(scored=False))
    paths = {
        "experiment": results.folder / "experiment.json",
        "shard": results.folder / f"00000{suffix}",
        "entropy-model": results.folder / "entropy_model",
        "output": results.folder / "scored" / f"00000{suffix}",
    }
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_entropies_are_those_of_each_image_alone(results, suffix):
    model = entropy_model(results)
    score_entropies.main(flags(results, suffix))
    rows = read_shard(results.folder / "scored" / f"00000{suffix}")
    before = code_rows(scored=False)
    for name in ("tokens", "labels", "images", "views"):
        assert np.array_equal(getattr(rows, name), getattr(before, name))
    assert rows.metadata.entropy_model == model_config(results.folder / "entropy_model")["sha256"]
    assert rows.entropy.dtype == np.float32
    assert np.isposinf(rows.entropy[:, 0]).all()
    for tokens, entropy in zip(rows.tokens[:3], rows.entropy[:3], strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens.astype(np.int64))[None])
        assert entropy[1:] == pytest.approx(next_token_entropy(logits)[0].numpy(), rel=1e-5)


def test_a_class_conditional_model_is_asked_through_its_null_class(results):
    model = entropy_model(results, classes=CLASSES, tokenizer=None)
    values = experiment_values()
    values["entropy_model"]["kind"] = "null_class"
    results.set(values)
    score_entropies.main(flags(results))
    rows = read_shard(results.folder / "scored" / "00000.parquet")
    tokens = torch.from_numpy(rows.tokens.astype(np.int64))
    with torch.no_grad():
        logits = model(tokens, torch.full((len(tokens),), CLASSES))
    assert rows.entropy[:, 1:] == pytest.approx(next_token_entropy(logits)[:, 1:].numpy(), rel=1e-5)


def test_a_row_has_the_same_entropies_to_the_bit_in_a_shard_of_any_size(results):
    model, tokens = entropy_model(results), code_rows(scored=False).tokens
    whole = score(model, tokens, "unconditional")
    for sizes in ([1, len(tokens) - 1], [5, 3, len(tokens) - 8]):
        parts = np.split(tokens, np.cumsum(sizes)[:-1])
        assert all(map(len, parts))
        scored = [score(model, part, "unconditional") for part in parts]
        assert np.array_equal(np.concatenate(scored), whole)


def test_batches_of_any_size_give_the_same_entropies_but_for_rounding(results, monkeypatch):
    model, tokens = entropy_model(results), code_rows(scored=False).tokens
    whole = score(model, tokens, "unconditional")
    monkeypatch.setattr(scoring, "images_at_once", lambda *_: 3)
    parts = score(model, tokens, "unconditional")
    np.testing.assert_allclose(parts[:, 1:], whole[:, 1:], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "tokenizer", "message"),
    [("unconditional", "0" * 64, "tokenizer"), ("null_class", "f" * 64, "has no class token")],
)
def test_a_model_of_something_else_is_refused_and_nothing_is_written(results, kind, tokenizer, message):
    entropy_model(results, tokenizer=tokenizer)
    values = experiment_values()
    values["entropy_model"]["kind"] = kind
    results.set(values)
    with pytest.raises(InputError, match=message):
        score_entropies.main(flags(results))
    assert not (results.folder / "scored" / "00000.parquet").exists()


def test_entropies_that_are_not_finite_are_refused(results):
    model = entropy_model(results)
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    save_model(results.folder / "entropy_model", model, {})
    with pytest.raises(InputError, match="not finite"):
        score_entropies.main(flags(results))
    assert not (results.folder / "scored" / "00000.parquet").exists()


def test_a_shard_that_is_scored_already_is_scored_again(results):
    entropy_model(results)
    arguments = flags(results)
    rows = code_rows(scored=True)
    write_shard(results.folder / "00000.parquet", CodeRows(**vars(rows)))
    score_entropies.main(arguments)
    again = read_shard(results.folder / "scored" / "00000.parquet")
    assert again.metadata.entropy_model == model_config(results.folder / "entropy_model")["sha256"]
    assert not np.array_equal(again.entropy, rows.entropy)


def with_precision(results, precision):
    values = experiment_values()
    values["entropy_model"]["precision"] = precision
    results.set(values)


def test_a_precision_is_computed_with_and_recorded(results):
    """In bfloat16 the weights are rounded; TF32 is float32 on a CPU, and codes of one precision are alike."""
    model = entropy_model(results)
    found = {}
    for precision in ("float32", "tf32", "bfloat16"):
        with_precision(results, precision)
        score_entropies.main(flags(results))
        found[precision] = read_shard(results.folder / "scored/00000.parquet")
    assert {name: rows.metadata.entropy_precision for name, rows in found.items()} == {
        "float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"
    }  # fmt: skip
    assert np.array_equal(found["tf32"].entropy, found["float32"].entropy)
    rounded = score(model.bfloat16(), code_rows(scored=False).tokens, "unconditional")
    assert np.array_equal(found["bfloat16"].entropy, rounded)
    assert not np.array_equal(rounded, found["float32"].entropy)


def test_products_are_tf32_on_a_gpu_and_recorded_so(results, monkeypatch):
    entropy_model(results)
    seen = []
    entropies = scoring.token_entropies
    monkeypatch.setattr(
        scoring,
        "token_entropies",
        lambda *given: seen.append(torch.backends.cuda.matmul.allow_tf32) or entropies(*given),
    )
    for precision in ("tf32", "float32"):
        with_precision(results, precision)
        with rehearsing():
            score_entropies.main(flags(results))
        assert read_shard(results.folder / "scored/00000.parquet").metadata.entropy_precision == precision
    assert seen == [True, False]
