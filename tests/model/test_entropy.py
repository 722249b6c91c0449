import math

import pytest
import torch

from dpar.errors import InputError
from dpar.model.entropy import next_token_entropy, token_entropies
from tests.model.tiny import tiny_batch, tiny_llamagen, tiny_regressor
from tests.oracles.model import llamagen_logits


def literal_entropy(logits: list[float]) -> float:
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    shares = [power / sum(powers) for power in powers]
    return -sum(p * math.log(p) for p in shares if p > 0)


def test_entropy_is_eq_3(float64):
    logits = torch.randn(4, 3, 50) * 5
    expected = torch.tensor([[literal_entropy(row.tolist()) for row in image] for image in logits])
    torch.testing.assert_close(next_token_entropy(logits), expected)


def test_entropy_at_its_ends():
    assert next_token_entropy(torch.zeros(16384)).item() == pytest.approx(math.log(16384), rel=1e-6)
    certain = torch.full((10,), -1000.0).index_fill(0, torch.tensor(3), 1000.0)
    assert next_token_entropy(certain).item() == 0
    assert next_token_entropy(torch.tensor([0.0, 0.0, -torch.inf])).item() == pytest.approx(math.log(2), rel=1e-6)


def test_entropy_of_half_precision_logits_is_fp32():
    logits = torch.randn(100, 1000).bfloat16()
    entropy = next_token_entropy(logits)
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(entropy.double(), next_token_entropy(logits.double()), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["unconditional", "null_class"])
def test_entropies_of_tokens_are_of_the_predictions_from_earlier_ones(float64, kind):
    model = tiny_llamagen(num_classes=None if kind == "unconditional" else 3)
    tokens, _ = tiny_batch(2)
    entropy = token_entropies(model, tokens, kind)
    assert entropy.shape == tokens.shape
    assert entropy[:, 0].tolist() == [math.inf, math.inf]
    for image, found in zip(tokens.tolist(), entropy, strict=True):
        logits = llamagen_logits(model.state_dict(), image, None if kind == "unconditional" else 3, columns=4, heads=2)
        expected = [literal_entropy(row.tolist()) for row in logits[-(len(image) - 1) :]]
        torch.testing.assert_close(found[1:], torch.tensor(expected))


@torch.no_grad()
def test_entropies_depend_on_nothing_but_earlier_tokens_of_the_same_image(float64):
    model, (tokens, _) = tiny_llamagen(num_classes=None), tiny_batch(2)
    before = token_entropies(model, tokens, "unconditional")
    tokens[0, 5] = (tokens[0, 5] + 1) % 13
    after = token_entropies(model, tokens, "unconditional")
    changed = before != after
    assert not changed[1].any()
    assert not changed[0, :6].any()
    assert changed[0, 6:].all()


@torch.no_grad()
def test_a_distilled_gate_gives_the_entropies_themselves(float64):
    model, (tokens, _) = tiny_regressor(), tiny_batch(2)
    entropy = token_entropies(model, tokens, "distilled")
    assert entropy[:, 0].tolist() == [math.inf, math.inf]
    assert torch.equal(entropy[:, 1:], model(tokens)[..., 0])


@pytest.mark.parametrize(
    ("model", "kind", "found"),
    [
        (tiny_llamagen(), "unconditional", "3 classes"),
        (tiny_llamagen(num_classes=None), "null_class", "no class token"),
        (tiny_llamagen(num_classes=None), "distilled", "no class token"),
        (tiny_regressor(), "unconditional", "one output"),
    ],
)
def test_a_model_of_another_kind_is_refused(model, kind, found):
    with pytest.raises(InputError, match=f"kind is '{kind}', but it has {found}"):
        token_entropies(model, tiny_batch(1)[0], kind)
