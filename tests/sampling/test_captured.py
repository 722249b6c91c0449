"""The sampler of a GPU: its parts draw what the literal algorithm draws, and can be captured as CUDA graphs.

There is no GPU here. The parts run on the CPU in float64; graphs are stood in for by `RecordedGraph`, which repeats the
operations of its capture on the same tensors; and the host's waits and launches are counted in rehearsal.
"""

import logging
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpar.model.dpar import DPAR
from dpar.model.entropy_regressor import EntropyRegressor
from dpar.model.llamagen import LlamaGen
from dpar.patches.rule import PatchRule
from dpar.sampling import captured, fused_noise, sampler, static_cache, steps
from dpar.sampling.captured import Graphs, GraphStore, sample_static
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.noise import gumbel_at
from dpar.sampling.sampler import sample
from dpar.sampling.static_parts import BUCKETS, DPARParts, Kernels, bucket
from tests.recorded import RecordedGraph, stand_in_for_graphs, tensors_of
from tests.rehearsal import on_gpu, on_host, rehearsing
from tests.sampling.test_sampler import CLASSES, RULE, SIZES, STATIC, assert_literal, request, with_random_weights

LAYERS = {"layers": 2, "encoder_layers": 2, "decoder_layers": 2}


@pytest.fixture(scope="module")
def networks():
    return {
        "dpar": with_random_weights(DPAR(DPAR.Config(num_classes=CLASSES, **LAYERS, **SIZES))),
        "llamagen": with_random_weights(LlamaGen(LlamaGen.Config(layers=2, num_classes=CLASSES, **SIZES))),
        "entropy_model": with_random_weights(LlamaGen(LlamaGen.Config(layers=2, **SIZES))),
        "null_class": with_random_weights(LlamaGen(LlamaGen.Config(layers=1, num_classes=7, **SIZES))),
        "distilled": with_random_weights(
            EntropyRegressor(EntropyRegressor.Config(layers=1, **{**SIZES, "width": 16, "heads": 1}))
        ),
        None: None,
    }


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """`sample` takes the parts of a GPU."""
    monkeypatch.setattr(sampler, "by_static_parts", lambda device: True)


