"""The training of the VQ autoencoder, resumable after any step to the bit.

Everything random in a step (which images, how they are cut, which codes are replaced by what) comes from (seed, epoch,
image) or (seed, step), nothing from the steps before it.
"""

import contextlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.optim import Adam

from dpar.data.classes import Classes
from dpar.data.crops import center_crop, to_model_input, to_uint8, with_shorter_side
from dpar.data.images import ImageIndex
from dpar.data.loader import epoch_order, random_bits, random_uniform
from dpar.data.workers import cores, mapped
from dpar.device import to_device
from dpar.errors import InputError
from dpar.experiment.settings import TOKENIZER_PACE, TokenizerTraining
from dpar.tokenizer.autoencoder import Autoencoded, VQAutoencoder, to_bytes
from dpar.tokenizer.discriminator import PatchGAN
from dpar.tokenizer.fidelity import codebook_use, psnr
from dpar.tokenizer.loss import autoencoder_loss, discriminator_loss
from dpar.tokenizer.perceptual import LPIPS
from dpar.tokenizer.picture import side_by_side
from dpar.tracking import Job
from dpar.train.checkpoint import (
    Checkpoint,
    claim_state,
    last_step,
    load_checkpoint,
    newest_checkpoint,
    restoring,
    save_checkpoint,
    training_lock,
)
from dpar.train.distributed import Ranks
from dpar.train.interruption import REQUEUE, Interruption
from dpar.train.optimizer import optimizer_tensors, restore_optimizer
from dpar.train.progress import Progress

# Settings for how long and how often, without effect on the weights after a step.
# A code is unused when evenly used codes would each have occurred so often since it last did.
UNUSED = 100
# Steps between two searches for unused codes, and between two points of the curves.
RESTART_EVERY, LOG_EVERY = 10, 10
# Held-out images that are validated on during training, and those of them that are shown.
VALIDATED, SHOWN = 256, 8


