"""What the ImageNet experiments name, generated: folders of images, and the files that others publish, at small sizes.

Names and layouts are the real ones: a folder per WordNet number, LlamaGen's state dicts, the 566 tensors of
pytorch-fid's Inception, ADM's reference with its statistics.
"""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dpar.data import class_names
from dpar.evaluation import inception
from dpar.experiment.settings import Transformer
from dpar.files import sha256_file
from dpar.model.variants import build_model
from tests.oracles.tokenizer import official_state

CLASSES = 1000
REFERENCES = 12
NARROW = 16  # the published Inception is so many times as wide
SIZES = {"tokenizer.channels": 8, "tokenizer.groups": 8, "tokenizer.z_channels": 16, "tokenizer.vocab_size": 64}
GATE = {"width": 32, "heads": 2, "layers": 1}  # of LlamaGen's published B


def settings(name: str) -> dict[str, int]:
    """The sizes of the generated files, as the experiment has to say them."""
    of_gate = {f"gates.published.model.{key}": size for key, size in GATE.items()}
    return SIZES | (of_gate if name == "imagenet256" else {})


def write_images(folder: Path) -> None:
    """Two small images of each class, one to train on, under data/imagenet/."""
    noise = random.Random(0)
    names = Path(class_names.__file__).with_name("imagenet.txt").read_text().splitlines()
    wordnet = [line.split()[0] for line in names]
    assert len(wordnet) == CLASSES
    for split in ("train", "val"):
        for label, number in enumerate(wordnet):
            place = folder / "data" / "imagenet" / split / number / f"{number}_{label}.JPEG"
            place.parent.mkdir(parents=True)
            Image.frombytes("RGB", (12, 10), noise.randbytes(360)).resize((60, 50)).save(place)


def write_pretrained(folder: Path, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaGen's tokenizer and B, a narrow Inception that is taken for the published one, and ADM's reference."""
    place = folder / "pretrained"
    place.mkdir()
    state = official_state(
        channels=SIZES["tokenizer.channels"], multipliers=(1, 1, 2, 2, 4), blocks=2,
        z_channels=SIZES["tokenizer.z_channels"], vocab_size=SIZES["tokenizer.vocab_size"], code_dim=8, seed=0,
    )  # fmt: skip
    torch.save({"model": {name: tensor.float() for name, tensor in state.items()}}, place / "vq_ds16_c2i.pt")
    torch.manual_seed(0)
    transformer = Transformer(variant="LlamaGen-B", **GATE)
    gate = build_model(transformer, vocab_size=SIZES["tokenizer.vocab_size"], grid=grid, num_classes=CLASSES)
    state = {name: 0.3 * torch.randn_like(tensor) for name, tensor in gate.state_dict().items()}
    torch.save({"model": state | {"freqs_cis": torch.zeros(3)}}, place / "c2i_B_256.pt")
    dims = write_inception(place / "pt_inception-2015-12-05-6726825d.pth", monkeypatch)
    write_reference(place / "VIRTUAL_imagenet256_labeled.npz", dims)


def write_inception(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A state dict with the published names; this process takes it for the published one. Its features' dimensions."""
    whole = inception.Convolution.__init__

    def convolution(self, inputs, outputs, *size, **others):
        whole(self, inputs if inputs == 3 else inputs // NARROW, outputs // NARROW, *size, **others)

    build = inception.Inception.__init__

    def network(self):
        build(self)
        self.fc = nn.Linear(2048 // NARROW, 1008)

    monkeypatch.setattr(inception.Convolution, "__init__", convolution)
    monkeypatch.setattr(inception.Inception, "__init__", network)
    torch.manual_seed(1)
    state = inception.Inception().state_dict()
    assert len(state) == 566
    torch.save(state, path)
    monkeypatch.setitem(inception.KNOWN_FILES, sha256_file(path), inception.WeightFile("a test's", script=False))
    return 2048 // NARROW


def write_reference(path: Path, dims: int) -> None:
    """Images of 256 pixels with the mean and covariance of pooled and spatial features, as ADM's evaluator has them."""
    random = np.random.default_rng(2)
    arrays = {"arr_0": random.integers(0, 256, (REFERENCES, 256, 256, 3), dtype=np.uint8)}
    for suffix, count in (("", dims), ("_s", 7 * 17 * 17)):
        arrays |= {f"mu{suffix}": random.random(count), f"sigma{suffix}": np.eye(count)}
    np.savez(path, **arrays)
