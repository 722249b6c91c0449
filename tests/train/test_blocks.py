"""Layers that are compiled, or computed again in the backward pass, give what they gave."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.nn.attention import varlen

from dpar.data.loader import batches, sequential
from dpar.train.blocks import blocks, checkpoint_activations, compile_blocks
from dpar.train.distributed import Ranks
from dpar.train.objective import Inputs, autocast, inputs, logits_and_targets, summed_loss
from dpar.train.optimizer import build_optimizer
from tests.train.processes import run_on_ranks, train_on_ranks
from tests.train.test_loop import same_weights
from tests.train.tiny import Task, history, tiny_task, train

KINDS = ["dpar", "llamagen", "unconditional"]
CPU = torch.device("cpu")


def randomised(kind, **settings) -> Task:
    """A task whose weights are all random."""
    task, generator = tiny_task(kind, **settings), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return task


def given(task: Task, batch) -> Inputs:
    """What the network reads of a batch."""
    return inputs(batch, labelled=task.labelled, rule=task.rule)


def logits_and_gradients(task: Task, read: Inputs, precision="float32") -> list[torch.Tensor]:
    """Of one step, with dropout drawn from one seed."""
    task.model.zero_grad()
    torch.manual_seed(1)
    with autocast(read.tokens.device, precision):
        logits, targets = logits_and_targets(task.model, read)
    summed_loss(logits, targets).backward()
    return [logits.detach(), *(p.grad for p in task.model.parameters())]


def saved_bytes(task: Task, read: Inputs) -> int:
    """What a forward pass keeps for the backward pass outside of layers that are computed again."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        logits_and_targets(task.model, read)
    return sum(kept)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_computed_again_keep_less_and_give_the_same_bits(kind, precision):
    kept, again = randomised(kind, dropout=0.2), randomised(kind, dropout=0.2)
    checkpoint_activations(again.model)
    read = given(kept, next(batches(kept.train, batch_size=8, seed=0)))
    found, expected = (logits_and_gradients(task, read, precision) for task in (again, kept))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert 2 * saved_bytes(again, read) < saved_bytes(kept, read)
    for task in (kept, again):
        task.model.eval()
    with torch.no_grad():
        assert torch.equal(*(logits_and_targets(task.model, read)[0] for task in (kept, again)))


@pytest.mark.parametrize("kind", ["dpar", "llamagen"])
def test_a_training_that_computes_layers_again_gives_the_same_bits(tmp_path, kind):
    settings = {"until": 8, "accumulate": 2, "ema": 0.9}
    kept = train(tmp_path / "kept", kind, **settings)
    again = train(tmp_path / "again", kind, activation_checkpointing_above=0, **settings)
    assert same_weights(kept, again)


def test_only_models_that_are_larger_compute_layers_again(tmp_path, monkeypatch):
    monkeypatch.setattr("dpar.train.loop.checkpoint_activations", lambda model: pytest.fail("not larger"))
    size = sum(p.numel() for p in tiny_task("llamagen").model.parameters())
    train(tmp_path, "llamagen", 1, activation_checkpointing_above=size)


def test_two_ranks_that_compute_layers_again_give_the_bits_of_two_that_do_not(tmp_path):
    kept = train_on_ranks(tmp_path / "kept", "dpar", 2, until=4)
    assert same_weights(kept, train_on_ranks(tmp_path / "again", "dpar", 2, until=4, activation_checkpointing_above=0))


def traceable(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1)):
    """What `varlen_attn` gives on a GPU, for compilers and in any precision."""
    at = torch.arange(len(q))
    image = torch.bucketize(at, cu_seq_q, right=True)
    seen = (image[:, None] == image) & (at[:, None] >= at)
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize(("kind", "attention"), [("dpar", "sdpa"), ("dpar", "varlen"), ("llamagen", "auto")])
def test_the_first_step_compiles_for_all_packed_lengths(float64, monkeypatch, kind, attention):
    """Without a break in any graph, and with what eager layers give; validation ends the compiling."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    monkeypatch.setattr("dpar.train.blocks.try_compiler", lambda device: None)
    monkeypatch.setattr(varlen, "varlen_attn", traceable)
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    eager, compiled = (randomised(kind, dropout=0.0, attention=attention) for _ in range(2))
    compile_blocks(compiled.model, CPU, torch.float64)
    stream, lengths, counts = batches(eager.train, batch_size=8, seed=0), set(), []
    for _ in range(8):
        read = given(eager, next(stream))
        lengths.add(read.patches)
        found, expected = (logits_and_gradients(task, read) for task in (compiled, eager))
        torch.testing.assert_close(found, expected)
        counts.append(counted["unique_graphs"])
    assert len(lengths) > 4 or kind == "llamagen"
    # packed layers, dense ones of tokens with and without the start, tokens to patches, patches to tokens
    assert 1 <= counts[0] == counts[-1] <= 5
    compiled.model.eval()
    with torch.no_grad():
        for images in (8, 5, 3, 1):
            logits_and_targets(compiled.model, given(compiled, next(sequential(compiled.val, images))))
    assert counted["unique_graphs"] <= 3 * counts[0]  # to train, to validate, and for a batch of one image


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpar", "llamagen"])
def test_compiled_layers_give_the_logits_and_gradients_of_eager_ones(float64, kind):
    """With the compiler that trainings use, in full precision."""
    torch._dynamo.reset()
    eager, compiled = (randomised(kind, dropout=0.0) for _ in range(2))
    compile_blocks(compiled.model, CPU, torch.float64)
    stream, graphs = batches(eager.train, batch_size=8, seed=0), set()
    for _ in range(6):
        read = given(eager, next(stream))
        found, expected = (logits_and_gradients(task, read) for task in (compiled, eager))
        torch.testing.assert_close(found, expected)
        graphs.add(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(graphs) == 1, "batches of other packed lengths were compiled again"


def train_traced(folder, **settings):
    """Trains compiled layers, as far as Dynamo goes: what it makes runs as PyTorch's own operations."""
    torch.compile = partial(torch.compile, backend="eager")
    train(folder, **settings)


