"""Cost of an experiment's tables before anything is run: jobs, each once, with their operations and their files.

Every cost is a count of multiply-accumulates over a stated rate; of drawing images, where none was measured, the time
by the roofline of a card (`dpar.evaluation.roofline`). Left out are validation during training (on ImageNet
1.3 % of it), the tokenizer's reconstructions (there about an hour of a GPU), and what takes minutes: indices,
likelihoods, comparisons of gates, metrics, tables, figures.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dpar.errors import InputError
from dpar.evaluation import cost
from dpar.evaluation.inception import Inception
from dpar.evaluation.roofline import CARDS, Card
from dpar.experiment.cells import ModelCell, Row, SampleCell, figure_rows, model_cells, table_rows
from dpar.experiment.settings import Experiment, Patchify, Training, gate_folder
from dpar.model import flops
from dpar.paper import PAPER_MAX_LENGTH
from dpar.patches.calibration import calibrate
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import PatchRule
from dpar.report import paper
from dpar.report.targets import sized_tables, tables_of
from dpar.tokenizer.autoencoder import VQAutoencoder

Kind = Literal["training", "float32", "sampling"]
Key = tuple[str, ...]
MADE_UP_IMAGES = 512
CODE_BYTES, ENTROPY_BYTES, FLOAT_BYTES = 2, 4, 4
STATE_BYTES = 12 * 2  # a parameter: weights and two moments, of the last two checkpoints


@dataclass(frozen=True)
class JobCost:
    """A piece of work: its operations (multiply-accumulates), at which rate they run, and the bytes that it leaves.

    Attributes:
        sample_set: the images that it draws, if it does.
    """

    macs: float
    kind: Kind
    bytes: float
    sample_set: cost.SampleSet | None = None


@dataclass(frozen=True)
class Rates:
    """Operations per second of one device (a multiply-accumulate is two), by kind of work; or its roofline."""

    training: float
    float32: float
    sampling: float | Card

    def hours(self, jobs: Iterable[JobCost]) -> float:
        """Hours of one device."""
        return sum(map(self._seconds, jobs)) / 3600

    def _seconds(self, job: JobCost) -> float:
        rate = getattr(self, job.kind)
        if isinstance(rate, Card):
            assert job.sample_set is not None, "images are drawn, and nothing else is sampling"
            return job.sample_set.seconds(rate)
        return 2 * job.macs / rate


SHORTEST_KERNEL = 2.0  # microseconds; a roofline has none, and drawing launches a thousand small kernels per token
_A100 = CARDS["A100"]
# As `dpar plan` assumes: 40 % of the bfloat16 peak in training, half of that in float32, and drawing by the roofline.
ASSUMED = Rates(0.4e12 * _A100.bfloat16, 0.5e12 * _A100.float32, replace(_A100, shortest_kernel=SHORTEST_KERNEL))


@dataclass(frozen=True)
class Data:
    """Images of the training set and the held-out set, and patches per image by model where they were counted."""

    train: int
    val: int
    patches: Mapping[str, float]


def jobs(experiment: Experiment, target: str, data: Data) -> dict[Key, JobCost]:
    """Every job that `target` needs, by name: what two targets share has one name.

    Raises:
        InputError: the experiment has no such target, or the number of its patches cannot be said beforehand.
    """
    tables, figures = shown_by(experiment, target)
    measured = cells_of(row for name in tables for row in table_rows(experiment, name))
    drawn = cells_of(row for name in figures for row in figure_rows(experiment, name)) | measured
    if not drawn:
        return preparation(experiment, data) if target == "figure2" else {}
    models, found = model_cells(experiment), preparation(experiment, data)
    for cell in drawn.values():
        model = models[cell.model]
        found |= trainings(experiment, model, cell.milestone, data)
        found |= samples(experiment, model, cell, data, cell.slug in measured)
        if cell.gate is not None:
            found |= gate_training(experiment, cell.gate, data)
    probing = (name for name in tables if experiment.tables[name].linear_probe)
    for cell in cells_of(row for name in probing for row in table_rows(experiment, name)).values():
        found |= probe(experiment, models[cell.model], cell.milestone, data)
    return found


def shown_by(experiment: Experiment, target: str) -> tuple[list[str], list[str]]:
    """The tables whose cells a target needs, and the figures, whose samples are not measured.

    Raises:
        InputError: the experiment has no such target.
    """
    if target in experiment.figures:
        return [], [target]
    if target in ("all_tables", "report"):
        return experiment.shown_tables, list(experiment.figures) if target == "report" else []
    return sized_tables(experiment) if target == "figure1b" else tables_of(experiment, [target]), []


def cells_of(rows: Iterable[Row]) -> dict[str, SampleCell]:
    """The sets of samples of `rows`, each once."""
    return {cell.slug: cell for row in rows for cell in row.samples}


def preparation(experiment: Experiment, data: Data) -> dict[Key, JobCost]:
    """Tokenizer, codes, entropy model and entropies: what every table needs."""
    views = data.train * experiment.codes.views + data.val
    tokens = math.prod(experiment.grid)
    encoder, decoder = tokenizer_macs(experiment)
    found = {("encode_images",): JobCost(views * encoder, "float32", views * tokens * CODE_BYTES)}
    tokenizer = experiment.tokenizer.training
    if tokenizer is not None:
        images = (tokenizer.steps or 0) * tokenizer.batch_size or (tokenizer.epochs or 0) * data.train
        found[("train_tokenizer",)] = JobCost((1 + flops.BACKWARD) * images * (encoder + decoder), "float32", 0)
    found |= gate_training(experiment, None, data)
    config = cost.entropy_network(experiment)
    # training reads codes and entropies from flat files of their own
    size = 2 * views * tokens * (CODE_BYTES + ENTROPY_BYTES)
    found[("score_entropies",)] = JobCost(views * float(flops.full_gmacs(config)) * 1e9, "float32", size)
    return found


def gate_training(experiment: Experiment, gate: str | None, data: Data) -> dict[Key, JobCost]:
    """The training of the gate of that name, or of the entropy model for None, if it is trained here."""
    training = experiment.network(gate_folder(gate)).training
    if training is None:
        return {}
    config = cost.entropy_network(experiment, gate)
    macs = images_seen(training, training.length, data) * float(flops.training_gmacs(config)) * 1e9
    weights = cost.parameters_of(config)  # type: ignore[arg-type]  # frozen: it has a hash
    key = ("train_entropy_model",) if gate is None else ("train_entropy_model", gate)
    return {key: JobCost(macs, "training", weights * (FLOAT_BYTES + STATE_BYTES))}


def trainings(experiment: Experiment, model: ModelCell, milestone: str, data: Data) -> dict[Key, JobCost]:
    """The pieces of a training up to a milestone; they are those of every longer one too."""
    patches = patches_of(experiment, model, model.patchify, data)
    an_image = float(flops.training_gmacs(cost.network(experiment, model.transformer), patches)) * 1e9
    weights = cost.parameters(experiment, model.transformer)
    found, before = {}, 0
    for name in model.milestones[: model.milestones.index(milestone) + 1]:
        length = int(name.removeprefix(model.training.unit))
        images = images_seen(model.training, length, data) - images_seen(model.training, before, data)
        state = 0 if before else STATE_BYTES  # one for the whole training
        found["train_model", model.slug, name] = JobCost(images * an_image, "training", weights * (FLOAT_BYTES + state))
        before = length
    return found


def samples(
    experiment: Experiment, model: ModelCell, cell: SampleCell, data: Data, measured: bool
) -> dict[Key, JobCost]:
    """The drawing of a set of samples, with its pixels, and the features that measure it."""
    patches = patches_of(experiment, model, cell.patchify, data)
    side = experiment.evaluation.resolution or experiment.images.resolution
    gmacs = cost.sampling_gmacs(experiment, model, cell, patches)
    assert gmacs is not None
    sample_set = cost.sample_set(experiment, model, cell, patches)
    found: dict[Key, JobCost] = {}
    images = cell.sampling.num_images
    for seed in map(str, cell.sampling.seeds):
        found["sample_images", cell.slug, seed] = JobCost(
            images * float(gmacs) * 1e9, "sampling", images * side**2 * 3, sample_set
        )
        found["pixels", cell.slug, seed] = JobCost(images * tokenizer_macs(experiment)[1], "float32", 0)
        if measured and experiment.evaluation.extractor == "inception":
            size = images * (2048 + 1008) * FLOAT_BYTES
            found["extract_features", cell.slug, seed] = JobCost(images * inception_macs(), "float32", size)
    return found


def probe(experiment: Experiment, model: ModelCell, milestone: str, data: Data) -> dict[Key, JobCost]:
    """The linear probe of a state: one forward pass of each image; the classifier is fitted in minutes."""
    patches = patches_of(experiment, model, model.patchify, data)
    an_image = float(flops.full_gmacs(cost.network(experiment, model.transformer), patches)) * 1e9
    return {("linear_probe", model.slug, milestone): JobCost((data.train + data.val) * an_image, "training", 0)}


def images_seen(training: Training, length: int, data: Data) -> float:
    """Images that a training has seen after `length` of its steps or epochs."""
    return length * (data.train if training.unit == "epoch" else training.batch_size)


def patches_of(experiment: Experiment, model: ModelCell, patchify: Patchify, data: Data) -> float | None:
    """Mean patches per image: as counted for this model, else `assumed_patches`; None for LlamaGen."""
    if not model.transformer.is_dpar:
        return None
    if patchify == model.patchify and model.slug in data.patches:
        return data.patches[model.slug]
    return assumed_patches(experiment, patchify)


def assumed_patches(experiment: Experiment, patchify: Patchify) -> float:
    """Mean patches per image before entropies are known, as if the entropies of tokens were independent and alike.

    The probability of a boundary is the one that gives `p_avg` under the experiment's own P_max and rows. For a
    threshold in nats it gives, under the paper's P_max and rows, the P_avg printed at this resolution, interpolated
    linearly between its two nearest thresholds.

    Raises:
        InputError: the paper prints no P_avg near this threshold at this resolution.
    """
    rows, columns = experiment.grid
    if not patchify.is_dynamic:
        assert patchify.p_avg is not None
        return math.ceil(rows * columns / patchify.p_avg)
    if patchify.p_avg is not None:
        wanted, own = patchify.p_avg, experiment.patchify
    else:  # printed for the paper's patches
        wanted = _printed_length(experiment, patchify.threshold)
        own = Patchify(threshold=patchify.threshold, max_length=PAPER_MAX_LENGTH)
    return _mean_patches_iid(rows * columns, columns, wanted, own, patchify)  # type: ignore[arg-type]  # frozen: it has a hash


@cache
def _mean_patches_iid(tokens: int, grid_width: int, wanted: float, own: Patchify, patchify: Patchify) -> float:
    uniform = np.random.default_rng(0).random((MADE_UP_IMAGES, tokens), np.float32)
    threshold = calibrate(
        uniform, wanted, max_length=own.max_length, grid_width=grid_width, row_boundary=own.row_boundary
    )
    rule = PatchRule(grid_width, threshold, patchify.max_length, patchify.row_boundary)
    return PatchCounts.under(rule, uniform).mean


def _printed_length(experiment: Experiment, threshold: float | None) -> float:
    side = experiment.images.resolution
    printed: dict[float, float] = paper.printed()["patch_lengths"].get(side, {})
    if threshold in printed:
        return printed[threshold]
    if threshold is None or len(printed) < 2:
        raise InputError(
            f"how many patches a threshold of {threshold} nats gives at {side} pixels is not known before images are "
            "scored; run `snakemake count_patches` first and give its results with --measured"
        )
    near = sorted(sorted(printed, key=lambda known: abs(known - threshold))[:2])
    slope = (printed[near[1]] - printed[near[0]]) / (near[1] - near[0])
    return max(1.0, printed[near[0]] + slope * (threshold - near[0]))


def tokenizer_macs(experiment: Experiment) -> tuple[float, float]:
    """Multiply-accumulates of the tokenizer's encoder and decoder on one image."""
    own = experiment.tokenizer.autoencoder
    return _tokenizer_macs(own, experiment.images.resolution)  # type: ignore[arg-type]  # frozen: it has a hash


@cache
def _tokenizer_macs(autoencoder: Any, side: int) -> tuple[float, float]:
    with torch.device("meta"):
        network, image = VQAutoencoder(autoencoder), torch.zeros(1, 3, side, side)
        latents = torch.zeros(1, autoencoder.z_channels, side // autoencoder.downsample, side // autoencoder.downsample)
    return counted_macs(network.encoder, image), counted_macs(network.decoder, latents)


@cache
def inception_macs() -> float:
    """Multiply-accumulates of the Inception network on one image."""
    with torch.device("meta"):
        return counted_macs(Inception(), torch.zeros(1, 3, 299, 299))


def counted_macs(network: nn.Module, *inputs: torch.Tensor) -> float:
    """Multiply-accumulates of convolutions and linear layers while `network` runs on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() / 2
