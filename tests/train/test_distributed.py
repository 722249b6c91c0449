"""The losses, the weights and the curves do not depend on the number of ranks."""

import pytest
import torch
from safetensors.torch import load_file

from tests.train.processes import train_on_ranks
from tests.train.tiny import history, train

SETTINGS = {"until": 8, "dropout": 0.0, "log_every": 1, "validate_every": 4}


@pytest.mark.parametrize("kind", ["dpar", "llamagen", "unconditional"])
def test_two_ranks_give_the_losses_of_one(tmp_path, kind):
    train_on_ranks(tmp_path / "two", kind, 2, **SETTINGS)
    two = tmp_path / "two" / "model8"
    one = train(tmp_path / "one", kind, **SETTINGS)
    assert history(one).keys() == history(two).keys()
    for step, row in history(one).items():
        assert history(two)[step] == pytest.approx(row, rel=1e-5)
    for name, tensor in load_file(one / "model.safetensors").items():
        # AdamW divides by the root of the second moment: a gradient near 0 carries its rounding into the weight
        torch.testing.assert_close(load_file(two / "model.safetensors")[name], tensor, rtol=1e-3, atol=1e-5)


def test_two_ranks_with_micro_batches_and_an_average_go_on_as_one(tmp_path):
    settings = SETTINGS | {"ema": 0.9}
    train_on_ranks(tmp_path / "mixed", "dpar", 2, **settings | {"accumulate": 2, "until": 4})
    mixed = train(tmp_path / "mixed", "dpar", **settings | {"accumulate": 4})
    one = train(tmp_path / "one", "dpar", **settings)
    for step, row in history(one).items():
        assert history(mixed)[step] == pytest.approx(row, rel=1e-5)