@dataclass(frozen=True)
class TokenizerTask:
    """A training: network, images and settings.

    Attributes:
        model: freshly initialised, on this rank's device.
        training: the settings.
        train: images to learn from.
        val: images to validate on.
        classes: their names, for pictures.
        resolution: pixels, the side of a crop.
        perceptual: LPIPS on this rank's device, where its weight is not 0.
        perceptual_sha256: of its file.
        seed: of initialisation, order, crops and replaced codes.
        recipe: raised when a change of the code changes the result.
    """

    model: VQAutoencoder
    training: TokenizerTraining
    train: ImageIndex
    val: ImageIndex
    classes: Classes
    resolution: int
    perceptual: LPIPS | None
    perceptual_sha256: str | None
    seed: int
    recipe: int

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.training.steps or (self.training.epochs or 0) * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which each image is seen at most once.

        Raises:
            InputError: the images do not fill one batch.
        """
        if len(self.train) < self.training.batch_size:
            raise InputError(
                f"{len(self.train)} training images do not fill one batch of {self.training.batch_size}; "
                "lower `tokenizer.training.batch_size` or add images"
            )
        return len(self.train) // self.training.batch_size

    def learning_rate(self, step: int) -> float:
        """Of the step that follows `step` others: constant, then falling linearly to 0."""
        cooldown = self.training.cooldown * self.steps
        return self.training.learning_rate * min(1.0, (self.steps - step) / cooldown if cooldown else 1.0)

    @property
    def made_from(self) -> dict[str, Any]:
        """Everything that decides the weights after a given step, up to rounding."""
        return {
            "model": self.model.config.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json", exclude={*TOKENIZER_PACE, "perceptual_network"}),
            "cooldown_until": self.steps if self.training.cooldown else None,
            "perceptual_network": self.perceptual_sha256,
            "images": self.train.digest,
            "resolution": self.resolution,
            "seed": self.seed,
            "recipe": self.recipe,
        }


def train_tokenizer(
    task: TokenizerTask, state: Path, ranks: Ranks, job: Job, *, restart: bool = False
) -> VQAutoencoder:
    """The autoencoder after all steps, trained from where `state` stands.

    Args:
        task: the training.
        state: folder of checkpoints, of this task alone.
        ranks: all of them must call.
        job: told the curves.
        restart: set a state of another task aside and start over.

    Raises:
        InputError: the state belongs to another task or is past the end, another process trains it, the loss is not
            finite, a checkpoint cannot be saved, or the batch cannot be divided over the ranks.
        SystemExit: with status 75 after a signal, when the state has been saved.
    """
    if task.training.batch_size % ranks.size:
        raise InputError(
            f"batch size {task.training.batch_size} cannot be divided by {ranks.size} processes; "
            "change `tokenizer.training.batch_size` or the number of processes"
        )
    until, done = task.steps, 0
    with training_lock(state) if ranks.main else contextlib.nullcontext():
        if ranks.main:
            claim_state(state, task.made_from, restart=restart)
            done = newest_checkpoint(state) or 0
        done = ranks.from_main(done)
        if done > until:
            raise InputError(
                f"{state} stands at step {done}, past the {until} steps that are asked for; "
                f"move the folder away to train to step {until} from the beginning"
            )
        trainer = TokenizerTrainer(task, state, ranks, job, done)
        trainer.run(until)
    return task.model.eval()


class TokenizerTrainer:
    """A training that stands after `step` steps, with Adam at a rate that is constant but for a cooldown at the end.

    Args:
        task: the training.
        state: the folder of checkpoints; `step` is one of them, or 0.
        ranks: this process and the others.
        job: told the curves.
        step: where to go on.
    """

    def __init__(self, task: TokenizerTask, state: Path, ranks: Ranks, job: Job, step: int = 0):
        self.task, self.state, self.ranks, self.job, self.step = task, state, ranks, job, step
        self._begun = False  # whether a step has been taken here
        self.model = task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = {"autoencoder": (self.model, self._adam(self.model))}
        self.critic = None
        if task.training.adversarial_weight > 0:
            torch.manual_seed(task.seed)
            self.critic = PatchGAN().to(ranks.device)
            self.trained["critic"] = (self.critic, self._adam(self.critic))
        codes = task.model.config.vocab_size
        # since the last point of the curves: steps, sums of loss and PSNR, and how often each code occurred
        self.sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)
        self.counts = torch.zeros(codes, dtype=torch.long, device=ranks.device)
        # tokens seen since each code last occurred; none has occurred yet
        self.idle = torch.full((codes,), UNUSED * codes, dtype=torch.long, device=ranks.device)
        if step > 0:
            with restoring(state, step):
                self._restore(load_checkpoint(state, step))
        self.parallel = {name: ranks.parallel(network) for name, (network, _) in self.trained.items()}
        job.commit(step)

    def _adam(self, network: nn.Module) -> Adam:
        training = self.task.training
        return Adam(network.parameters(), lr=training.learning_rate, betas=training.betas, fused=True)

    def run(self, until: int) -> None:
        """Trains to step `until`, and saves the last state."""
        training = self.task.training
        for network in self.parallel.values():
            network.train()
        with (
            contextlib.closing(self._crops()) as crops,
            Interruption() as interruption,
            Progress(self.step, until, silent=not self.ranks.main) as progress,
        ):
            while self.step < until:
                self.ranks.at(f"the reading of step {self.step + 1}", long=not self._begun)
                self._advance(next(crops))
                self._begun = True
                progress.advance()
                at_end = self.step == until
                row: dict[str, float] = {}
                if at_end or self.step % LOG_EVERY == 0:
                    row |= self._measured()
                stopping = self.ranks.any(interruption.received is not None)
                saving = at_end or stopping or self.step % training.checkpoint_every == 0
                if at_end or self.step % training.checkpoint_every == 0:
                    row |= self._validated()
                if row:
                    self.job.metrics(row, step=self.step)
                    progress.show(self.step, {name.replace("/", " "): value for name, value in row.items()})
                if saving:
                    self._save()
                if stopping and not at_end:
                    progress.say(
                        f"stopped on request and saved after step {self.step}; the same command goes on from there "
                        f"(exit status {REQUEUE})"
                    )
                    raise SystemExit(REQUEUE)

    def _crops(self) -> Generator[UInt8[Tensor, "B 3 R R"]]:
        """This rank's part of every batch from the current step on, cropped by threads that read ahead."""
        task = self.task
        batch, share = task.training.batch_size, task.training.batch_size // self.ranks.size

        def places() -> Iterator[tuple[int, int]]:
            first, place = divmod(self.step, task.steps_per_epoch)
            for epoch in itertools.count(first):
                order = epoch_order(len(task.train), task.seed, epoch)
                for step in range(place if epoch == first else 0, task.steps_per_epoch):
                    begin = step * batch + self.ranks.rank * share
                    yield from ((int(image), epoch) for image in order[begin : begin + share])

        def cut(place: tuple[int, int]) -> UInt8[Tensor, "3 R R"]:
            image, epoch = place
            return random_crop(task.train, image, task.resolution, task.training.crop_range, task.seed, epoch)

        threads = max(1, cores() - 1)
        pieces = mapped(cut, places(), threads=threads, ahead=4 * share)
        while True:
            yield torch.stack(list(itertools.islice(pieces, share)))

    def _advance(self, pixels: UInt8[Tensor, "B 3 R R"]) -> None:
        """One step of the autoencoder, and one of its critic once that has begun."""
        task, training = self.task, self.task.training
        self.ranks.at(f"the computing of step {self.step + 1}", long=not self._begun)
        pixels = to_device(pixels, self.ranks.device)
        images = to_model_input(pixels).contiguous(memory_format=torch.channels_last)
        critic = self.critic if self.step >= training.adversarial_start else None
        if critic is not None:
            critic.requires_grad_(False)
        output: Autoencoded = self.parallel["autoencoder"](images)
        loss = autoencoder_loss(images, output, training, task.perceptual, critic).total
        self._step("autoencoder", loss)
        if critic is not None:
            critic.requires_grad_(True)
            real, reconstructed = (self.parallel["critic"](x) for x in (images, output.images.detach()))
            self._step("critic", discriminator_loss(real, reconstructed, training))
        self.step += 1
        with torch.no_grad():
            decibels = psnr(pixels, to_bytes(output.images)).mean()
            self.sums += torch.stack((torch.ones_like(loss), loss.detach(), decibels))
            codes = output.codes.flatten()
            seen = self.ranks.total(torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(codes)))
            self.counts += seen
            self.idle = torch.where(seen > 0, 0, self.idle + seen.sum())
        if training.restart_unused_codes and self.step % RESTART_EVERY == 1:
            self._restart_codes(output.latents)

    def _step(self, name: str, loss: Float[Tensor, ""]) -> None:
        """One step of the optimizer of the network of that name, its gradients clipped by themselves."""
        network, optimizer = self.trained[name]
        for group in optimizer.param_groups:
            group["lr"] = self.task.learning_rate(self.step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), self.task.training.grad_clip)
        optimizer.step()

    @torch.no_grad()
    def _restart_codes(self, latents: Float[Tensor, "B C h w"]) -> None:
        """Puts latents of this batch in the place of codes that are out of use, and forgets those codes' moments."""
        unused = (self.idle >= UNUSED * len(self.idle)).nonzero().flatten()
        if not len(unused):
            return
        candidates = latents.movedim(1, -1).flatten(0, -2)
        drawn = random_bits(self.task.seed, "restart", self.step, unused.cpu().numpy()) % np.uint64(len(candidates))
        rows = self.ranks.from_main(candidates[torch.from_numpy(drawn.astype(np.int64))].cpu())
        embedding = self.model.quantize.embedding.weight
        embedding[unused] = rows.to(embedding.device)
        for moment in ("exp_avg", "exp_avg_sq"):
            self.trained["autoencoder"][1].state[embedding][moment][unused] = 0
        self.idle[unused] = 0

    def _measured(self) -> dict[str, float]:
        """Means over the steps since the last point of the curves.

        Raises:
            InputError: the loss is not finite.
        """
        self._check()
        steps, loss, decibels = self.ranks.total(self.sums.clone()).tolist()
        used = codebook_use(self.counts)
        self.sums.zero_()
        self.counts.zero_()
        return {"train/loss": loss / steps, "train/psnr": decibels / steps, "train/codebook_use": used}

    def _check(self) -> None:
        if not torch.isfinite(self.sums).all():
            raise InputError(
                f"training broke near step {self.step}: the loss is {self.sums[1].item()}; the last good checkpoint: "
                f"{last_step(self.state)}. Lower `tokenizer.training.learning_rate` and begin anew"
            )

    @torch.no_grad()
    def _validated(self) -> dict[str, float]:
        """Mean PSNR of held-out images, of which the main rank also shows some; all ranks compute the same."""
        task = self.task
        self.ranks.at(f"the validation of step {self.step}", long=True)
        chosen = np.unique(np.linspace(0, len(task.val) - 1, min(VALIDATED, len(task.val))).round().astype(np.int64))
        self.model.eval()
        pixels, rebuilt = [], []
        for batch in np.array_split(chosen, -(-len(chosen) // task.training.batch_size)):
            crops = torch.stack([to_uint8(center_crop(task.val.read(i), task.resolution)) for i in batch])
            images = to_model_input(crops.to(self.ranks.device))
            pixels.append(crops)
            rebuilt.append(to_bytes(self.model.decode(self.model.encode(images))).cpu())
        self.model.train()
        originals, others = torch.cat(pixels), torch.cat(rebuilt)
        shown = np.unique(np.linspace(0, len(chosen) - 1, min(SHOWN, len(chosen))).round().astype(np.int64))
        pairs = [(originals[i].permute(1, 2, 0).numpy(), others[i].permute(1, 2, 0).numpy()) for i in shown]
        captions = [task.classes.title(int(task.val.labels[chosen[i]])) for i in shown]
        self.job.image(side_by_side(pairs, captions, columns=SHOWN), key="reconstructions", step=self.step)
        return {"val/psnr": psnr(originals, others).mean().item()}

    def _save(self) -> None:
        """Writes a checkpoint of the present state.

        Raises:
            InputError: the loss is not finite, or the state cannot be written.
        """
        self._check()
        self.ranks.at(f"the checkpoint of step {self.step}", long=True)
        sums = self.ranks.gather(self.sums.cpu())
        if self.ranks.main:
            tensors = {"sums": torch.stack(sums).mean(0), "counts": self.counts, "idle": self.idle}
            for name, (network, optimizer) in self.trained.items():
                tensors |= {f"{name}.{key}": tensor for key, tensor in network.state_dict().items()}
                moments = optimizer_tensors(network, optimizer)
                tensors |= {f"{name}_optimizer.{key}": tensor for key, tensor in moments.items()}
            save_checkpoint(self.state, Checkpoint(self.step, tensors, {}))
            self.job.commit(self.step)
        self.ranks.wait_for_main()
        self.ranks.saved()

    def _restore(self, checkpoint: Checkpoint) -> None:
        for name, (network, optimizer) in self.trained.items():
            network.load_state_dict(checkpoint.part(f"{name}."))
            restore_optimizer(network, optimizer, checkpoint.part(f"{name}_optimizer."))
        for name in ("sums", "counts", "idle"):
            getattr(self, name).copy_(checkpoint.tensors[name])


def random_crop(
    index: ImageIndex, image: int, resolution: int, crop_range: float, seed: int, epoch: int
) -> UInt8[Tensor, "3 {resolution} {resolution}"]:
    """The square that an image shows in an epoch: random in size, place and mirroring, by (seed, epoch, image).

    From anywhere in the image, which is resized as a whole (LlamaGen's and ADM's random crop).

    Args:
        index: the images.
        image: its number.
        resolution: pixels, the side of the square.
        crop_range: the shorter side of the image it is cut from has 1 to this x the side.
        seed: of the draws.
        epoch: of the draws.
    """

    def draw(stream: str, below: int) -> int:
        return int(random_uniform(seed, stream, epoch, np.array([image]))[0] * below)

    side = resolution + draw("crop side", int(resolution * crop_range) - resolution + 1)
    whole = with_shorter_side(index.read(image), side)
    top, left = draw("crop top", whole.height - resolution + 1), draw("crop left", whole.width - resolution + 1)
    pixels = to_uint8(whole.crop((left, top, left + resolution, top + resolution)))
    return pixels.flip(-1) if draw("crop mirror", 2) else pixels
