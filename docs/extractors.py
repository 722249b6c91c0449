"""Measures which small feature network orders known damage best: `python docs/extractors.py results/fashion28_fine`.

Needs index, tokenizer and images of a results folder with images of 28 pixels; prints a line per network. All learn
from the half of the training images that the experiment's classifier learns from, and have its shape; the other half
is the reference. Half an hour of one core.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from dpar.data.crops import to_model_input
from dpar.data.images import ImageIndex
from dpar.errors import run_command
from dpar.evaluation.classifier import ImageClassifier, augment, fit_classifier, training_half
from dpar.evaluation.degradations import STRENGTHS, fewest_rows
from dpar.evaluation.features import index_batches
from dpar.evaluation.frechet import fit_gaussian, frechet_distance
from dpar.experiment.settings import Classifier
from dpar.stages.measure_degradations import Degrader
from dpar.weights import load_model

SIDE, CLASSES, DIMS, SEED = 28, 10, 64, 0
DRAWS, SIZE = 8, 640  # sets of images for each strength, and images of a set
TEMPERATURE = 0.2  # of the contrastive loss
Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


def network(classes: int = CLASSES) -> ImageClassifier:
    """A new network of the classifier's shape, always with the same weights."""
    torch.manual_seed(SEED)
    return ImageClassifier(ImageClassifier.Config(resolution=SIDE, num_classes=classes, channels=32, dims=DIMS))


