import math

import pytest
import torch

from dpar.model.entropy_regressor import EntropyRegressor
from tests.model.tiny import SIZES, VOCAB, tiny_batch, tiny_llamagen, tiny_regressor
from tests.oracles.model import llamagen_logits


def test_it_says_ln_v_less_what_the_literal_network_has_for_its_only_code(float64):
    model, (tokens, _) = tiny_regressor(layers=2), tiny_batch(3)
    found = model(tokens)
    assert found.shape == (3, 11, 1)
    for image, entropy in zip(tokens.tolist(), found, strict=True):
        outputs = llamagen_logits(model.state_dict(), image, None, columns=4, heads=2)
        torch.testing.assert_close(entropy, math.log(VOCAB) - outputs)


def test_a_new_one_says_what_a_new_entropy_model_says(float64):
    model = EntropyRegressor(EntropyRegressor.Config(grid=(3, 4), **SIZES))
    assert (model(tiny_batch(2)[0]) == math.log(VOCAB)).all()


def test_it_is_a_llamagen_with_one_row_in_its_head():
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny_llamagen(num_classes=None).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tiny_regressor().state_dict().items()}
    assert found == shapes | {"output.weight": (1, 32)}


def test_it_has_no_classes():
    with pytest.raises(ValueError, match="num_classes"):
        EntropyRegressor.Config(grid=(3, 4), num_classes=3, **SIZES)


def test_half_precision_gives_single_precision_entropies():
    assert tiny_regressor().bfloat16()(tiny_batch(1)[0]).dtype == torch.float32
