"""Sampling on a GPU (Algorithm 2): tensors at fixed addresses, parts of a token captured as CUDA graphs, and one number
a token that the host asks for, namely how many images open a patch.

The host launches `place`, has its count copied to pinned memory, launches `encode`, and waits for the count while the
device encodes; then `open` for at least so many images, and `decode`. Where all images must open a patch (the first two
tokens, row starts) nothing is asked, nor with static patches or by a LlamaGen.

A part is launched kernel by kernel the first time that it is called with some arguments, and captured the second time.
All graphs allocate from one pool: what a part leaves behind is in tensors outside of it. Padding a call with scratch
rows rounds like another batch size does; images are the same as those of `dpar.sampling.sampler` on a CPU.

Nothing of this has run on CUDA yet. Tests run the parts in float64 and compare them with the literal algorithm, and
compare the operations, shapes and addresses of each part from token to token (`tests/sampling/test_captured.py`).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar.model.dpar import DPAR
from dpar.model.llamagen import LlamaGen
from dpar.patches.rule import PatchRule, static_starts
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.result import SampleResult, Step
from dpar.sampling.static_parts import DPARParts, Kernels, LlamaGenParts, Part, bucket

Run = Callable[..., Any]  # a part and its arguments -> its result

logger = logging.getLogger(__name__)


def launched(part: Part, *choice: Any) -> Any:
    """The result of `part`, its kernels launched one by one."""
    return part(*choice)


class Graphs:
    """Parts that are captured when they are called a second time with the same arguments, and replayed from then on.

    Where capturing fails, a warning says so once, and parts that are not captured yet are launched kernel by kernel.
    """

    def __init__(self, device: torch.device):
        self.captured: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Any]] = {}
        self.called: set[tuple[Any, ...]] = set()
        self.failure: str | None = None
        self.stream: torch.cuda.Stream | None = None
        try:
            self.pool = torch.cuda.graph_pool_handle()
            self.stream = torch.cuda.Stream(device)
        except RuntimeError as error:
            self._give_up(error)

    def __call__(self, part: Part, *choice: Any) -> Any:
        """As `launched`."""
        key = (part.__name__, *choice)
        if self.failure is None and key in self.called and key not in self.captured:
            self._capture(key, part, choice)
        if key in self.captured:
            graph, result = self.captured[key]
            graph.replay()
            return result
        self.called.add(key)
        return part(*choice)

    def _capture(self, key: tuple[Any, ...], part: Part, choice: tuple[Any, ...]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may decode images meanwhile
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                result = part(*choice)
            finally:
                graph.capture_end()
        except RuntimeError as error:
            self._give_up(error)
            return
        self.captured[key] = graph, result

    def _give_up(self, error: RuntimeError) -> None:
        self.failure = str(error).strip().splitlines()[0]
        said = "sampling goes on without further CUDA graphs, which is slower; capturing failed: %s"
        logger.warning(said, self.failure)

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """A block whose work is on the stream of the graphs, after what was given before and before what comes then."""
        if self.stream is None:
            yield
            return
        outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outside.wait_stream(self.stream)


class GraphStore:
    """The static tensors and graphs of the last batch, which later batches of the same size and settings use again.

    Whoever draws several batches keeps one; it holds the caches of a batch and the graphs' memory.
    """

    def __init__(self) -> None:
        self._key: Any = None
        self._kept: tuple[DPARParts | LlamaGenParts, Graphs] | None = None

    @property
    def captured(self) -> bool:
        """Whether the last batch was drawn by graphs, and none of its parts could not be captured."""
        return self._kept is not None and self.failure is None and bool(self._kept[1].captured)

    @property
    def failure(self) -> str | None:
        """Why a part of the last batch could not be captured; None if none was tried in vain."""
        return None if self._kept is None else self._kept[1].failure

    def get(self, key: Any, make: Callable[[], tuple[DPARParts | LlamaGenParts, Graphs]]) -> Any:
        """The parts and graphs that were made for an equal key the last time, or are made now."""
        if self._kept is None or self._key != key:
            self._kept = None  # before others are made: there may not be room for both
            self._key, self._kept = key, make()
        return self._kept


def sample_static(
    model: DPAR | LlamaGen,
    entropy_model: LlamaGen | None,
    *,
    labels: Int[Tensor, " B"],
    seeds: Int[Tensor, " B"],
    rule: PatchRule | None,
    settings: DrawSettings,
    prefix: Int[Tensor, "B N"] | None = None,
    observe: Callable[[Step], object] | None = None,
    store: GraphStore | None = None,
) -> SampleResult:
    """The images that `dpar.sampling.sampler.sample` draws, whose arguments these are.

    Args:
        store: where static tensors and graphs are kept; None: kernels are launched one by one, as for a single batch.
    """

    def parts() -> DPARParts | LlamaGenParts:
        if isinstance(model, LlamaGen):
            return LlamaGenParts(model, len(labels), settings, Kernels.of(model, None))
        assert rule is not None, "a model with patches needs to know where they begin"
        kernels = Kernels.of(model, entropy_model, settings.entropy_precision)
        return DPARParts(model, entropy_model, len(labels), rule, settings, kernels)

    with torch.inference_mode():
        if store is None:
            made, run, order = parts(), launched, nullcontext()
        else:
            key = (_weights(model), entropy_model and _weights(entropy_model), len(labels), rule, settings)
            made, run = store.get(key, lambda: (parts(), Graphs(labels.device)))
            order = run.in_order()
        with order:
            made.begin(labels, seeds, prefix)
            given = 0 if prefix is None else prefix.shape[1]
            if isinstance(made, LlamaGenParts):
                draw_llamagen(made, run, given, observe)
            else:
                draw_dpar(made, run, given, observe)
    # cloned outside of inference mode, so that the result may take part in computations with gradients
    return made.result()


def _weights(model: torch.nn.Module) -> tuple[Any, ...]:
    """The model by its weights' addresses and types, which graphs read: a change of precision moves them."""
    return id(model), *((p.data_ptr(), p.dtype) for p in model.parameters())


