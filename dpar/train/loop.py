"""The one trainer: entropy model, gates, LlamaGen and DPAR (Section 4.1), resumable after any step to the bit.

Everything random in a step comes from (seed, step, rank) or (seed, epoch, image), nothing from the steps before: a
training that was killed and started again gives the same weights as one that ran through: to the bit on a CPU. On CUDA
some sums are atomic additions, in an order that no seed decides, so that two runs differ by rounding unless
`Training.deterministic` is set.
"""

import contextlib
import copy
import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dpar.data.loader import batches, prefetched
from dpar.device import any_order, deterministic_algorithms, peak_flops
from dpar.errors import InputError
from dpar.files import read_json, sha256_file, write_json, write_text
from dpar.memory import out_of_memory
from dpar.model.flops import training_gmacs
from dpar.tracking import Job
from dpar.train.blocks import blocks, checkpoint_activations, compile_blocks
from dpar.train.checkpoint import (
    Checkpoint,
    last_step,
    load_checkpoint,
    origin_of,
    restoring,
    save_checkpoint,
    training_lock,
)
from dpar.train.distributed import Ranks, full_tensor
from dpar.train.footprint import check_fits
from dpar.train.history import HISTORY, History
from dpar.train.interruption import REQUEUE, Interruption
from dpar.train.meters import Clock, Outcome, Window, memory_gib
from dpar.train.milestones import begin, is_whole, link
from dpar.train.objective import Inputs, autocast, drop_classes, inputs, likelihood, logits_and_targets, summed_loss
from dpar.train.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from dpar.train.progress import Progress
from dpar.train.task import Task
from dpar.weights import CONFIG, WEIGHTS, save_model

SHOWN = (
    "train/loss",
    "val/nll",
    "val/entropy_error",
    "perf/images_per_s",
)  # next to the bar or in the log; the rest is in the history


def train_to(
    task: Task,
    until: int,
    *,
    state: Path,
    output: Path,
    history: Path,
    provenance: Mapping[str, Any],
    ranks: Ranks,
    job: Job,
    picture: Callable[[Any], bytes] | None = None,
    restart: bool = False,
) -> None:
    """Trains, from where `state` stands, until `until` steps are done, and writes the model folder and its history.

    A milestone that `state` has passed is written again from the copy that it kept.

    Args:
        task: the training.
        until: optimizer steps since the beginning.
        state: folder of checkpoints, of this task alone.
        output: the model folder to write.
        history: JSON lines of all curves up to `until`.
        provenance: for the model folder.
        ranks: all of them must call.
        job: told the curves.
        picture: function that draws samples of a network as a PNG, at each checkpoint.
        restart: set a state of another task aside and start over; and train again, next to the
            state, to a step that it has passed without keeping a copy.

    Raises:
        InputError: the state belongs to another task, or is past `until` and kept no such milestone, and not `restart`;
            another process trains it; a step does not fit the GPU; a loss is not finite; a checkpoint cannot be saved.
        SystemExit: with status 75 after a signal, when the state has been saved.
    """
    kept = state / "milestones" / f"step{until:08d}"
    again = state / f"again{until:08d}"
    lock = training_lock(state) if ranks.main else contextlib.nullcontext()
    with lock, deterministic_algorithms(task.training.deterministic):
        folder, done = ranks.from_main(begin(task, until, state, kept, again, restart) if ranks.main else (state, 0))
        if done != until or not ranks.from_main(ranks.main and is_whole(kept, task, until)):
            check_fits(task, ranks)
            trainer = Trainer(task, folder, ranks, job, done, picture)
            trainer.run(until)
            trainer.keep(kept)
        if ranks.main:
            write_text(history, (kept / HISTORY).read_text("utf-8"))
            link(kept / WEIGHTS, output / WEIGHTS)
            write_json(output / CONFIG, read_json(kept / CONFIG) | {"provenance": {**provenance, "step": until}})
            shutil.rmtree(again, ignore_errors=True)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of everything drawn from PyTorch's generators (dropout) in one step on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7])


