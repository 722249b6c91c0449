import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from dpar.errors import InputError
from dpar.experiment.settings import VARIANTS, Transformer
from dpar.model.attention import Backend
from dpar.model.dpar import DPAR
from dpar.model.llamagen import LlamaGen
from dpar.model.rope import Position
from dpar.model.variants import build_model, model_config

IMAGENET = {"vocab_size": 16384, "grid": (16, 16), "num_classes": 1000}
PARAMETERS = {
    "LlamaGen-B": 110_888_448,
    "LlamaGen-L": 342_910_976,
    "LlamaGen-XL": 774_699_520,
    "LlamaGen-XXL": 1_410_972_672,
    "DPAR-B": 115_021_824,
    "DPAR-L": 351_306_752,
    "DPAR-XL": 789_455_360,
    "DPAR-XXL": 1_434_579_456,
}


def test_every_variant_is_counted():
    assert set(VARIANTS) == set(PARAMETERS)


@pytest.mark.parametrize("variant", PARAMETERS)
@pytest.mark.parametrize("side", [16, 24])
def test_parameters_of_table_1_at_256_and_384_pixels(variant, side):
    with torch.device("meta"):
        model = build_model(Transformer(variant=variant), **(IMAGENET | {"grid": (side, side)}))
    assert isinstance(model, DPAR if variant.startswith("DPAR") else LlamaGen)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[variant]
    assert model.config.head_dim == 64
    assert not list(model.buffers())


@pytest.mark.parametrize("variant", PARAMETERS)
def test_first_loss_of_every_variant_is_ln_v(variant):
    model = build_model(Transformer(variant=variant, width=32, heads=2), vocab_size=50, grid=(2, 3), num_classes=4)
    tokens, labels = torch.randint(0, 50, (2, 6)), torch.tensor([0, 4])
    starts = (torch.ones(2, 6, dtype=torch.bool),) if isinstance(model, DPAR) else ()
    logits = model(tokens, labels, *starts).double()
    assert not logits.any()
    assert F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item() == pytest.approx(math.log(50), rel=1e-14)


def test_sizes_beside_a_variant_replace_its_own():
    """Table 10's E3D2."""
    config = model_config(Transformer(variant="DPAR-L", encoder_layers=3, decoder_layers=2, position="2d"), **IMAGENET)
    assert isinstance(config, DPAR.Config)
    assert (config.encoder_layers, config.layers, config.decoder_layers, config.width) == (3, 19, 2, 1024)
    assert config.position == "2d"


def test_settings_reach_the_model():
    sizes = {"architecture": "dpar", "width": 64, "heads": 2, "encoder_layers": 1, "layers": 3, "decoder_layers": 2}
    settings = {"dropout": 0.2, "class_dropout": 0.3, "position": "dynamic_no_redundancy", "attention": "sdpa"}
    settings |= {"query_pooling": "mean"}
    model = build_model(Transformer(**sizes, **settings), vocab_size=9, grid=(2, 5), num_classes=4)
    expected = sizes | settings | {"vocab_size": 9, "grid": (2, 5), "num_classes": 4}
    expected.pop("architecture")
    assert model.config.model_dump() == expected


def test_an_unconditional_llamagen_has_no_class_table():
    model = build_model(Transformer(variant="LlamaGen-B", width=32, heads=2), **(IMAGENET | {"num_classes": None}))
    assert not any("cls_embedding" in name for name in model.state_dict())


def test_a_dpar_needs_classes():
    with pytest.raises(InputError, match=r"DPAR-B cannot be built: num_classes"):
        model_config(Transformer(variant="DPAR-B"), **(IMAGENET | {"num_classes": None}))


@pytest.mark.parametrize(("field", "kind"), [("position", Position), ("attention", Backend)])
def test_the_experiment_and_the_model_offer_the_same_choices(field, kind):
    offered = get_args(Transformer.model_fields[field].annotation)
    assert [choice for choice in offered if choice != "auto"] == list(get_args(kind))
