"""The source of the noise kernel, compiled for the CPU, gives the noise; where no GPU compiles it, nothing changes."""

import ctypes
import logging
import shutil
import subprocess

import pytest
import torch
from torch.cuda.jiterator import _CodeParser

from dpar.sampling import fused_noise
from dpar.sampling.fused_noise import SOURCE, fused_gumbel, fuses_noise, noise_at
from dpar.sampling.noise import gumbel_at, image_seed
from dpar.splitmix import splitmix64
from tests.rehearsal import rehearsing

KEYS = splitmix64(torch.tensor([image_seed(0, image) for image in range(40)] + [0, -1, 2**63 - 1, -(2**63)]))
COUNTERS = torch.cat([torch.arange(2000), torch.arange(2**22 - 50, 2**22)])

FOR_CPU = """
#include <cmath>
#include <cstring>
using std::log;
static long long __double_as_longlong(double x) { long long bits; std::memcpy(&bits, &x, 8); return bits; }
%s
extern "C" void fill(const long long* keys, int n, const long long* counters, int m, long long* out) {
  for (int i = 0; i < n; i++)
    for (int j = 0; j < m; j++) out[i * m + j] = gumbel_bits<long long>(keys[i], counters[j]);
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The kernel as a function of tensors, by the C++ compiler of this machine."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "noise.cpp").write_text(FOR_CPU % SOURCE)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "noise.cpp", "-o", "noise.so"], cwd=folder, check=True)
    fill = ctypes.CDLL(str(folder / "noise.so")).fill

    def kernel(keys, counters):
        keys, counters = keys.flatten().contiguous(), counters.contiguous()
        out = torch.empty(len(keys), len(counters), dtype=torch.long)
        pointers = (ctypes.c_void_p(x.data_ptr()) for x in (keys, counters, out))
        a, b, c = pointers
        fill(a, len(keys), b, len(counters), c)
        return out

    return kernel


def test_the_kernel_computes_the_noise(compiled, monkeypatch):
    """To the last bits of two logarithms, which libraries round differently."""
    monkeypatch.setattr(fused_noise, "_kernel", lambda: compiled)
    expected = gumbel_at(KEYS, COUNTERS)
    found = fused_gumbel(KEYS, COUNTERS)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert (found == expected).double().mean() > 0.5
    assert torch.equal(noise_at(KEYS, COUNTERS, fused=True), found)
    assert torch.equal(noise_at(KEYS, COUNTERS, fused=False), expected)


def test_pytorch_takes_the_source():
    parsed = _CodeParser(SOURCE)
    assert (parsed.template_params, parsed.return_type, parsed.function_name, parsed.function_params) == (
        "<typename T>", "T", "gumbel_bits", "(T key, T counter)"
    )  # fmt: skip


def test_without_a_gpu_that_compiles_it_noise_is_made_as_ever(caplog):
    fuses_noise.cache_clear()
    assert not fuses_noise(torch.device("cpu"))
    with rehearsing(), caplog.at_level(logging.INFO):
        for _ in range(2):
            assert not fuses_noise(torch.device("cuda", 0))
    (said,) = caplog.messages
    assert said.startswith("noise is made by several kernels: ")
    fuses_noise.cache_clear()


def test_a_kernel_that_gives_other_numbers_is_not_used(compiled, monkeypatch, caplog):
    monkeypatch.setattr(fused_noise, "_kernel", lambda: lambda keys, counters: compiled(keys, counters + 1))
    fuses_noise.cache_clear()
    with rehearsing(), caplog.at_level(logging.INFO):
        monkeypatch.setattr(fused_noise, "gumbel_at", lambda keys, counters: gumbel_at(keys, counters + 2))
        assert not fuses_noise(torch.device("cuda", 0))
    assert len(caplog.messages) == 1
    fuses_noise.cache_clear()


@pytest.mark.gpu
def test_a_gpu_compiles_it():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    assert fuses_noise(torch.device("cuda"))
    found = fused_gumbel(KEYS.cuda(), COUNTERS.cuda())
    torch.testing.assert_close(found.cpu(), gumbel_at(KEYS, COUNTERS), rtol=1e-13, atol=1e-13)
