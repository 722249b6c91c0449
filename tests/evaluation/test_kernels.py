"""Kernels are counted as a GPU would launch them, with the bytes that they move and the products that they compute."""

import pytest
import torch
import torch.nn.functional as F

from dpar.evaluation.kernels import kernels_of
from dpar.model.llamagen import LlamaGen
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.static_parts import Kernels, LlamaGenParts
from tests.rehearsal import on_gpu, rehearsing


def only(function, *args):
    """The one kernel of a call."""
    (kernel,) = kernels_of(function, *args)
    return kernel


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_a_product_moves_its_matrices_and_multiplies_once_per_weight_and_row():
    kernel = only(F.linear, meta(6, 32, dtype=torch.bfloat16), meta(48, 32, dtype=torch.bfloat16))
    assert kernel.bytes == 2 * (6 * 32 + 48 * 32 + 6 * 48)
    assert kernel.flops == 2 * 6 * 32 * 48
    assert kernel.dtype == torch.bfloat16
    assert kernel.entry_bytes == 0


def test_views_are_free_and_repeated_axes_count_once():
    assert kernels_of(lambda x: x.view(4, 2).T[1:].unsqueeze(0).expand(3, 1, 4), meta(8)) == []
    kernel = only(torch.add, meta(8), meta(1).expand(8))
    assert kernel.bytes == 4 * (8 + 1 + 8)


def test_picked_and_placed_rows_count_alone():
    index, table = meta(3, dtype=torch.long), meta(1000, 16)
    assert only(torch.index_select, table, 0, index).bytes == 2 * 3 * 16 * 4 + 3 * 8
    assert only(table.index_copy_, 0, index, meta(3, 16)).bytes == 2 * 3 * 16 * 4 + 3 * 8


def test_attention_is_one_kernel_with_bytes_by_the_entry():
    q, keys = meta(5, 2, 1, 8), meta(5, 2, 16, 8)
    kernel = only(F.scaled_dot_product_attention, q, keys, keys)
    assert kernel.entry_bytes == 2 * 2 * 8 * 4, "a key and a value of two heads of eight channels"
    assert kernel.bytes == 2 * 5 * 2 * 8 * 4
    norm = only(F.rms_norm, meta(4, 8), (8,), meta(8))
    assert norm.bytes == 4 * (4 * 8 + 8 + 4 * 8)


@pytest.mark.parametrize("layers", [1, 3])
def test_as_many_as_in_rehearsal(layers):
    """The count on tensors without numbers is that of a GPU which is rehearsed, for a whole token."""
    config = LlamaGen.Config(layers=layers, vocab_size=40, grid=(3, 4), width=32, heads=2, num_classes=3)

    def parts(device):
        model = LlamaGen(config).eval().to(torch.bfloat16)
        with torch.device(device), torch.no_grad():
            model = on_gpu(model) if device == "cuda" else model.to(device)
            return LlamaGenParts(model, 5, DrawSettings(2.0), Kernels(False, False, False))

    counted = kernels_of(parts("meta").token, False, 2, 2.0, True, 16)
    with rehearsing() as gpu:
        there = parts("cuda")
        with torch.inference_mode(), gpu.logging() as log:
            there.token(False, 2, 2.0, True, 16)
    assert sum(kernel.launches for kernel in counted) == log.launches
