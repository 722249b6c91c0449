import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from dpar.model.llamagen import LlamaGen
from tests.model.tiny import SIZES, VOCAB, tiny_batch, tiny_llamagen
from tests.oracles.model import llamagen_logits


@pytest.mark.parametrize("grid", [(3, 4), (5, 2), (1, 2)])
@pytest.mark.parametrize("num_classes", [3, None])
def test_logits_are_the_literal_ones(float64, grid, num_classes):
    model, (tokens, labels) = tiny_llamagen(grid, num_classes, layers=2), tiny_batch(3, grid)
    logits = model(tokens, labels) if num_classes else model(tokens)
    assert logits.shape == (3, grid[0] * grid[1] - (num_classes is None), VOCAB)
    for image, label, found in zip(tokens.tolist(), labels.tolist(), logits, strict=True):
        label = label if num_classes else None
        torch.testing.assert_close(found, llamagen_logits(model.state_dict(), image, label, grid[1], heads=2))


@pytest.mark.parametrize("num_classes", [3, None])
def test_first_loss_is_exactly_ln_v(float64, num_classes):
    torch.manual_seed(0)
    model, (tokens, labels) = LlamaGen(LlamaGen.Config(grid=(3, 4), num_classes=num_classes, **SIZES)), tiny_batch(2)
    logits = model(tokens, labels) if num_classes else model(tokens)
    assert not logits.any()
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, -logits.shape[1] :].flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), rel=1e-14)


def test_no_logit_depends_on_the_token_it_predicts_or_later_ones(float64):
    model, (tokens, labels) = tiny_llamagen(layers=2), tiny_batch(2)
    before = model(tokens, labels)
    tokens[0, 5] = (tokens[0, 5] + 1) % VOCAB
    changed = (model(tokens, labels) != before).any(-1)
    assert changed[0].tolist() == [t > 5 for t in range(12)]
    assert not changed[1].any()


def test_names_are_those_of_the_official_files():
    block = ["attention.wqkv", "attention.wo", "attention_norm", "ffn_norm"]
    block += [f"feed_forward.w{i}" for i in (1, 2, 3)]
    names = ["cls_embedding.embedding_table", "tok_embeddings", "norm", "output"]
    names += [f"layers.{i}.{part}" for i in range(2) for part in block]
    assert sorted(tiny_llamagen(layers=2).state_dict()) == sorted(f"{name}.weight" for name in names)


def test_the_null_class_is_the_last_row():
    model = tiny_llamagen()
    assert model.null_label == 3
    assert len(model.cls_embedding.embedding_table.weight) == 4
    with pytest.raises(ValueError, match="no null label"):
        _ = tiny_llamagen(num_classes=None).null_label


def test_labels_are_given_to_a_conditional_model_and_to_no_other():
    tokens, labels = tiny_batch(2)
    for model, given in ((tiny_llamagen(), None), (tiny_llamagen(num_classes=None), labels)):
        with pytest.raises(AssertionError, match="go together"):
            model(tokens, given)


def test_dropout_acts_in_training_only():
    model, (tokens, labels) = tiny_llamagen(dropout=0.5), tiny_batch(2)
    assert torch.equal(model(tokens, labels), model(tokens, labels))
    model.train()
    assert not torch.equal(model(tokens, labels), model(tokens, labels))
    seen = []
    model.layers[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(tokens, labels)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_bf16_keeps_positions_and_logits_in_fp32():
    model = tiny_llamagen().bfloat16()
    assert model.rope().dtype == torch.float32
    assert model(*tiny_batch(2)).dtype == torch.float32


def test_gradients_reach_every_weight():
    model, (tokens, labels) = tiny_llamagen(layers=2), tiny_batch(2)
    F.cross_entropy(model(tokens, labels).flatten(0, 1), tokens.flatten()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 40}, "whole multiple of 16"),
        ({"heads": 3}, "whole multiple of 16"),
        ({"grid": (1, 1)}, "at least two tokens"),
        ({"layers": 0}, "greater than 0"),
        ({"depth": 3}, "Extra inputs"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValidationError, match=message):
        LlamaGen.Config(**({"grid": (3, 4)} | SIZES | sizes))