def fitted(model: ImageClassifier, count: int, loss: Loss, *, steps: int, batch: int, more: nn.Module | None = None):
    """The network after `steps` of a loss of the numbers of `batch` of `count` images; `more` learns with it."""
    model = convert_conv2d_weight_memory_format(model, torch.channels_last).train()
    parameters = [*model.parameters(), *(more.parameters() if more else ())]
    rate, generator = Classifier().learning_rate, torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        rows, order = order[:batch], order[batch:]
        optimizer.zero_grad(set_to_none=True)
        loss(model, rows, generator).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def rotation(images: Tensor, labels: Tensor | None) -> Loss:
    """Cross-entropy of how often an image is turned by 90 degrees, and of its class where labels are given."""

    def loss(model: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        turns = torch.randint(0, 4, (len(rows),), generator=generator)
        views = augment(images[rows], generator)
        turned = torch.stack([torch.rot90(v, int(n), (1, 2)) for v, n in zip(views, turns, strict=True)])
        wanted = turns if labels is None else 4 * labels[rows] + turns
        return F.cross_entropy(model(turned.contiguous(memory_format=torch.channels_last))[1], wanted)

    return loss


def contrast(images: Tensor, head: nn.Module) -> Loss:
    """SimCLR's loss (Chen et al. 2020): which of all views is the other one of the same image."""

    def loss(model: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        views = torch.cat([view(images[rows], generator), view(images[rows], generator)])
        found = F.normalize(head(model(views)[0]), dim=1)
        alike = (found @ found.T / TEMPERATURE).fill_diagonal_(-1e9)
        here = torch.arange(len(rows))
        return F.cross_entropy(alike, torch.cat([here + len(rows), here]))

    return loss


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image cut to between half and all of its side, mirrored by chance, its light and contrast changed."""
    count = len(images)
    scale = 0.5 + 0.5 * torch.rand(count, generator=generator)
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - scale)[:, None]
    mirrored = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    place = torch.zeros(count, 2, 3)
    place[:, 0, 0], place[:, 1, 1], place[:, :, 2] = scale * mirrored, scale, shift
    grid = F.affine_grid(place, list(images.shape), align_corners=False)
    cut = F.grid_sample(images.float() / 127.5 - 1, grid, align_corners=False, padding_mode="border")
    contrast = 1 + 0.8 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    light = 0.6 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    return (cut * contrast + light).contiguous(memory_format=torch.channels_last)


def networks(images: Tensor, labels: Tensor, share: float) -> Iterator[tuple[str, ImageClassifier]]:
    """The networks by name, trained for a share of the steps."""

    def steps(count: int) -> int:
        return max(6, round(count * share))

    config, rate = network().config, Classifier().learning_rate
    for count in (4000, 12_000):
        yield f"classifier, {count} steps of 64", fit_classifier(
            images, labels, config, steps=steps(count), batch_size=64, learning_rate=rate, seed=SEED,
            device=torch.device("cpu"),
        )  # fmt: skip
    for name, classes, known in (("rotation", 4, None), ("class and rotation", 4 * CLASSES, labels)):
        model, loss = network(classes), rotation(images, known)
        yield f"{name}, 6000 steps of 64", fitted(model, len(images), loss, steps=steps(6000), batch=64)
    model, head = network(), nn.Sequential(nn.Linear(DIMS, 128), nn.ReLU(), nn.Linear(128, DIMS))
    loss = contrast(images, head)
    yield "contrast, 1500 steps of 256", fitted(model, len(images), loss, steps=steps(1500), batch=256, more=head)


@torch.inference_mode()
def features(model: ImageClassifier, images: Tensor) -> Tensor:
    """The network's features of images in bytes."""
    return torch.cat([model(to_model_input(batch))[0] for batch in images.split(500)])


def probed(learnt: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """The accuracy of a linear classifier that learns from features and labels, on others."""
    mean, sd = learnt[0].mean(0), learnt[0].std(0) + 1e-6
    torch.manual_seed(SEED)
    head = nn.Linear(DIMS, CLASSES)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head((learnt[0] - mean) / sd), learnt[1]) + 1e-4 * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return float((head((other[0] - mean) / sd).argmax(1) == other[1]).float().mean())


def rises(model: ImageClassifier, reference: Tensor, damaged: dict[tuple[str, float], list[Tensor]]) -> str:
    """The rise of the Frechet distance over undamaged images, at each strength, in standard deviations of a draw."""
    goal, found = fit_gaussian(features(model, reference)), []
    for kind, strengths in STRENGTHS.items():
        none, *worse = (
            np.array([frechet_distance(goal, fit_gaussian(features(model, x))) for x in damaged[kind, strength]])
            for strength in (0.0, *strengths)
        )
        each = [(x.mean() - none.mean()) / np.sqrt((x.var(ddof=1) + none.var(ddof=1)) / 2) for x in worse]
        found.append(f"{kind} {', '.join(f'{rise:.1f}' for rise in each)}")
    return "; ".join(found)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line per network: accuracy of a linear classifier on its features, and the rises."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("results", type=Path, help="folder of an experiment whose tokenizer is trained")
    flags.add_argument("--share", type=float, default=1.0, help="of the steps of each training (default: all)")
    args = flags.parse_args(argv)
    train, val = (ImageIndex.load(args.results / "index" / f"{split}.json") for split in ("train", "val"))
    images, held_out = (torch.cat(list(index_batches(i, np.arange(len(i)), SIDE))) for i in (train, val))
    labels, held_labels = (torch.from_numpy(index.labels).long() for index in (train, val))
    half = training_half(labels, SEED)
    tokenizer = load_model(args.results / "tokenizer", "tokenizer", torch.device("cpu"))
    size = min(SIZE, fewest_rows(held_labels, max(STRENGTHS["missing classes"])))
    worse = Degrader(val, SIDE, tokenizer, size, SEED)
    damaged = {
        (kind, strength): [torch.cat(list(worse(kind, strength, draw))) for draw in range(DRAWS)]
        for kind, strengths in STRENGTHS.items()
        for strength in (0.0, *strengths)
    }
    for name, model in networks(images[half], labels[half], args.share):
        learnt = features(model, images[half]), labels[half]
        accuracy = probed(learnt, (features(model, held_out), held_labels))
        print(f"{name}: {accuracy:.3f}; {rises(model, images[~half], damaged)}", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