def test_two_ranks_with_divided_layers_that_are_compiled_and_computed_again_give_the_losses_of_one(tmp_path):
    settings = {"kind": "llamagen", "until": 4, "dropout": 0.0, "log_every": 1}
    one = train(tmp_path / "one", **settings)
    every = {"compile": True, "activation_checkpointing_above": 0, "fsdp_above": 0}
    ends = run_on_ranks(train_traced, 2, tmp_path / "two", **settings, **every)
    assert [code for code, _ in ends] == [0, 0], ends
    for step, row in history(one).items():
        assert history(tmp_path / "two" / "model4")[step] == pytest.approx(row, rel=1e-5)


def test_without_a_compiler_a_training_that_wants_one_is_refused_in_a_line(tmp_path):
    script = "import pathlib, sys; from tests.train.tiny import train; "
    script += "train(pathlib.Path(sys.argv[1]), 'llamagen', 1, compile=True)"
    environment = os.environ | {"PATH": str(tmp_path), "CXX": "no-such-compiler", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "PyTorch cannot compile here" in last
    assert "set `compile: false`" in last
    assert len(done.stderr.splitlines()) < 40


@pytest.fixture
def gpu():
    """A CUDA device; a test that asks for it is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    torch._dynamo.reset()
    return torch.device("cuda", torch.cuda.current_device())


def on(device, task: Task) -> Task:
    """The task with its model on `device`."""
    task.model.to(device)
    return task


@pytest.mark.gpu
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("kind", ["dpar", "llamagen"])
def test_compiled_layers_on_a_gpu_give_what_eager_ones_give_and_compile_once(gpu, kind, recomputed):
    eager, compiled = (on(gpu, randomised(kind, dropout=0.0)) for _ in range(2))
    compile_blocks(compiled.model, gpu, torch.bfloat16)
    if recomputed:
        checkpoint_activations(compiled.model)
    stream, graphs = batches(eager.train, batch_size=8, seed=0), set()
    for _ in range(10):
        read = given(eager, next(stream)).to(gpu)
        found, expected = (logits_and_gradients(task, read, "bfloat16") for task in (compiled, eager))
        for a, b in zip(found, expected, strict=True):  # products keep 8 bits; sums of 128 tokens
            torch.testing.assert_close(a, b, rtol=5e-2, atol=5e-2 * float(b.abs().max()))
        graphs.add(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(graphs) == 1, "batches of other packed lengths were compiled again"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_that_are_computed_again_on_a_gpu_draw_the_same_dropout(gpu, precision):
    kept, again = (on(gpu, randomised("llamagen", dropout=0.2)) for _ in range(2))
    checkpoint_activations(again.model)
    read = given(kept, next(batches(kept.train, batch_size=8, seed=0))).to(gpu)
    found, expected = (logits_and_gradients(task, read, precision) for task in (again, kept))
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)  # the order of atomic sums is not fixed


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_divided_model_on_a_gpu_gives_the_losses_of_a_whole_one(gpu, compiled):
    whole, divided = (on(gpu, randomised("dpar", dropout=0.0)) for _ in range(2))
    here = Ranks(gpu)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        if compiled:
            compile_blocks(divided.model, gpu, torch.bfloat16)
        checkpoint_activations(divided.model)
        here.shard(divided.model, blocks(divided.model))
        optimizers = [build_optimizer(task.model, task.training) for task in (whole, divided)]
        stream = batches(whole.train, batch_size=8, seed=0)
        for _ in range(5):
            read, losses = given(whole, next(stream)).to(gpu), []
            for task, optimizer in zip((whole, divided), optimizers, strict=True):
                with autocast(gpu, "bfloat16"):
                    logits, targets = logits_and_targets(task.model, read)
                loss = summed_loss(logits, targets) / targets.numel()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(task.model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # products keep 8 bits
    finally:
        dist.destroy_process_group()


def test_compiled_layers_are_not_split_at_buckets_of_gradients(monkeypatch):
    """A layer of an XL has three buckets of them."""
    monkeypatch.setattr("dpar.train.blocks.try_compiler", lambda device: None)
    with torch._dynamo.config.patch(optimize_ddp=True):  # monkeypatch would take the setting away afterwards
        compile_blocks(randomised("dpar").model, CPU, torch.float32)
        assert torch._dynamo.config.optimize_ddp is False
