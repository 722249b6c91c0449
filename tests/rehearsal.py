"""A GPU to rehearse with where there is none: tensors that say they are on `cuda:0`, computed on the CPU.

`rehearsing()` is a block in which `torch.device("cuda")` works and `default_device()` finds it. A `GpuTensor` has real
numbers in the memory of the host, so that results can be compared with the CPU's, and takes every branch that code has
for a GPU. The block

- refuses what CUDA refuses: a tensor of the host (with a dimension or more) next to one of the device, `.numpy()`;
- withholds the values of a non-blocking copy to the host until an event recorded after it has been waited for;
- logs each wait of the host for the device (`.item()`, `.cpu()`, `bool(tensor)`, `nonzero`, masks as indices, copies
  from memory that is not pinned, ...) with the project's line that caused it;
- counts the operations that would be kernels, and can keep their sequence with shapes and addresses.

It cannot know kernels' limits (types, alignment), their rounding, time or memory. Backward passes are decomposed as on
a CPU, so that their number of kernels is good for comparisons alone. Autocast is the CPU's.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.utils.clip_grad
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
PROJECT = Path(__file__).resolve().parents[1]
CARD = "NVIDIA H200"

# Operations that wait for their result, since its shape or the next instruction depends on it.
READS = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "unique_dim_consecutive", "argwhere",
}  # fmt: skip
# Operations without a kernel that PyTorch does not mark as views.
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "_unsafe_view",
    "_reshape_alias", "lift", "lift_fresh", "is_same_size", "_local_scalar_dense", "device",
}  # fmt: skip
# Operations that CUDA refuses where sums must have an order of their own (of the documented ones, those without layers
# that the project has not): `torch.use_deterministic_algorithms`.
UNORDERED = {
    "nll_loss2d_forward", "histc", "median", "put_", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "_upsample_bilinear2d_aa_backward", "reflection_pad2d_backward", "_adaptive_avg_pool2d_backward",
    "grid_sampler_2d_backward",
}  # fmt: skip
# Functions that are one kernel on a GPU and several operations on a CPU.
FUSED = {"scaled_dot_product_attention", "rms_norm", "layer_norm"}


class DeviceMismatchError(RuntimeError):
    """The refusal of an operation that CUDA would have refused."""


class Log:
    """Observations of a part of a rehearsal.

    Attributes:
        waits: (what, project's line) -> how often the host waited for all that the device had to do.
        hidden: the same of waits for an event after which the device had been given more work.
        kernels: operation -> how often it was launched.
        calls: of each kernel in turn its operation, shapes and addresses, if they are kept.
    """

    def __init__(self, *, keep_calls: bool = False):
        self.waits: Counter[tuple[str, str]] = Counter()
        self.hidden: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()
        self.calls: list[tuple[str, tuple[tuple[int, ...], ...], tuple[int, ...]]] | None = [] if keep_calls else None

    @property
    def launches(self) -> int:
        """Kernels in all."""
        return self.kernels.total()


class GpuTensor(torch.Tensor):
    """A tensor in the memory of the host that says it is on a GPU."""

    host: Tensor  # the same memory as an ordinary tensor

    @staticmethod
    def __new__(cls, host: Tensor):
        with torch._C.DisableTorchFunction():
            new = torch.Tensor._make_subclass(cls, host)
        new.host = host
        return new

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, *, tensor_contents=None):
        return f"GpuTensor({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo):
        new: Tensor = GpuTensor(self.host.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            new = torch.nn.Parameter(new, self.requires_grad)
        memo[id(self)] = new
        return new

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if Rehearsal.current is None:
            raise DeviceMismatchError(f"{_name(func)} of a tensor of the device after the rehearsal")
        return Rehearsal.current.call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert Rehearsal.current is not None
        return Rehearsal.current.launch(func, args, kwargs or {})


class Event:
    """Stands in for `torch.cuda.Event`."""

    def __init__(self) -> None:
        self._after, self._copies = -1, []

    def record(self, stream: object = None) -> None:
        """Marks the work given so far."""
        rehearsal = _current()
        self._after, self._copies = rehearsal.launched, list(rehearsal.copies)

    def synchronize(self) -> None:
        """Waits for it: a hidden wait if the device has been given more since."""
        rehearsal = _current()
        rehearsal.wait("event", hidden=rehearsal.launched > self._after)
        rehearsal.arrive(self._copies)


class Rehearsal(TorchFunctionMode):
    """The mode of `rehearsing`; `logs` are those that are being written."""

    current: Rehearsal | None = None

    def __init__(self) -> None:
        super().__init__()
        self.logs: list[Log] = []
        self.pinned: dict[int, Tensor] = {}  # by address; kept, so that no other tensor gets that address
        self.copies: list[tuple[Tensor, Tensor]] = []  # to the host and under way: target and values
        self.launched = 0
        self._fused = threading.local()

    @contextmanager
    def logging(self, *, keep_calls: bool = False) -> Iterator[Log]:
        """What happens in this block."""
        log = Log(keep_calls=keep_calls)
        self.logs.append(log)
        try:
            yield log
        finally:
            self.logs.remove(log)

    def wait(self, what: str, *, hidden: bool = False) -> None:
        """Logs a wait of the host."""
        for log in self.logs:
            (log.hidden if hidden else log.waits)[what, _here()] += 1
        if not hidden:
            self.arrive(self.copies)

    def arrive(self, copies: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Ends these copies to the host."""
        for target, values in copies:
            target.copy_(values)
        done = {id(target) for target, _ in copies}
        self.copies = [copy for copy in self.copies if id(copy[0]) not in done]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, kwargs or {})

    def call(self, func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """The result of a function of PyTorch, of which the first tensors or the `device` may be the GPU."""
        name, kwargs = _name(func), dict(kwargs)
        ours = any(isinstance(x, GpuTensor) for x in tree_leaves((args, kwargs)))
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__get__":
                return self._attribute(func, args)
            if name in ("pin_memory", "is_pinned"):
                return getattr(self, f"_{name}")(args[0])
            if name in ("to", "cuda", "cpu", "type_as"):
                return self._moved(func, name, args, kwargs)
            if ours and name in ("numpy", "__array__"):
                raise DeviceMismatchError("can't convert cuda:0 device type tensor to numpy")
            if ours and name == "tolist":
                self.wait("tolist")
                return args[0].host.tolist()
            if ours and name == "backward":
                return self._backward(args, kwargs)
            if kwargs.get("device") is not None or kwargs.get("pin_memory"):
                return self._made(func, name, args, kwargs)
            return self._one_kernel(func, args, kwargs) if ours and name in FUSED else func(*args, **kwargs)

    def _attribute(self, func: Any, args: tuple) -> Any:
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        given = isinstance(args[0], GpuTensor) and attribute in ("device", "is_cuda", "is_cpu")
        return getattr(args[0], attribute) if given else func(*args)

    def _pin_memory(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, GpuTensor):
            raise DeviceMismatchError("cannot pin a tensor of the device")
        pinned = tensor.clone()
        self.pinned[pinned.untyped_storage().data_ptr()] = pinned
        return pinned

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, GpuTensor) and tensor.untyped_storage().data_ptr() in self.pinned

    def _moved(self, func: Callable[..., Any], name: str, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """A tensor on another device, of another type, or both."""
        tensor, rest = args[0], list(args[1:])
        target = {"cuda": CUDA, "cpu": CPU}.get(name)
        rest = [] if target is not None else rest
        func = torch.Tensor.to if name == "type_as" else func
        for i, some in enumerate(rest):
            if isinstance(some, Tensor):
                target, rest[i] = some.device, some.dtype
            elif isinstance(some, torch.device) or (isinstance(some, str) and some.split(":")[0] in ("cuda", "cpu")):
                target, rest[i] = torch.device(some), CPU if torch.device(some).type == "cuda" else some
        if kwargs.get("device") is not None:
            target = torch.device(kwargs["device"])
            kwargs["device"] = CPU if target.type == "cuda" else target
        device = isinstance(tensor, GpuTensor)
        target = tensor.device if target is None else target
        if device == (target.type == "cuda"):
            return tensor if name in ("cuda", "cpu") else func(tensor, *rest, **kwargs)
        change = (lambda x: x) if name in ("cuda", "cpu") else (lambda x: func(x, *rest, **kwargs))
        if device:
            values = tensor.host.detach().clone()
            if kwargs.get("non_blocking"):
                return change(self._under_way(torch.empty_like(values), values))
            self.wait("copy to the host")
            return change(values)
        if target.type != "cuda":
            return func(tensor, *rest, **kwargs)
        if not (self._is_pinned(tensor) and kwargs.get("non_blocking")):
            self.wait(f"{name} from memory that is not pinned, or blocking")
        uploaded = GpuTensor(change(tensor.detach()).clone())
        return uploaded.requires_grad_(tensor.requires_grad)

    def _under_way(self, target: Tensor, values: Tensor) -> Tensor:
        """`target`, which holds something else until the copy of `values` to it has arrived."""
        wrong = {torch.bool: torch.logical_not, torch.uint8: torch.bitwise_not}.get(values.dtype, lambda x: -x - 1)
        target.copy_(wrong(values))
        self.copies.append((target, values.clone()))
        return target

    def _made(self, func: Callable[..., Any], name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A new tensor, on the device that is named."""
        device, pin = kwargs.get("device"), kwargs.pop("pin_memory", False)
        on_gpu = device is not None and torch.device(device).type == "cuda"
        if device is not None and not on_gpu:  # of `new_zeros` or `zeros_like` too
            args, kwargs = tree_map(_host, args), tree_map(_host, kwargs)
        if on_gpu:
            kwargs["device"] = CPU
            if name in ("tensor", "as_tensor"):
                self.wait(f"{name}(..., device=cuda)")
            args = tree_map(_host, args)
        new = func(*args, **kwargs)
        if pin:
            self.pinned[new.untyped_storage().data_ptr()] = new
        if on_gpu:
            self._count(name, (new,), free=name in FREE)
            return GpuTensor(new.detach()).requires_grad_(new.requires_grad)
        return new

    def _backward(self, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """The backward pass, in which layers may be computed again."""
        assert not any([*args[1:], *kwargs.values()]), "this is for the backward pass of a loss"
        with self:
            torch.autograd.graph._engine_run_backward(
                args, (torch.ones_like(args[0]),), False, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def _one_kernel(self, func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        self._fused.on = True
        try:
            result = func(*args, **kwargs)
        finally:
            self._fused.on = False
        self._count(_name(func), [_host(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)])
        return result

    def launch(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation on the device."""
        name = func._schema.name.split("::")[-1]
        if name not in READS and _composite(func.name()):
            return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name == "copy_":
            return self._copied(func, args, kwargs)
        self._check_mixing(name, given)
        self._check_waits(name, args, kwargs)
        self._check_order(name, args)
        outer = {id(x.host): x for x in given if isinstance(x, GpuTensor)}
        hosts = {id(x) for x in given if not isinstance(x, GpuTensor)}
        args, kwargs = tree_map(_host, args), tree_map(_host, dict(kwargs))
        if isinstance(kwargs.get("device"), torch.device):
            kwargs["device"] = CPU
        with torch._C.DisableTorchFunction():
            result = func(*args, **kwargs)
        self._count(name, [_host(x) for x in given], free=func.is_view or name in FREE)

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor) or id(x) in hosts:
                return x
            return outer[id(x)] if id(x) in outer else GpuTensor(x)

        return tree_map(wrapped, result)

    def _copied(self, func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
        target, source = args[:2]
        non_blocking = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking"))
        up, down = isinstance(target, GpuTensor), isinstance(source, GpuTensor)
        if up and not down and source.ndim and not (self._is_pinned(source) and non_blocking):
            self.wait("copy_ from memory that is not pinned, or blocking")
        if down and not up:
            if not (self._is_pinned(target) and non_blocking):
                self.wait("copy_ to the host")
            else:
                self._under_way(target, source.host.to(target.dtype).expand_as(target))
                return target
        with torch._C.DisableTorchFunction():
            func(_host(target), _host(source))
        self._count("copy_", (_host(target), _host(source)))
        return target

    def _check_mixing(self, name: str, given: Sequence[Tensor]) -> None:
        hosts = [tuple(x.shape) for x in given if not isinstance(x, GpuTensor) and x.ndim]
        # CUDA copies indices from the host; gradients of the host's own numbers are made by the engine itself
        if hosts and name not in ("index", "index_put", "index_put_") and torch._C._current_autograd_node() is None:
            raise DeviceMismatchError(f"{name} of tensors of the device and of the host {hosts}, at {_here()}")

    def _check_waits(self, name: str, args: tuple, kwargs: Mapping[str, Any]) -> None:
        if name in READS:
            self.wait(name)
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.wait("repeat_interleave without output_size")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.wait("mask as index")
                elif index is not None and not isinstance(index, GpuTensor) and index.ndim:
                    self.wait("index of the host")

    def _check_order(self, name: str, args: tuple) -> None:
        sums = name == "cumsum" and args[0].is_floating_point()
        if torch.are_deterministic_algorithms_enabled() and (sums or name in UNORDERED):
            raise RuntimeError(f"{name}_cuda does not have a deterministic implementation, at {_here()}")

    def _count(self, name: str, given: Sequence[Tensor], *, free: bool = False) -> None:
        if free or getattr(self._fused, "on", False):
            return
        self.launched += 1
        for log in self.logs:
            log.kernels[name] += 1
            if log.calls is not None:
                log.calls.append((name, tuple(tuple(x.shape) for x in given), tuple(x.data_ptr() for x in given)))


def _current() -> Rehearsal:
    assert Rehearsal.current is not None
    return Rehearsal.current


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def _host(x: Any) -> Any:
    return x.host if isinstance(x, GpuTensor) else x


@cache
def _composite(operation: str) -> bool:
    """Whether it is made of others, which a GPU gets one by one; autograd has seen to it, inference mode has not."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel(operation, "CompositeImplicitAutograd") and not has_kernel(operation, "CPU")


def _here() -> str:
    """The innermost line of the project, this file aside, that is being executed."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PROJECT) and path != Path(__file__) and "site-packages" not in path.parts:
            return f"{path.relative_to(PROJECT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the project"


def _for_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the name of a device, told of the CPU instead of the GPU."""
    return lambda device=None, *args, **kwargs: function("cpu" if device == "cuda" else device, *args, **kwargs)


def _stand_ins(rehearsal: Rehearsal) -> Iterator[Any]:
    """Patches of what PyTorch would ask the driver for."""

    class Autocast(torch.autocast):
        def __init__(self, device_type, *args, **kwargs):
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    yield patch("torch.autocast", Autocast)
    for name in ("torch.is_autocast_enabled", "torch.get_autocast_dtype", "torch.amp.is_autocast_available"):
        module, _, function = name.rpartition(".")
        yield patch(name, _for_host(getattr(sys.modules[module], function)))
    grouped = torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype

    def on_gpu(lists, with_indices=False):
        ours = any(isinstance(x, GpuTensor) for x in tree_leaves(lists))
        return {(CUDA if ours else d, t): found for (d, t), found in grouped(lists, with_indices).items()}

    yield patch.object(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", on_gpu)
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_name": CARD, "memory_allocated": 0,
        "max_memory_allocated": 0, "mem_get_info": (140 * 2**30, 141 * 2**30), "get_device_capability": (9, 0),
        "reset_peak_memory_stats": None, "empty_cache": None, "set_device": None, "is_current_stream_capturing": False,
    }  # fmt: skip
    for name, answer in answers.items():
        yield patch(f"torch.cuda.{name}", lambda *_, answer=answer: answer)
    # a build of PyTorch for CUDA asks here, and would look for a driver
    yield patch("torch.accelerator.current_stream", lambda *_: SimpleNamespace(is_capturing=lambda: False))
    yield patch("torch.cuda.synchronize", lambda *_: rehearsal.wait("torch.cuda.synchronize"))
    yield patch("torch.cuda.Event", Event)
    run = threading.Thread.run

    def rehearsed(thread: threading.Thread) -> None:
        with rehearsal:
            run(thread)

    yield patch("threading.Thread.run", rehearsed)


@contextmanager
def rehearsing() -> Iterator[Rehearsal]:
    """A block with a GPU. Networks and tensors go to it by `.to("cuda")`."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    rehearsal = Rehearsal.current = Rehearsal()
    with ExitStack() as stack:
        for stand_in in _stand_ins(rehearsal):
            stack.enter_context(stand_in)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with rehearsal:
                yield rehearsal
        finally:
            Rehearsal.current = None
            torch.__future__.set_overwrite_module_params_on_conversion(before)


def on_gpu(network: Any) -> Any:
    """A copy of a network, or of a mapping of tensors, on the GPU; None stays None."""
    if network is None:
        return None
    if isinstance(network, Mapping):
        return {name: value.to("cuda") if isinstance(value, Tensor) else value for name, value in network.items()}
    return copy.deepcopy(network).to("cuda")


def on_host(tensor: Tensor) -> Tensor:
    """The numbers of a tensor of the GPU, also after the rehearsal."""
    return tensor.host if isinstance(tensor, GpuTensor) else tensor
