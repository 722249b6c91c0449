"""CUDA graphs that are not there: what is captured is recorded, and repeated on the same tensors."""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpar.sampling.static_parts import TokenParts


def tensors_of(thing, depth=4):
    """All tensors that a batch keeps, in its attributes, lists and caches."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, torch.nn.Module):
        return list(thing.parameters())
    values = vars(thing).values() if hasattr(thing, "__dict__") else thing if isinstance(thing, list | tuple) else ()
    return [x for value in values for x in tensors_of(value, depth - 1)] if depth else []


class RecordedGraph(TorchDispatchMode):
    """Stands in for `torch.cuda.CUDAGraph`: capturing changes nothing, replaying repeats it on the same tensors."""

    static: list[torch.Tensor]
    made: list["RecordedGraph"]

    def capture_begin(self, pool, capture_error_mode):
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        self.before = [(x, x.clone()) for x in self.static]
        self.calls = []
        self.made.append(self)
        self.__enter__()

    def capture_end(self):
        self.__exit__(None, None, None)
        for x, before in self.before:
            x.copy_(before)

    def replay(self):
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if (
                    isinstance(old, torch.Tensor)
                    and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr()
                ):
                    old.copy_(new)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Stream:
    """Stands in for a stream: keeps who waits for whom."""

    def __init__(self, device=None):
        self.device, self.waited = device, []

    def wait_stream(self, other):
        self.waited.append(other)


def stand_in_for_graphs(monkeypatch):
    """Has `dpar.sampling.captured` record its parts; the list of graphs, which grows."""
    monkeypatch.setattr(RecordedGraph, "made", [], raising=False)
    default = Stream()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: default)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    begin = TokenParts.begin

    def begin_noting(self, *args):
        RecordedGraph.static = [x for x in tensors_of(self) if not isinstance(x, torch.nn.Parameter)]
        begin(self, *args)

    monkeypatch.setattr(TokenParts, "begin", begin_noting)
    return RecordedGraph.made
