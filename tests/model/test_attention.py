import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dpar.errors import InputError
from dpar.model import attention
from dpar.model.attention import attention_dtype, causal_attention, fastest_backend, packed_attention, why_not
from dpar.patches.packing import PackedLengths
from tests.oracles import model as oracle

LENGTHS = {
    "ones": [1, 1, 1, 1],
    "equal": [5, 5, 5],
    "very unequal": [1, 40, 2, 7],
    "batch of one": [6],
}
each_lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())


def literal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Each image by itself, each head, each query."""
    images = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    rows = []
    for a, b, c in images:
        for i in range(len(a)):
            heads = range(a.shape[1])
            rows.append(torch.stack([oracle.mixed(a[i, h], list(b[: i + 1, h]), list(c[: i + 1, h])) for h in heads]))
    return torch.stack(rows)


def random_qkv(count: int, heads: int = 2, head_dim: int = 16, **kind) -> list[torch.Tensor]:
    generator = torch.Generator(device=kind.get("device", "cpu")).manual_seed(0)
    return [torch.randn(count, heads, head_dim, generator=generator, requires_grad=True, **kind) for _ in range(3)]


def with_gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    direction = torch.arange(out.numel(), dtype=out.dtype, device=out.device).view_as(out).cos()
    return [out, *torch.autograd.grad(out, inputs, direction)]


@each_lengths
def test_sdpa_is_the_literal_one_forward_and_backward(float64, lengths):
    qkv = random_qkv(sum(lengths))
    found = with_gradients(packed_attention(PackedLengths.from_lengths(lengths), "sdpa")(*qkv), qkv)
    torch.testing.assert_close(found, with_gradients(literal(*qkv, lengths), qkv))


def test_dense_is_the_literal_one_forward_and_backward(float64):
    qkv = random_qkv(15)
    dense = causal_attention(*(x.view(3, 5, 2, 16) for x in qkv)).flatten(0, 1)
    torch.testing.assert_close(with_gradients(dense, qkv), with_gradients(literal(*qkv, [5, 5, 5]), qkv))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@each_lengths
def test_flex_mask_is_the_literal_one(lengths):
    qkv = [x.detach() for x in random_qkv(sum(lengths))]  # on a CPU it has no gradient
    with torch.compiler.set_stance("force_eager"):
        found = packed_attention(PackedLengths.from_lengths(lengths), "flex")(*qkv)
    torch.testing.assert_close(found, literal(*qkv, lengths))


@pytest.mark.parametrize("torch_2_10", [True, False])
@each_lengths
def test_varlen_is_called_as_its_version_wants(monkeypatch, lengths, torch_2_10):
    from torch.nn.attention import varlen

    def reference(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k):
        assert cu_seq_q is cu_seq_k
        assert cu_seq_q.dtype == torch.int32
        assert cu_seq_q.tolist() == [0, *torch.tensor(lengths).cumsum(0).tolist()]
        assert max_q == max_k == max(lengths)
        return literal(q, k, v, lengths)

    def with_is_causal(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        assert is_causal is True
        return reference(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k)

    def with_window(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        assert window_size == (-1, 0)
        return reference(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k)

    monkeypatch.setattr(varlen, "varlen_attn", with_is_causal if torch_2_10 else with_window)
    qkv = random_qkv(sum(lengths))
    found = packed_attention(PackedLengths.from_lengths(lengths), "varlen")(*qkv)
    torch.testing.assert_close(found, literal(*qkv, lengths))


@each_lengths
def test_xformers_is_given_one_batch_row_and_the_host_lengths(monkeypatch, lengths):
    class BlockDiagonalCausalMask:
        made = 0

        @classmethod
        def from_seqlens(cls, q_seqlen, *, device):
            assert isinstance(q_seqlen, list)
            assert device == torch.device("cpu")
            cls.made += 1
            return SimpleNamespace(lengths=q_seqlen)

    def memory_efficient_attention(q, k, v, attn_bias):
        return literal(q[0], k[0], v[0], attn_bias.lengths)[None]

    names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
    modules = {name: ModuleType(name) for name in names}
    modules["xformers.ops"].memory_efficient_attention = memory_efficient_attention
    modules["xformers.ops.fmha.attn_bias"].BlockDiagonalCausalMask = BlockDiagonalCausalMask
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    qkv = random_qkv(sum(lengths))
    attend = packed_attention(PackedLengths.from_lengths(lengths), "xformers")
    for _layer in range(2):
        torch.testing.assert_close(attend(*qkv), literal(*qkv, lengths))
    assert BlockDiagonalCausalMask.made == 1


def test_the_fastest_backend_that_works_is_chosen_and_logged(monkeypatch, caplog):
    caplog.set_level(logging.INFO, attention.__name__)
    cuda, half = torch.device("cuda", 0), (torch.float16, torch.bfloat16)
    works = {"varlen": half, "xformers": (*half, torch.float32)}
    monkeypatch.setattr(
        attention, "why_not", lambda name, device, dtype: None if dtype in works.get(name, ()) else "not here"
    )

    def choice(device, dtype):
        fastest_backend.cache_clear()
        return fastest_backend(device, dtype)

    assert choice(torch.device("cpu"), torch.bfloat16) == "sdpa"
    assert choice(cuda, torch.bfloat16) == "varlen"
    assert choice(cuda, torch.float32) == "xformers"
    assert choice(cuda, torch.float64) == "sdpa"
    del works["varlen"]
    assert choice(cuda, torch.float16) == "xformers"
    del works["xformers"]
    assert choice(cuda, torch.float16) == "sdpa"
    assert "packed attention cannot be xformers: not here" in caplog.messages
    assert "packed attention: varlen (cuda:0, torch.bfloat16)" in caplog.messages
    fastest_backend.cache_clear()
    for _ in range(3):
        packed_attention(PackedLengths.from_lengths([2]))
    assert caplog.messages.count("packed attention: sdpa (cpu, torch.float32)") == 1


def test_a_backend_is_tried_without_touching_random_numbers():
    state = torch.get_rng_state()
    cpu = torch.device("cpu")
    assert why_not("sdpa", cpu, torch.float32) is None
    assert why_not("varlen", cpu, torch.bfloat16)
    assert "backward" in str(why_not("flex", cpu, torch.float32))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_backend_that_is_absent_is_refused(monkeypatch):
    packed = PackedLengths.from_lengths([2, 3])
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(InputError, match="'xformers' cannot be imported here"):
        packed_attention(packed, "xformers")


def test_the_precision_of_attention_is_that_of_autocast():
    weight = torch.zeros(2, dtype=torch.float64)
    assert attention_dtype(weight) == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_dtype(weight) == torch.bfloat16
    assert attention_dtype(weight.to("meta")) == torch.float64


GPU_LENGTHS = {**LENGTHS, "like training": [141, 97, 180, 133, 201, 256, 60, 2]}
GPU_KINDS = [
    ("sdpa", torch.bfloat16),
    ("sdpa", torch.float32),
    ("varlen", torch.bfloat16),
    ("varlen", torch.float16),
    ("xformers", torch.bfloat16),
    ("xformers", torch.float32),
    ("flex", torch.bfloat16),
    ("flex", torch.float32),
]


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", GPU_LENGTHS.values(), ids=GPU_LENGTHS.keys())
@pytest.mark.parametrize(("backend", "dtype"), GPU_KINDS)
def test_backends_on_a_gpu_agree_with_each_image_by_itself(backend, dtype, lengths):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    if backend == "xformers":
        pytest.importorskip("xformers")
    qkv = random_qkv(sum(lengths), heads=4, head_dim=64, device="cuda", dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in qkv]
    packed = PackedLengths.from_lengths(lengths, "cuda")
    found = with_gradients(packed_attention(packed, backend)(*qkv), qkv)
    expected = with_gradients(packed_attention(packed, "sdpa")(*exact), exact)
    # values and gradients are of the order of 1: bf16 keeps 8 bits of them, fp16 11; fp32 is allowed TF32's 10 bits
    tolerance = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 2e-3}[dtype]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_padding_is_nowhere(monkeypatch):
    """The tensors that reach the kernel hold the images' positions and no others."""
    seen, kernel = [], F.scaled_dot_product_attention

    def spy(q, k, v, **settings):
        seen.append(q.shape[-2])
        assert q.shape == k.shape == v.shape
        return kernel(q, k, v, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    packed_attention(PackedLengths.from_lengths([3, 9, 1]), "sdpa")(*random_qkv(13))
    assert seen == [3, 9, 1]


def test_a_first_forward_pass_in_inference_mode_chooses_as_any_other(monkeypatch):
    """Tensors that are made in inference mode cannot be kept for a backward pass, which the trial has."""
    monkeypatch.setitem(attention.BACKENDS, "varlen", saving)
    with torch.inference_mode():
        assert why_not("varlen", torch.device("cpu"), torch.float32) is None


def saving(packed):
    """A back end that keeps the ends of the sequences for its backward pass, as PyTorch's own does."""

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, ends):
            ctx.save_for_backward(ends)
            return q.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient, None

    return lambda q, k, v: Kept.apply(q, packed.cu_seqlens)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_of_half_precision_are_made_in_float32_on_a_cpu(packed, monkeypatch):
    """Under autocast too, which would narrow what enters the kernel; without gradients nothing is widened."""
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, **how):
        seen.append(q.dtype)
        assert not torch.is_autocast_enabled("cpu") or q.dtype == torch.bfloat16
        return attend(q, k, v, **how)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watched)
    half = [torch.randn(1, 9, 2, 8, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3)]

    def attention_of(q, k, v):
        if not packed:
            return causal_attention(q, k, v)
        both = packed_attention(PackedLengths.from_lengths([4, 5]), "sdpa")
        return both(q[0], k[0], v[0])[None]

    with torch.autocast("cpu", torch.bfloat16):
        plain = attention_of(*half)
        given = [x.clone().requires_grad_() for x in half]
        found = attention_of(*given)
        assert torch.is_autocast_enabled("cpu")
    count = 1 + packed
    assert seen == [torch.bfloat16] * count + [torch.float32] * count
    assert plain.dtype == found.dtype == torch.bfloat16
    whole = [x.float().requires_grad_() for x in half]
    expected = attention_of(*whole)
    assert torch.equal(found, expected.bfloat16())
    found.float().sum().backward()
    expected.bfloat16().float().sum().backward()
    for a, b in zip(given, whole, strict=True):
        assert torch.equal(a.grad, b.grad.bfloat16())
