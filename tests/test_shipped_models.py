"""The models in models/: whole, small, and as good as their cards say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dpar.data.codes import CodeStore
from dpar.data.crops import center_crop, to_model_input, to_uint8
from dpar.data.images import ImageIndex, open_images
from dpar.data.shards import CodeMetadata
from dpar.data.subsets import spread_over_classes
from dpar.generator import Generator
from dpar.model.llamagen import LlamaGen
from dpar.patches.rule import PatchRule
from dpar.train.distributed import Ranks
from dpar.train.objective import likelihood
from dpar.train.scoring import score
from dpar.weights import model_config, verify_model

ROOT = Path(__file__).resolve().parents[1] / "models"
FASHION = ROOT / "fashion28"
CLASSES = 10
CPU = torch.device("cpu")


def test_all_weights_have_the_digests_they_were_recorded_with_and_are_small():
    folders = [path.parent for path in ROOT.rglob("config.json")]
    assert {folder.relative_to(FASHION).as_posix() for folder in folders} == {".", "tokenizer", "entropy_model"}
    for folder in folders:
        verify_model(folder)
    origin = model_config(FASHION)["provenance"]
    for name in ("tokenizer", "entropy_model"):
        assert origin[name] == model_config(FASHION / name)["sha256"]
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 6e6


def test_the_card_says_whose_images_they_were_and_under_which_licence():
    card = (FASHION / "README.md").read_text(encoding="utf-8")
    assert "(c) 2017 Zalando SE" in card
    assert card.count("MIT licence") >= 2  # of the images, and of the weights


@pytest.fixture(scope="module")
def held_out(shared) -> ImageIndex:
    """The held-out images that the card speaks of, those of config/fashion28_converged.yaml."""
    images = open_images("parquet", str(shared / "data/fashion28/test.parquet"))
    images = images.keep(spread_over_classes(images.labels, 2000))
    return ImageIndex.build(images, resolution=28, num_classes=CLASSES)


def pixels(index: ImageIndex) -> torch.Tensor:
    """All its images."""
    return torch.stack([to_uint8(center_crop(index.read(i), 28)) for i in range(len(index))])


@torch.inference_mode()
def test_held_out_likelihood_is_that_of_the_card(held_out):
    generator, described = Generator.from_pretrained(FASHION, device="cpu"), model_config(FASHION)
    said = re.search(
        r"likelihood: ([\d.]+) nats per token over ([\d,]+) images", (FASHION / "README.md").read_text("utf-8")
    )
    assert said is not None
    assert int(said[2].replace(",", "")) == len(held_out)
    networks = generator.networks
    batches = pixels(held_out).split(250)
    tokens = torch.cat([networks.tokenizer.encode(to_model_input(batch)).flatten(1) for batch in batches])
    tokens = tokens.numpy().astype(np.uint16)
    assert isinstance(networks.entropy_model, LlamaGen)
    entropy = score(networks.entropy_model, tokens, "unconditional")
    about = CodeMetadata(grid=(14, 14), vocab_size=256, resolution=28, views=1, tokenizer="f" * 64)
    codes = CodeStore(about, "f" * 64, tokens[:, None], held_out.labels.astype(np.int32), entropy[:, None])
    rule, precision = PatchRule.of_model(described), described["provenance"]["precision"]
    found = likelihood(networks.model, codes, rule=rule, precision=precision, ranks=Ranks(CPU))
    assert found.nll == pytest.approx(float(said[1]), abs=2e-3)  # half precision moves a few tokens and boundaries


def test_it_draws_garments_of_the_classes_that_are_asked_for(held_out):
    """Drawn images are told apart by the means of held-out images of each class, nearly as well as real ones."""
    labels = np.repeat(np.arange(CLASSES), 4)
    drawn = Generator.from_pretrained(FASHION, device="cpu")(labels.tolist(), seed=0, cfg_scale=1.5)
    assert drawn.shape == (len(labels), 28, 28, 3)
    real = pixels(held_out)[:, 0].flatten(1).double()
    means = torch.stack([real[torch.from_numpy(held_out.labels) == c].mean(0) for c in range(CLASSES)])

    def share(images: torch.Tensor, classes: np.ndarray) -> float:
        return (torch.cdist(images, means).argmin(1) == torch.from_numpy(classes)).double().mean().item()

    of_drawn = share(torch.from_numpy(drawn[..., 0]).flatten(1).double(), labels)
    assert of_drawn > share(real, held_out.labels) - 0.15
