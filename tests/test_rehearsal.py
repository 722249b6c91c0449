"""The stand-in for a GPU: what it refuses, what it calls a wait, what it counts."""

import threading

import pytest
import torch
import torch.nn.functional as F

from dpar.device import default_device, to_device
from tests.rehearsal import DeviceMismatchError, on_gpu, on_host, rehearsing

HERE = "tests/test_rehearsal.py"


def test_tensors_are_on_the_gpu_and_have_the_numbers_of_the_cpu():
    network, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.RMSNorm(4)), torch.arange(8.0).view(2, 4)
    expected = network(x)
    expected.square().sum().backward()
    with rehearsing():
        assert default_device() == torch.device("cuda", 0)
        copy, y = on_gpu(network), x.to("cuda")
        assert {parameter.device.type for parameter in copy.parameters()} == {"cuda"}
        found = copy(y)
        found.square().sum().backward()
        assert found.device == y.device == torch.zeros(3, device="cuda").device == torch.device("cuda", 0)
        assert found.is_cuda
        for a, b in zip(network.parameters(), copy.parameters(), strict=True):
            assert torch.equal(a.grad, on_host(b.grad))
    assert torch.equal(on_host(found), expected)
    assert default_device() == torch.device("cpu") or torch.cuda.is_available()


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x + torch.arange(3),
        lambda x: torch.cat([x, torch.arange(3)]),
        lambda x: F.embedding(x, torch.ones(4, 2)),
        lambda x: x.numpy(),
        lambda x: x.pin_memory(),
    ],
    ids=["sum", "cat", "embedding", "numpy", "pin_memory"],
)
def test_it_refuses_what_cuda_refuses(refused):
    with rehearsing():
        x = torch.arange(3, device="cuda")
        with pytest.raises(DeviceMismatchError):
            refused(x)
        assert on_host(x + torch.tensor(2)).tolist() == [2, 3, 4], "a single number may come from the host"
    with pytest.raises(DeviceMismatchError, match="after the rehearsal"):
        x + 1


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x[0].item(),
        lambda x: bool(x[0] > 1),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.nonzero(),
        lambda x: torch.unique(x, dim=0),
        lambda x: x[x > 1],
        lambda x: x.repeat_interleave(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.arange(3).to("cuda"),
        lambda x: torch.arange(3).pin_memory().to("cuda"),
        lambda x: torch.tensor([1, 2], device="cuda"),
        lambda x: x.copy_(torch.arange(3)),
        lambda x: torch.arange(3).copy_(x),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.cuda.synchronize(),
        lambda x: float(F.cross_entropy(x[None].double(), x[:1])),
    ],
)
def test_it_calls_a_wait_a_wait_and_says_where(waits):
    with rehearsing() as gpu:
        x = torch.arange(3, device="cuda")
        with gpu.logging() as log:
            waits(x)
    assert list(log.waits.values()) == [1]
    ((_, where),) = log.waits
    assert where.startswith(HERE)


@pytest.mark.parametrize(
    "goes_on",
    [
        lambda x: (x * 2).sum(),
        lambda x: to_device(torch.arange(3), "cuda"),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x.repeat_interleave(x, output_size=3),
        lambda x: torch.where(x > 1, x, 0),
        lambda x: x.index_select(0, x).masked_fill(x > 1, 3).double().half().type_as(x),
        lambda x: torch.empty(3, dtype=torch.long, pin_memory=True).copy_(x, non_blocking=True),
    ],
)
def test_what_needs_no_wait_is_none(goes_on):
    with rehearsing() as gpu:
        x = torch.arange(3, device="cuda")
        with gpu.logging() as log:
            goes_on(x)
    assert not log.waits


def test_a_copy_to_the_host_holds_nothing_until_it_has_been_waited_for():
    with rehearsing() as gpu:
        x, event = torch.arange(3, device="cuda"), torch.cuda.Event()
        copy = x.to("cpu", non_blocking=True)
        assert copy.tolist() != [0, 1, 2]
        event.record()
        later = x.to("cpu", non_blocking=True)
        with gpu.logging() as log:
            x.add_(1)
            event.synchronize()
        assert (list(log.hidden.values()), list(log.waits.values())) == ([1], [])
        assert copy.tolist() == [0, 1, 2]
        assert later.tolist() != [0, 1, 2], "this one the event knows nothing of"
        with gpu.logging() as log:
            event.record()
            event.synchronize()
        assert list(log.waits.values()) == [1], "nothing was left to do meanwhile"
        assert later.tolist() == [0, 1, 2]


def test_it_counts_kernels_and_not_views():
    with rehearsing() as gpu:
        x, out = torch.ones(2, 3, device="cuda"), torch.empty(3, 2, device="cuda")
        with gpu.logging(keep_calls=True) as log, torch.inference_mode():
            out.copy_(x.T.unflatten(0, (1, 3)).squeeze(0))
            F.linear(x, x)
            F.rms_norm(x, (3,))
            F.scaled_dot_product_attention(x[None], x[None], x[None])
    assert log.kernels == {"copy_": 1, "mm": 1, "rms_norm": 1, "scaled_dot_product_attention": 1}
    assert log.launches == 4
    assert log.calls[0] == ("copy_", ((3, 2), (3, 2)), (out.host.data_ptr(), x.host.data_ptr()))


def test_threads_see_the_gpu_too():
    found = []
    with rehearsing() as gpu, gpu.logging() as log:
        x = torch.ones(2, device="cuda")
        thread = threading.Thread(target=lambda: found.append((x + torch.zeros(2, device="cuda")).cpu().numpy()))
        thread.start()
        thread.join()
    assert found[0].tolist() == [1, 1]
    assert log.waits.total() == 1


def test_layers_that_are_computed_again_are_rehearsed_too():
    def layer(x):
        return x * torch.full((3,), 2.0, device=x.device)

    with rehearsing() as gpu:
        x = torch.ones(3, device="cuda").requires_grad_()
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        with gpu.logging() as log:
            y.sum().backward()
        assert log.kernels["full"] == 1
        assert on_host(x.grad).tolist() == [2, 2, 2]
