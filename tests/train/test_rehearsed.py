"""Every training of a transformer as on a GPU: the weights of the CPU to the bit, and no wait in any step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dpar.device import deterministic_algorithms
from dpar.model import attention
from dpar.sampling.guidance import truncated
from dpar.train.distributed import Ranks
from dpar.train.loop import Trainer, train_to
from dpar.weights import load_model
from tests.rehearsal import Log, rehearsing
from tests.train import tiny

KINDS = {"dpar": "dpar", "llamagen": "llamagen", "unconditional": "llamagen", "distilled": "entropy_regressor"}
TRAININGS: dict[str, tuple[tiny.Kind, dict[str, Any]]] = {
    "dpar": ("dpar", {"attention": "sdpa", "precision": "bfloat16", "ema": 0.9, "accumulate": 2}),
    "checkpointed": ("dpar", {"attention": "sdpa", "activation_checkpointing_above": 0}),
    "deterministic": ("dpar", {"attention": "sdpa", "precision": "bfloat16", "deterministic": True}),
    "llamagen": ("llamagen", {"precision": "bfloat16"}),
    "entropy model": ("unconditional", {"ema": 0.9}),
    "distilled": ("distilled", {"precision": "bfloat16"}),
}
STEPS = 3


def trained(folder: Path, kind: tiny.Kind, device: str, settings: dict[str, Any]) -> torch.nn.Module:
    """The network after some steps, with a validation and a checkpoint at the end."""
    task = tiny.tiny_task(kind, **settings)
    task.model.to(device)
    ranks = Ranks(torch.device(device))
    how: dict[str, Any] = {"provenance": {}, "ranks": ranks, "job": tiny.Recorder()}
    train_to(task, STEPS, state=folder / "state", output=folder, history=folder / "history.jsonl", **how)
    return load_model(folder, KINDS[kind])


def rehearse(folder: Path, monkeypatch: pytest.MonkeyPatch, training: str) -> list[Log]:
    """A log of each step; an AssertionError if the weights, or the curves, are not the CPU's."""
    kind, settings = TRAININGS[training]
    monkeypatch.setattr(attention, "widens", lambda q: False)  # a CPU's way; a GPU's kernels take half precision
    expected = trained(folder / "cpu", kind, "cpu", settings)
    logs: list[Log] = []
    advance = Trainer.advance
    with rehearsing() as gpu, monkeypatch.context() as patched:

        def logged(trainer: Trainer, stream: Any) -> None:
            with gpu.logging() as log:
                advance(trainer, stream)
            logs.append(log)

        patched.setattr(Trainer, "advance", logged)
        found = trained(folder / "gpu", kind, "cuda", settings)
    for (name, a), b in zip(expected.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b), name
    curves, wanted = tiny.history(folder / "gpu"), tiny.history(folder / "cpu")
    assert curves.keys() == wanted.keys()
    for step, row in curves.items():
        # some CPUs' kernels round the validation's sum in bfloat16 by where its tensors lie in memory
        assert row == pytest.approx(wanted[step], rel=1e-5), step
    return logs


def assert_no_waits(logs: list[Log]) -> None:
    """Only the outcome of the step before is asked for, when the next one is under way."""
    assert len(logs) == STEPS
    for step, log in enumerate(logs):
        assert not log.waits
        assert log.hidden.total() <= min(step, 1)


@pytest.mark.parametrize("training", TRAININGS)
def test_weights_of_the_cpu_and_no_wait(tmp_path, monkeypatch, training):
    assert_no_waits(rehearse(tmp_path, monkeypatch, training))


def test_a_deterministic_training_may_draw_with_top_p(tmp_path):
    """CUDA refuses cumulative sums of probabilities in a deterministic training: its pictures are drawn without."""
    drawn = []

    def picture(network):
        truncated(network.tok_embeddings.weight.to("cuda"), temperature=1.0, top_k=0, top_p=0.5)
        drawn.append(network)
        return b"a picture"

    with rehearsing():
        task = tiny.tiny_task("llamagen", deterministic=True)
        task.model.to("cuda")
        ranks = Ranks(torch.device("cuda"))
        how: dict[str, Any] = {"provenance": {}, "ranks": ranks, "job": tiny.Recorder(), "picture": picture}
        train_to(task, 1, state=tmp_path / "state", output=tmp_path, history=tmp_path / "history.jsonl", **how)
        with (
            pytest.raises(RuntimeError, match="cumsum_cuda does not have a deterministic"),
            deterministic_algorithms(True),
        ):
            picture(task.model)
    assert drawn
