"""The formula of a step's memory counts what autograd keeps, and a training that does not fit is refused in time."""

from dataclasses import replace

import pytest
import torch

from dpar.errors import InputError
from dpar.experiment.settings import Transformer
from dpar.model import attention
from dpar.model.attention import causal_attention
from dpar.model.layers import Block, RMSNorm, hidden_width
from dpar.model.rope import grid_rope
from dpar.model.variants import model_config
from dpar.train.distributed import Ranks
from dpar.train.footprint import GIB, KEPT, check_fits, patches_per_image, step_bytes
from dpar.train.objective import autocast
from tests.train.tiny import tiny_task

CPU, WIDTH, ROWS = torch.device("cpu"), 256, 512


def kept(module, x, *more, precision):
    """Bytes that a backward pass through the module needs, weights and their casts aside."""
    seen, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast(CPU, precision):
        module(x, *more)
    for tensor in (*module.parameters(), *more[:1]):
        seen.pop(tensor.untyped_storage().data_ptr(), None)
    casts = sum(2 * p.numel() for p in module.parameters() if p.ndim > 1) if precision == "bfloat16" else 0
    return sum(seen.values()) - casts


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_layer_keeps_what_the_formula_says(precision, monkeypatch):
    """But for norms, of which a CPU keeps the normed numbers and a GPU the input and one number per row.

    A CPU also keeps what attention reads in float32.
    """
    monkeypatch.setattr(attention, "widens", lambda q: False)
    x = torch.randn(2, ROWS // 2, WIDTH, requires_grad=True)
    rope = grid_rope(16, 16, WIDTH // 4)
    found = kept(Block(WIDTH, 4).train(), x, rope, causal_attention, precision=precision)
    norms = 2 * (kept(RMSNorm(WIDTH), x, precision=precision) - x.nbytes)
    per_channel, per_hidden = KEPT[precision]
    expected = ROWS * (per_channel * WIDTH + per_hidden * hidden_width(WIDTH))
    assert found - norms == pytest.approx(expected, rel=0.02)


def xl(kind, images, **how):
    """GB of a step at 384 px, where the paper's P_avg is 2.06."""
    sizes = {"vocab_size": 16384, "grid": (24, 24), "num_classes": 1000}
    config = model_config(Transformer.model_validate({"variant": f"{kind}-XL"}), **sizes)
    parameters = {"DPAR": 789_455_360, "LlamaGen": 775_000_000}[kind]
    how = {"precision": "bfloat16", "recomputed": False, "average": False} | how
    return step_bytes(config, parameters, images, 576 / 2.06, **how) / 1e9


def test_a_dpar_needs_two_thirds_of_a_llamagen():
    """As counted by hand: 106 and 71 GB; layers computed again 33 and 29, with buffers that are left out here."""
    assert (xl("LlamaGen", 64), xl("DPAR", 64)) == pytest.approx((106, 71), rel=0.02)
    recomputed = [xl(kind, 64, recomputed=True) for kind in ("LlamaGen", "DPAR")]
    assert recomputed == pytest.approx((33, 29), rel=0.12)
    assert xl("DPAR", 64, shards=8) == pytest.approx(xl("DPAR", 64) - 0.789 * 14, rel=0.01)
    assert xl("DPAR", 64, average=True) == pytest.approx(xl("DPAR", 64) + 0.789 * 4, rel=0.01)


def with_memory(monkeypatch, gib):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, int(gib * GIB)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")


def test_a_training_that_does_not_fit_is_told_what_does(monkeypatch):
    task = tiny_task("dpar")
    patches = patches_per_image(task)
    assert 16 / 3 < patches < 16
    parameters = sum(p.numel() for p in task.model.parameters())

    def needs(images):
        how = {"precision": "float32", "recomputed": False, "average": False}
        return step_bytes(task.model.config, parameters, images, patches, **how) / GIB / 0.95

    gpu = Ranks(torch.device("cuda", 0))
    with_memory(monkeypatch, needs(8) * 1.01)
    check_fits(task, gpu)
    with_memory(monkeypatch, needs(2) * 1.01)
    with pytest.raises(InputError, match=r"8 images at a time.*a card has .*`accumulate: 4`"):
        check_fits(task, gpu)
    check_fits(replace(task, training=task.training.model_copy(update={"accumulate": 4})), gpu)
    check_fits(task, replace(gpu, size=4))
    with_memory(monkeypatch, needs(1) / 4)
    with pytest.raises(InputError, match="a smaller model"):
        check_fits(task, gpu)
    check_fits(task, Ranks(CPU))
