"""An opponent is set up with our weights; the code of the real one is on no machine that runs these tests."""

import sys

import pytest
import torch

from dpar.benchmarks.llamagen import own_sampler
from dpar.errors import InputError
from dpar.model.llamagen import LlamaGen

SIZES = {"vocab_size": 40, "grid": (4, 4), "width": 32, "heads": 2, "layers": 1, "num_classes": 3}
GPT = """
from dataclasses import dataclass
from dpar.model.llamagen import LlamaGen, LlamaGenConfig

@dataclass
class ModelArgs:
    dim: int = 4096
    n_layer: int = 32
    n_head: int = 32
    num_classes: int = 1000
    vocab_size: int = 16384
    block_size: int = 256

class Transformer(LlamaGen):
    def __init__(self, args):
        side = int(args.block_size**0.5)
        super().__init__(
            LlamaGenConfig(vocab_size=args.vocab_size, grid=(side, side), width=args.dim, heads=args.n_head,
                           layers=args.n_layer, num_classes=args.num_classes))
"""
GENERATE = """
import torch

def generate(model, cond, max_new_tokens, emb_masks=None, cfg_scale=1.0, cfg_interval=-1, **sampling_kwargs):
    network, labels, count = model, cond, max_new_tokens
    assert set(sampling_kwargs) == {"temperature", "top_k", "top_p", "sample_logits"}
    assert not network.training and sampling_kwargs["sample_logits"] and cfg_scale == 2.0
    tokens = torch.zeros(len(labels), count, dtype=torch.long)
    return network(tokens, labels).argmax(-1)
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "autoregressive" / "models"
    folder.mkdir(parents=True)
    (folder / "gpt.py").write_text(GPT)
    (folder / "generate.py").write_text(GENERATE)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in [name for name in sys.modules if name.split(".")[0] == "autoregressive"]:
        del sys.modules[name]


@pytest.fixture
def model():
    model = LlamaGen(LlamaGen.Config(**SIZES)).eval()
    torch.nn.init.normal_(model.output.weight)
    return model


def test_it_draws_with_the_weights_and_the_precision_of_ours(checkout, model):
    draw = own_sampler(checkout, model.double(), 2.0)
    labels = torch.arange(5) % 3
    assert torch.equal(draw(5), model(torch.zeros(5, 16, dtype=torch.long), labels).argmax(-1))


def test_another_network_is_refused(checkout, model):
    gpt = checkout / "autoregressive" / "models" / "gpt.py"
    gpt.write_text(GPT.replace("width=args.dim", "width=2 * args.dim"))
    with pytest.raises(InputError, match="its network takes other weights"):
        own_sampler(checkout, model, 2.0)


def test_guidance_that_it_does_not_know_is_refused(checkout, model):
    with pytest.raises(InputError, match="does not guide below 1"):
        own_sampler(checkout, model, 0.5)


def test_a_folder_of_something_else_is_refused(tmp_path, model):
    with pytest.raises(InputError, match=r"cannot be imported from there .*give the folder"):
        own_sampler(tmp_path, model, 2.0)