CASES = {
    "guided": ("dpar", "entropy_model", RULE, DrawSettings(2.5)),
    "class_alone": ("dpar", "entropy_model", RULE, DrawSettings(1.0)),
    "null_alone": ("dpar", "entropy_model", RULE, DrawSettings(0.0)),
    "no_rows": ("dpar", "entropy_model", PatchRule(4, 2.6, row_boundary=False), DrawSettings(2.5)),
    "null_class": ("dpar", "null_class", RULE, DrawSettings(1.5)),
    "gate": ("dpar", "distilled", replace(RULE, threshold=3.7), DrawSettings(2.5)),
    "first_part": ("dpar", "entropy_model", RULE, DrawSettings(2.5, (0.0, 0.75))),
    "middle_part": ("dpar", "entropy_model", RULE, DrawSettings(0.0, (0.25, 0.6))),
    "truncated": ("dpar", "entropy_model", RULE, DrawSettings(2.0, temperature=0.8, top_k=12, top_p=0.9)),
    "static": ("dpar", None, STATIC, DrawSettings(2.5)),
    "llamagen": ("llamagen", None, None, DrawSettings(3.0)),
    "llamagen_part": ("llamagen", None, None, DrawSettings(3.0, (0.25, 0.6), top_p=0.9)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_equals_the_literal_algorithm(networks, case):
    model, entropy_model, rule, settings = CASES[case]
    result = assert_literal(networks[model], networks[entropy_model], request(5), rule=rule, settings=settings)
    if rule is not None and rule.is_dynamic:
        some = result.starts.any(0) & ~result.starts.all(0)
        assert some.sum() >= 3, "all images open patches together: nothing is ragged"


@pytest.mark.parametrize("position", ["2d", "dynamic_no_redundancy"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_position_schemes_and_mean_queries(networks, position):
    config = DPAR.Config(
        num_classes=CLASSES, layers=1, decoder_layers=1, position=position, query_pooling="mean", **SIZES
    )
    model = with_random_weights(DPAR(config))
    assert_literal(model, networks["entropy_model"], request(3), rule=RULE, settings=DrawSettings(1.5))


@pytest.mark.parametrize("given_tokens", [1, 5, 12])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_given_beginning_is_kept_and_continued(networks, given_tokens):
    prefix = torch.randint(0, 40, (3, given_tokens), generator=torch.Generator().manual_seed(3))
    images = {**request(3), "prefix": prefix}
    settings = DrawSettings(2.0)
    result = assert_literal(networks["dpar"], networks["entropy_model"], images, rule=RULE, settings=settings)
    assert torch.equal(result.tokens[:, :given_tokens], prefix)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_tokens_of_a_batch_are_those_of_the_cpu(networks, case, dtype):
    """In float32 too, where products of other shapes round differently."""
    model, entropy_model, rule, settings = CASES[case]
    pair = [None if (network := networks[name]) is None else copied(network, dtype) for name in (model, entropy_model)]
    expected = sample(*pair, **request(9), rule=rule, settings=settings)
    found = sample_static(*pair, **request(9), rule=rule, settings=settings)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.starts, expected.starts)
    assert (found.entropy is None) == (expected.entropy is None)
    found.tokens.add_(1)  # usable outside of inference mode


def copied(network, dtype):
    """A copy in that precision."""
    again = type(network)(network.config)
    again.load_state_dict(network.state_dict())
    return again.eval().to(dtype)


# What a graph needs: the same operations on the same memory at every token, and nothing from elsewhere.


class Observed(TorchDispatchMode):
    """Operations of a block: their shapes, and where each tensor that they take comes from."""

    def __init__(self, static):
        super().__init__()
        self.static, self.made, self.calls = static, {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        numbers = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, int | float | bool)]
        origins = [(tuple(x.shape), x.stride(), x.storage_offset(), self._origin(x)) for x in given]
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.static:
                self.made.setdefault(x.untyped_storage().data_ptr(), x)  # kept: no other tensor gets its address
        self.calls.append((str(func), tuple(numbers), tuple(origins)))
        return result

    def _origin(self, x):
        address = x.untyped_storage().data_ptr()
        assert x.device.type != "cpu" or x.numel() == 0 or address in self.static or address in self.made, "foreign"
        return address if address in self.static else "made here"


@pytest.fixture(params=[False, True], ids=["masked", "in_place"])
def in_place(request, monkeypatch):
    """Whether attention reads rows where they lie, by a stand-in for the kernel."""
    if request.param:
        monkeypatch.setattr(static_cache, "VARLEN", by_rows)
    return request.param


@torch.library.custom_op("dpar_tests::by_rows", mutates_args=())
def _by_rows(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    rows = []
    for row, first, length in zip(q, offsets.tolist(), lengths.tolist(), strict=False):
        span = slice(first, first + length)
        scores = torch.einsum("hd,nhd->hn", row, keys[span]) * q.shape[-1] ** -0.5
        rows.append(torch.einsum("hn,nhd->hd", scores.softmax(-1), values[span]))
    return torch.stack(rows)


def by_rows(q, keys, values, query_offsets, key_offsets, longest_query, longest, *, seqused_k):
    """What `varlen_attn` computes if its offsets into the keys are taken as they are."""
    assert query_offsets.tolist() == list(range(len(q) + 1))
    assert len(key_offsets) == len(q) + 1 == len(seqused_k) + 1
    assert {x.dtype for x in (query_offsets, key_offsets, seqused_k)} == {torch.int32}
    assert longest_query == 1 <= int(seqused_k.max()) <= longest
    return torch.ops.dpar_tests.by_rows(q, keys, values, key_offsets[:-1], seqused_k)


def parts_of(networks, case, batch, in_place):
    """The parts of a case, and the function that draws with them."""
    model, entropy_model, rule, settings = CASES[case]
    kernels = Kernels(in_place, in_place, False)
    if model == "llamagen":
        return captured.LlamaGenParts(networks[model], batch, settings, kernels), captured.draw_llamagen
    made = DPARParts(networks[model], networks[entropy_model], batch, rule, settings, kernels)
    return made, captured.draw_dpar


@pytest.mark.parametrize("case", CASES)
def test_parts_do_the_same_at_every_token(networks, case, in_place):
    """Operations in their order, numbers of the host, shapes, strides, and addresses of what outlives a call."""
    with torch.inference_mode():
        parts, draw = parts_of(networks, case, 7, in_place)
    static = {x.untyped_storage().data_ptr() for x in tensors_of(parts)}
    seen = defaultdict(list)

    def observed(part, *choice):
        with Observed(static) as mode:
            result = part(*choice)
        seen[part.__name__, *choice].append(mode.calls)
        return result

    model, entropy_model, rule, settings = CASES[case]
    for seed in range(2):
        images = request(7) | {"seeds": request(7)["seeds"] + seed}
        with torch.inference_mode():
            parts.begin(**images, prefix=None)
            draw(parts, observed, 0)
        expected = sample(networks[model], networks[entropy_model], **images, rule=rule, settings=settings)
        assert torch.equal(parts.result().tokens, expected.tokens)
        assert torch.equal(parts.result().starts, expected.starts)
    repeated = {key: calls for key, calls in seen.items() if len(calls) > 1}
    assert {key[0] for key in repeated} == {key[0] for key in seen}
    assert sum(map(len, repeated.values())) > 0.9 * sum(map(len, seen.values()))
    for key, (first, *others) in repeated.items():
        assert len(first) > 10 or key[1] is True, "the recording has found next to nothing"
        assert all(calls == first for calls in others), key
    if in_place:
        assert len(seen) <= 8 + BUCKETS, "as many graphs as there are tokens are no graphs"


def test_keys_and_values_in_half_precision_for_tf32(networks, in_place):
    """float16 has TF32's ten bits of mantissa: entropies move in the fourth digit, and here no boundary does."""
    model, entropy_model, rule, settings = CASES["guided"]
    images, kernels = request(6), Kernels(False, in_place, False)
    expected = sample(networks[model], networks[entropy_model], **images, rule=rule, settings=settings)
    settings = replace(settings, entropy_precision="tf32")
    with torch.inference_mode():
        parts = DPARParts(networks[model], networks[entropy_model], 6, rule, settings, kernels)
        parts.begin(**images, prefix=None)
        captured.draw_dpar(parts, captured.launched, 0)
    found = parts.result()
    assert parts.boundaries.cache.keys[0].dtype == (torch.float16 if in_place else torch.float64)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.starts, expected.starts)
    if in_place:
        assert not torch.equal(found.entropy, expected.entropy)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=0, atol=5e-3)


def test_noise_of_one_kernel(networks, monkeypatch):
    """The draw takes what the kernel gives."""
    made = []

    def kernel(keys, counters):
        made.append(len(keys))
        return gumbel_at(keys[:, 0], counters).view(torch.long)

    monkeypatch.setattr(fused_noise, "_kernel", lambda: kernel)
    model, entropy_model, rule, settings = CASES["guided"]
    expected = sample(networks[model], networks[entropy_model], **request(4), rule=rule, settings=settings)
    with torch.inference_mode():
        kernels = Kernels(False, False, True)
        parts = DPARParts(networks[model], networks[entropy_model], 4, rule, settings, kernels)
        parts.begin(**request(4), prefix=None)
        captured.draw_dpar(parts, captured.launched, 0)
    assert torch.equal(parts.result().tokens, expected.tokens)
    assert made == [4] * 12


@pytest.mark.parametrize("batch", [1, 5, 16, 17, 100, 256])
def test_every_number_of_images_has_a_bucket(batch):
    buckets = [bucket(count, batch) for count in range(1, batch + 1)]
    assert all(found >= count for count, found in enumerate(buckets, 1))
    assert max(buckets) == batch
    assert len(set(buckets)) == min(batch, BUCKETS)
    assert sum(buckets) / sum(range(1, batch + 1)) < 1.1


def test_scratch_rows_reach_no_image(networks, in_place, monkeypatch):
    """Whatever lies in scratch rows, and however many of them a call is padded with."""
    with torch.inference_mode():
        parts, draw = parts_of(networks, "first_part", 6, in_place)
        images = request(6)
        parts.begin(**images, prefix=None)
        draw(parts, captured.launched, 0)
        expected = parts.result()
        for cache in (parts.encoder_cache, parts.patch_cache, parts.decoder_cache, parts.boundaries.cache):
            for some in (*cache.keys, *cache.values):
                some[-1] = torch.nan
        for some in (*parts.states, *parts.added):
            some[-1] = torch.nan
        for at_least in (1, 4, 6):
            monkeypatch.setattr(captured, "bucket", lambda count, batch, at_least=at_least: max(count, at_least))
            parts.begin(**images, prefix=None)
            draw(parts, captured.launched, 0)
            assert all(map(torch.equal, parts.result(), expected)), at_least


@pytest.fixture
def graphs(monkeypatch, as_on_a_gpu):
    """Graphs that were captured, while CUDA's are stood in for."""
    return stand_in_for_graphs(monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_graphs_draw_the_same(networks, case, graphs):
    """Batches that share a store: the first launches, captures and replays, the last replays alone."""
    model, entropy_model, rule, settings = CASES[case]
    pair, store = (networks[model], networks[entropy_model]), GraphStore()
    for seed in range(4):
        images, seen = request(5) | {"seeds": request(5)["seeds"] + seed}, []
        expected = sample_static(*pair, **images, rule=rule, settings=settings)
        found = sample(*pair, **images, rule=rule, settings=settings, store=store, observe=seen.append)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.starts, expected.starts)
        assert torch.equal(torch.stack([step.tokens for step in seen], 1), expected.tokens)
        assert torch.equal(torch.stack([step.opens for step in seen], 1), expected.starts)
        if seed < 2:
            continue
        (parts, run), captured_before = store._kept, len(graphs)
    assert len(run.captured) == len(graphs) == captured_before >= 2
    assert run.stream.waited
    assert parts.batch == 5


def test_graphs_are_made_anew_for_other_weights_settings_and_batches(networks, graphs):
    store, pair = GraphStore(), (copied(networks["dpar"], torch.float64), networks["entropy_model"])

    def graphs_of(count, settings, beginning=None):
        images = request(count) | ({} if beginning is None else {"prefix": beginning})
        expected = sample_static(*pair, **images, rule=RULE, settings=settings)
        assert torch.equal(sample(*pair, **images, rule=RULE, settings=settings, store=store).tokens, expected.tokens)
        return store._kept[1]

    first = graphs_of(4, DrawSettings(2.0))
    assert graphs_of(4, DrawSettings(2.0)) is first
    assert graphs_of(4, DrawSettings(2.0), torch.zeros(4, 3, dtype=torch.long)) is first
    other = graphs_of(4, DrawSettings(2.0, top_k=5))
    assert other is not first
    smaller = graphs_of(3, DrawSettings(2.0, top_k=5))
    assert smaller is not other
    pair[0].to(torch.float32)
    assert graphs_of(3, DrawSettings(2.0, top_k=5)) is not smaller
    with torch.no_grad():
        pair[0].decoder.output.weight.mul_(2)
    graphs_of(3, DrawSettings(2.0, top_k=5))


@pytest.mark.parametrize("broken", ["capture_begin", "capture_end", "stream"])
def test_what_cannot_be_captured_is_launched_and_said_once(networks, graphs, monkeypatch, caplog, broken):
    def fail(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    if broken == "stream":
        monkeypatch.setattr(torch.cuda, "Stream", fail)
    else:
        end = RecordedGraph.capture_end
        monkeypatch.setattr(RecordedGraph, broken, lambda self, **how: (broken == "capture_end" and end(self), fail()))
    pair, store = (networks["dpar"], networks["entropy_model"]), GraphStore()
    if broken == "capture_begin":
        monkeypatch.setattr(RecordedGraph, "capture_end", lambda self: None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = sample(*pair, **request(4), rule=RULE, settings=DrawSettings(2.0), store=store)
            expected = sample_static(*pair, **request(4), rule=RULE, settings=DrawSettings(2.0))
            assert torch.equal(found.tokens, expected.tokens)
    (said,) = caplog.messages
    assert said.endswith("capturing failed: operation not permitted when stream is capturing")
    assert not store._kept[1].captured


# What the host does.


@pytest.mark.parametrize("case", CASES)
def test_the_host_waits_once_where_it_must_and_launches_little(networks, case):
    """In rehearsal: no wait inside a part; outside at most one a token, hidden behind the encoder; few launches."""
    model, entropy_model, rule, settings = CASES[case]
    pair = networks[model], networks[entropy_model]
    expected = sample(*pair, **request(5), rule=rule, settings=settings)
    inside = Counter()
    with rehearsing() as gpu:

        def watched(part, *choice):
            with gpu.logging() as log:
                result = part(*choice)
            assert not log.waits | log.hidden, (part.__name__, log.waits | log.hidden)
            inside[part.__name__] += log.launches
            return result

        on_device = {name: on_gpu(network) for name, network in networks.items()}
        with torch.inference_mode():
            parts, draw = parts_of(on_device, case, 5, False)
            parts.begin(**on_gpu(request(5)), prefix=None)
            with gpu.logging() as log:
                draw(parts, watched, 0)
        found = parts.result()
    assert torch.equal(on_host(found.tokens), expected.tokens)
    assert torch.equal(on_host(found.starts), expected.starts)
    asks = 0 if rule is None or not rule.is_dynamic else sum(not rule.forced(t) for t in range(12))
    assert log.hidden.total() == asks
    assert not log.waits
    assert log.launches - sum(inside.values()) <= 1 + asks
    assert sum(inside.values()) / 12 > 40


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_captured_as_launched_and_as_on_a_cpu(networks, case):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    model, entropy_model, rule, settings = CASES[case]
    pair = networks[model], networks[entropy_model]
    on_device, store = tuple(map(on_gpu, pair)), GraphStore()
    for seed in range(4):
        images = request(5) | {"seeds": request(5)["seeds"] + seed}
        expected = sample(*pair, **images, rule=rule, settings=settings)
        given = {name: value.cuda() for name, value in images.items()}
        found = sample(*on_device, **given, rule=rule, settings=settings, store=store)
        launched = sample(*on_device, **given, rule=rule, settings=settings)
        for one in (found, launched):
            assert torch.equal(one.tokens.cpu(), expected.tokens)
            assert torch.equal(one.starts.cpu(), expected.starts)
    graphs = store._kept[1]
    assert graphs.failure is None
    assert len(graphs.captured) >= 2


def test_the_operation_below_takes_lengths_where_varlen_attn_does_not():
    """By the shapes that PyTorch gives for a GPU."""
    with torch.device("meta"):
        q, keys = torch.empty(3, 2, 64, dtype=torch.bfloat16), torch.empty(40, 2, 64, dtype=torch.bfloat16)
        offsets, lengths = torch.empty(4, dtype=torch.int32), torch.empty(3, dtype=torch.int32)
    found = static_cache._flash_attention(q, keys, keys, offsets, offsets, 1, 20, seqused_k=lengths)
    assert (found.shape, found.dtype) == (q.shape, q.dtype)


def test_masked_attention_gets_biases_that_no_kernel_pads(networks, monkeypatch):
    """CUDA's memory-efficient kernel copies a bias of which a stride is no multiple of 8 numbers, in every layer."""
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, attn_mask):
        seen.append((attn_mask.shape, attn_mask.stride(), attn_mask.storage_offset(), k.shape))
        return attend(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(static_cache.F, "scaled_dot_product_attention", watched)
    for case in ("guided", "first_part", "llamagen"):
        model, entropy_model, rule, settings = CASES[case]
        sample_static(networks[model], networks[entropy_model], **request(3), rule=rule, settings=settings)
    assert len({shape for shape, *_ in seen}) > 1
    cached = static_cache.StaticCache(1, 3, 40, 2, torch.zeros(16), in_place=False)
    for longest in range(1, 41):
        slots = cached.lockstep(torch.tensor([longest - 1]), 3, cached.read_length(longest))
        static_cache.static_attention(cached.keys[0], cached.values[0], slots)(*torch.randn(3, 3, 2, 8))
    for shape, strides, offset, read in seen:
        assert shape[-1] == read[-2], "a bias is as wide as the entries that are read"
        assert shape[-1] % 16 == 0
        assert offset == 0
        assert strides[-1] == 1
        assert all(stride % 16 == 0 for stride, size in zip(strides[:-1], shape[:-1], strict=True) if size > 1)


@pytest.mark.gpu
def test_the_kernel_reads_rows_where_they_lie():
    """Its offsets into the keys are inferred from its source; a GPU without it masks instead."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    assert static_cache._trial(torch.device("cuda"), torch.bfloat16, 64) is None


def test_compiled_parts_are_compiled_once(networks, monkeypatch):
    taken = []
    torch_compile = torch.compile

    def compiled(step, **how):
        def backend(graph, inputs):
            made = aot_eager(graph, inputs)  # which guards sizes that the graph alone does not, and may begin anew
            taken.append(step.__name__)
            return made

        return torch_compile(step, backend=backend, **how)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(steps, "try_compiler", lambda device: None)
    torch._dynamo.reset()
    steps.compiled.cache_clear()
    settings = DrawSettings(2.5, compile=True)
    try:
        for count in (5, 7):
            expected = sample_static(
                networks["dpar"], networks["entropy_model"], **request(count), rule=RULE, settings=DrawSettings(2.5)
            )
            with steps.compiling(torch.device("cpu")):
                found = sample_static(
                    networks["dpar"], networks["entropy_model"], **request(count), rule=RULE, settings=settings
                )
            assert torch.equal(found.tokens, expected.tokens)
            # one row more for the patch transformer, where a single image opens a patch
            assert sorted(set(taken)) == [
                "decoder_step", "encoder_step", "patch_transformer_step", "pool_patches", "token_entropy"
            ]  # fmt: skip
        assert len(taken) <= 7
    finally:
        torch._dynamo.reset()
        steps.compiled.cache_clear()


def test_graphs_repeat_parts_by_their_arguments(graphs):
    """The first call launches, the second captures and replays, each combination of arguments for itself."""
    RecordedGraph.static = [total := torch.zeros(1)]

    def add(number):
        total.add_(number)
        return total * 2

    run = Graphs(torch.device("cpu"))
    found = [run(add, number).item() for number in (1, 1, 2, 1, 2, 2)]
    assert found == [2, 4, 8, 10, 14, 18]
    assert len(graphs) == 2