def draw_llamagen(parts: LlamaGenParts, run: Run, given: int, observe: Callable[[Step], object] | None = None) -> None:
    """Draws the batch that has begun, after `given` tokens; nothing is asked of the device."""
    every = torch.ones_like(parts.previous, dtype=torch.bool)
    for t in range(parts.model.config.tokens):
        branches, scale = _guidance(parts, t)
        length = parts.token_cache.read_length(t + 1)
        logits = run(parts.token, t == 0, branches, scale, t >= given, length)
        if observe is not None:
            observe(Step(None, every, logits.clone(), parts.previous.clone()))


def draw_dpar(parts: DPARParts, run: Run, given: int, observe: Callable[[Step], object] | None = None) -> None:
    """Draws the batch that has begun, after `given` tokens; one number is asked of the device where it decides."""
    tokens, asked = parts.model.config.tokens, Question(parts.summary)
    every = None if parts.rule.static_length is None else static_starts(1, tokens, parts.rule.static_length)[0].tolist()
    longest = 0  # most patches of an image, or a bound
    for t in range(tokens):
        first, draws, (branches, scale) = t == 0, t >= given, _guidance(parts, t)
        forced = bool(parts.rule.forced(t)) if every is None else every[t]
        ask = every is None and not forced
        if parts.boundaries is not None:
            run(parts.place, first, forced, parts.boundaries.read_length(t))
        if ask:
            asked.send()
        run(parts.encode, first, None if first else parts.encoder_cache.read_length(t))
        count, longest = asked.answer() if ask else (parts.batch if forced else 0, longest + forced)
        if count:
            length = parts.patch_cache.read_length(longest)
            run(parts.open, first, bucket(count, parts.batch), branches, length)
        logits = run(parts.decode, branches, scale, draws, parts.decoder_cache.read_length(t + 1))
        if observe is not None:
            _report(parts, t, bool(forced), logits, observe)


def _guidance(parts: DPARParts | LlamaGenParts, t: int) -> tuple[int, float]:
    """Branches that are run for x_t, and the scale, 1 where it does not matter."""
    return (parts.branches, parts.scales[t]) if t < parts.guided else (1, 1.0)


def _report(
    parts: DPARParts, t: int, forced: bool, logits: Float[Tensor, "B V"], observe: Callable[[Step], object]
) -> None:
    if parts.boundaries is None:
        entropy, opens = None, torch.full_like(parts.opens, forced)
    else:
        entropy, opens = parts.boundaries.entropies[:, t].clone(), parts.starts[:, t].clone()
    observe(Step(entropy, opens, logits.clone(), parts.previous.clone()))


class Question:
    """Two whole numbers of the device that the host asks for, and reads when the device has got there."""

    def __init__(self, values: Int[Tensor, " 2"]):
        self.values, self.event = values, None
        self.answers = torch.zeros(2, dtype=torch.long)
        if values.device.type == "cuda":
            self.answers, self.event = self.answers.pin_memory(), torch.cuda.Event()

    def send(self) -> None:
        """Has them copied once the device has done what it was given until now."""
        self.answers.copy_(self.values, non_blocking=True)
        if self.event is not None:
            self.event.record()

    def answer(self) -> tuple[int, int]:
        """Waits for the copy."""
        if self.event is not None:
            self.event.synchronize()
        count, longest = self.answers.tolist()
        return count, longest