class Trainer:
    """A training that stands after `step` steps.

    Args:
        task: the training.
        state: the folder of checkpoints; `step` is one of them, or 0.
        ranks: this process and the others.
        job: told the curves.
        step: where to go on.
        picture: function that draws samples of a network as a PNG.
    """

    def __init__(
        self,
        task: Task,
        state: Path,
        ranks: Ranks,
        job: Job,
        step: int = 0,
        picture: Callable[[Any], bytes] | None = None,
    ):
        self.task, self.state, self.ranks, self.job, self.step = task, state, ranks, job, step
        self.picture = picture
        self.model, training = task.model, task.training
        self.kind, self.parameters = type(self.model), sum(p.numel() for p in self.model.parameters())
        self.average = None if training.ema is None else copy.deepcopy(self.model)
        self.window = Window()
        self._begun = False  # whether a step has been taken here
        self._pending: Outcome | None = None
        checkpoint = load_checkpoint(state, step) if step > 0 else None
        if checkpoint is not None:
            with restoring(state, step):
                self._restore(checkpoint)
        self.summed_loss = summed_loss
        if training.compile:
            compile_blocks(self.model, ranks.device, getattr(torch, training.precision))
            self.summed_loss = torch.compile(
                summed_loss
            )  # logits are most of the memory that a step moves: read less often
        if self._exceeds(training.activation_checkpointing_above):
            checkpoint_activations(self.model)
        self.network = self._parallel()
        self.optimizer = build_optimizer(self.model, training)
        if checkpoint is not None:
            with restoring(state, step):
                restore_optimizer(self.model, self.optimizer, checkpoint.part("optimizer."))
        if ranks.main:
            known = checkpoint.record.get("history") if checkpoint is not None else None
            self.history = History(state / HISTORY, step, known)
            job.commit(step)

    def _exceeds(self, parameters: int | None) -> bool:
        return parameters is not None and self.parameters > parameters

    def _parallel(self) -> nn.Module:
        """The network whose gradients are averaged over the ranks."""
        if self.ranks.size == 1 or not self._exceeds(self.task.training.fsdp_above):
            return self.ranks.parallel(self.model)
        for network in dict.fromkeys((self.model, self.averaged)):
            self.ranks.shard(network, blocks(network))
        return self.model

    @property
    def averaged(self) -> Any:
        """The network to save: the moving average where there is one."""
        return self.model if self.average is None else self.average

    def keep(self, folder: Path) -> None:
        """Writes the network to save and the curves so far."""
        self.ranks.at(f"the milestone of step {self.step}", long=True)
        tensors = self.ranks.gather_state(self.averaged.state_dict())
        if self.ranks.main:
            write_text(folder / HISTORY, self.history.text())
            about = {"step": self.step, "made_from": origin_of(self.state), "history": sha256_file(folder / HISTORY)}
            save_model(folder, self._network(tensors), about)

    def _network(self, tensors: Mapping[str, Tensor]) -> Any:
        """A network of the kind in training, of these weights."""
        with torch.device("meta"):
            network = self.kind(self.model.config)
        network.load_state_dict(tensors, assign=True)
        return network

    def run(self, until: int) -> None:
        """Trains to step `until`, and saves the last state.

        Raises:
            InputError: a loss is not finite, or a checkpoint cannot be saved.
            SystemExit: a signal asked for it; the state is saved.
        """
        training = self.task.training
        self.network.train()
        with (
            contextlib.closing(cast(Generator, prefetched(self.stream()))) as stream,
            Interruption() as interruption,
            Progress(self.step, until, silent=not self.ranks.main) as progress,
        ):
            clock = Clock()
            while self.step < until:
                self.advance(stream)
                progress.advance()
                clock.steps += 1
                at_end = self.step == until
                row: dict[str, float] = {}
                if at_end or self.step % training.log_every == 0:
                    row |= self._measured(clock)
                with clock.paused():
                    if at_end or self.step % training.validate_every == 0:
                        row |= self._validated()
                    if row and self.ranks.main:
                        self.history.add(self.step, row)
                        self.job.metrics(row, step=self.step)
                        progress.show(self.step, {name: row[name] for name in SHOWN if name in row})
                    stopping = self.ranks.any(interruption.received is not None)
                    if at_end or stopping or self.step % training.checkpoint_every == 0:
                        self.save(look=at_end or not stopping)
                if stopping and not at_end:
                    progress.say(
                        f"stopped on request and saved after step {self.step}; the same command goes on from there "
                        f"(exit status {REQUEUE})"
                    )
                    raise SystemExit(REQUEUE)

    def save(self, *, look: bool = False) -> None:
        """Writes a checkpoint of the current state, after a picture of samples from the averaged network.

        Args:
            look: whether there is time to draw.

        Raises:
            InputError: the last loss is not finite, or the state cannot be written.
        """
        self._settle()
        self.ranks.at(f"the checkpoint of step {self.step}", long=True)
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": t for name, t in optimizer_tensors(self.model, self.optimizer).items()}
        if self.average is not None:
            tensors |= {f"average.module.{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors = self.ranks.gather_state(tensors)
        if self.ranks.main:
            record = {"window": asdict(self.window), "history": self.history.digest()}
            save_checkpoint(self.state, Checkpoint(self.step, tensors, record))
            if look and self.picture is not None:
                self._show(self.picture, Checkpoint(self.step, tensors, {}))
            self.job.commit(self.step)
        self.ranks.wait_for_main()
        self.ranks.saved()

    def _show(self, picture: Callable[[Any], bytes], checkpoint: Checkpoint) -> None:
        weights = checkpoint.part("model." if self.average is None else "average.module.")
        try:
            with any_order():  # CUDA has no ordered cumulative sum, which drawing with top-p needs
                shown = picture(self._network(weights))
            self.job.image(shown, key="samples", step=self.step)
        # no room next to what is trained is no reason to stop it
        except (InputError, RuntimeError, MemoryError) as error:
            if not (isinstance(error, InputError) or out_of_memory(error)):
                raise
            print(f"no picture at step {self.step}: {error}", file=sys.stderr)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.model.load_state_dict(checkpoint.part("model."))
        if self.average is not None:
            self.average.load_state_dict(checkpoint.part("average.module."))
        self.window = Window(**checkpoint.record["window"])

    def stream(self) -> Iterator[tuple[list[int], Inputs]]:
        """This rank's micro-batches from the current step on: images and network inputs."""
        task, config = self.task, self.model.config
        for batch in batches(
            task.train,
            batch_size=task.training.batch_size,
            seed=task.seed,
            start_step=self.step,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            accumulate=task.training.accumulate,
        ):
            if task.labelled:
                batch = drop_classes(batch, rate=config.class_dropout, null=config.num_classes, seed=task.seed)
            given = inputs(batch, labelled=task.labelled, rule=task.rule, distilled=task.distilled)
            yield batch.images.tolist(), given

    def advance(self, stream: Iterator[tuple[list[int], Inputs]]) -> None:
        """One optimizer step on the mean of `summed_loss` over all tokens of the global batch."""
        training, config, ranks = self.task.training, self.model.config, self.ranks
        predicted = training.batch_size * (config.tokens if self.task.labelled else config.tokens - 1)
        torch.manual_seed(step_seed(self.task.seed, self.step, ranks.rank))
        loss, lengths, patches, images = torch.zeros((), device=ranks.device), 0.0, 0.0, []
        for micro in range(training.accumulate):
            # the first step may compile, and has all ranks meet
            at = f"the {{}} of micro-batch {micro + 1}/{training.accumulate} of step {self.step + 1}"
            first = not self._begun
            ranks.at(at.format("reading"), long=first)
            ids, given = next(stream)
            ranks.at(at.format("forward pass"), long=first)
            with self._gradients_shared(micro == training.accumulate - 1):
                with autocast(ranks.device, training.precision):
                    logits, targets = logits_and_targets(self.network, given.to(ranks.device))
                share = self.summed_loss(logits, targets) / predicted
                ranks.at(at.format("backward pass"), long=first)
                (share * ranks.size).backward()  # the wrapper divides by the number of ranks
            loss += share.detach()
            lengths += given.mean_patch_lengths / training.batch_size
            patches += given.patches / training.batch_size
            images += ids
        ranks.at(f"the sums of step {self.step + 1}", long=not self._begun)
        self._begun = True
        norm = full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), training.grad_clip))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._average()
        self.step += 1
        sums = ranks.total(torch.stack((loss, torch.full_like(loss, lengths), torch.full_like(loss, patches))))
        self._settle()
        self._pending = Outcome.of(self.step, torch.cat((sums, norm[None])), images)

    @torch.no_grad()
    def _average(self) -> None:
        """Updates the moving average without a device synchronisation; the first step's weights are copied.

        (The networks have no buffers to move along.)
        """
        decay = self.task.training.ema
        if self.average is None or decay is None:
            return
        share = 1.0 if self.step == 0 else 1 - decay
        torch._foreach_lerp_([*self.average.parameters()], [*self.model.parameters()], share)  # type: ignore[attr-defined]

    def _gradients_shared(self, shared: bool) -> AbstractContextManager:
        if shared or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def _settle(self) -> None:
        """Reads the outcome of the step before the one in flight, so that the device never waits.

        Raises:
            InputError: it is not finite.
        """
        if self._pending is None:
            return
        outcome, self._pending = self._pending, None
        loss, mean_patch_length, patches, norm = outcome.read()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            images = sorted(i for ids in self.ranks.gather(outcome.images) for i in ids)
            raise InputError(
                f"training broke at step {outcome.step}: loss {loss}, gradient norm {norm}; the batch was images "
                f"{images}; the last good checkpoint: {last_step(self.state)}. From there the same settings break in "
                "the same way: lower the learning rate, or set `precision: float32`, or look at these images"
            )
        self.window.add(loss, mean_patch_length, patches, norm)

    def _measured(self, clock: "Clock") -> dict[str, float]:
        """Means over the steps since the last point of the curves, and the speed."""
        self._settle()
        window, self.window = self.window, Window()
        seconds, steps = clock.lap()
        row = window.means(with_patches=self.task.rule is not None)
        config, images = self.model.config, self.task.training.batch_size * steps / seconds
        row |= {
            "perf/step_ms": 1000 * seconds / steps,
            "perf/images_per_s": images,
            "perf/tokens_per_s": images * config.tokens,
            "perf/devices": self.ranks.size,
            "perf/memory_gib": memory_gib(self.ranks.device),
        }
        if self.task.training.precision == "bfloat16" and (peak := peak_flops(self.ranks.device)):
            operations = 2e9 * float(training_gmacs(config, row.get("patch/per_image")))  # a multiply-accumulate is two
            row["perf/mfu"] = images * operations / (peak * self.ranks.size)
        return row

    def _validated(self) -> dict[str, float]:
        self.ranks.at(f"the validation of step {self.step}", long=True)
        self._settle()  # a broken step is said with its images, not as a curve that ends in NaN
        task = self.task
        held_out = likelihood(
            self.averaged,
            task.val,
            rule=task.rule,
            precision=task.training.precision,
            ranks=self.ranks,
        )
        return {"val/entropy_error" if task.distilled else "val/nll": held_out.nll}
