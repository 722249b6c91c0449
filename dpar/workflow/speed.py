"""The time that an experiment takes on this machine, by one training step that is timed."""

import math
import time
from collections.abc import Mapping

import torch

from dpar.device import default_device
from dpar.evaluation import cost
from dpar.experiment.cells import model_cells, sample_cells
from dpar.experiment.settings import Experiment
from dpar.model import flops
from dpar.model.variants import build_entropy_model
from dpar.train.objective import autocast, summed_loss
from dpar.workflow.journal import START
from dpar.workflow.planning import Data, JobCost, Key, Rates, preparation, samples, trainings

SAMPLING = 0.25  # share of the training's operations per second that drawing reaches, a token at a time
TIMED_S = 1.0


def timed_rates(experiment: Experiment) -> Rates:
    """The rates of this machine: of training the entropy model's network here, and what follows for the rest."""
    device = default_device()
    config = cost.entropy_network(experiment)
    training = experiment.entropy_model.training or experiment.training
    batch = min(training.batch_size, 32)
    with torch.random.fork_rng(), device:
        model = build_entropy_model(config)
        tokens = torch.randint(config.vocab_size, (batch, math.prod(experiment.grid)))
        labels = None if config.num_classes is None else torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        with autocast(device, training.precision):
            logits = model(tokens, labels)
        summed_loss(logits.float(), tokens[:, tokens.shape[1] - logits.shape[1] :]).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    steps, start, worked = 0, time.perf_counter(), time.process_time()
    while steps == 0 or time.perf_counter() - start < TIMED_S:
        step()
        steps += 1
    seconds = (time.perf_counter() - start) / steps
    if device.type == "cpu":  # as if nothing else ran on these cores
        seconds = min(seconds, (time.process_time() - worked) / steps / torch.get_num_threads())
    rate = 2e9 * float(flops.training_gmacs(config)) * batch / seconds
    return Rates(training=rate, float32=rate, sampling=SAMPLING * rate)


def first_picture(experiment: Experiment, data: Data) -> dict[Key, JobCost]:
    """The jobs behind the first samples that a run draws: those of the first DPAR, or of the first model."""
    models, cells = model_cells(experiment), sample_cells(experiment)
    cell = min(cells.values(), key=lambda cell: not models[cell.model].transformer.is_dpar)
    found = preparation(experiment, data) | trainings(experiment, models[cell.model], cell.milestone, data)
    drawn = samples(experiment, models[cell.model], cell, data, measured=False)
    first = str(cell.sampling.seeds[0])
    return found | {key: job for key, job in drawn.items() if key[-1] == first}


def hours(jobs: Mapping[Key, JobCost], rates: Rates, processes: int) -> float:
    """Hours of the jobs one after the other, with the start of each of their processes."""
    return rates.hours(jobs.values()) + processes * START / 3600
