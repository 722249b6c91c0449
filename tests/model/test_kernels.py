"""Kernels per token and per training step of DPAR and LlamaGen, as in tests/golden/kernels.json.

They depend on the number of layers, not on their width: the layers of B and XL are launched at width 16, under
`tests.rehearsal`, which counts a forward pass as a GPU would and a backward pass as a CPU does. `python -m
tests.model.test_kernels` writes the file anew after a change that is meant.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dpar.experiment.settings import VARIANTS
from dpar.model.dpar import DPAR
from dpar.model.llamagen import LlamaGen
from dpar.patches.packing import PatchLayout
from dpar.patches.rule import PatchRule
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.sampler import sample
from dpar.train.objective import Inputs, autocast, logits_and_targets, summed_loss
from tests.rehearsal import rehearsing
from tests.sampling.test_sampler import request, with_random_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "kernels.json"
SIZES: dict[str, Any] = {"vocab_size": 40, "grid": (3, 4), "width": 16, "heads": 1}
MODELS = [f"{kind}-{size}" for kind in ("DPAR", "LlamaGen") for size in ("B", "XL")]
RULE = PatchRule(grid_width=4, threshold=3.17)


def network(variant: str) -> DPAR | LlamaGen:
    """A narrow network with the layers of the variant."""
    layers = {name: number for name, number in VARIANTS[variant].items() if name.endswith("layers")}
    kind = DPAR if variant.startswith("DPAR") else LlamaGen
    return with_random_weights(kind(kind.Config(num_classes=3, attention="sdpa", **layers, **SIZES) if kind is DPAR else
                                    kind.Config(num_classes=3, **layers, **SIZES))).float()  # fmt: skip


def sampling(variant: str) -> dict[str, int]:
    """Kernels of a token that is given, with guidance: one that opens a patch in all images, in some, or in none."""
    model, dpar = network(variant).to(torch.bfloat16), variant.startswith("DPAR")
    gate = with_random_weights(LlamaGen(LlamaGen.Config(layers=12, **SIZES))).float() if dpar else None
    counts: dict[str, int] = {}
    with rehearsing() as gpu, gpu.logging() as log:
        seen = 0

        def count(step: Any) -> None:
            nonlocal seen
            opens = step.opens.host if hasattr(step.opens, "host") else step.opens
            kind = "patch" if opens.all() else "patches of some images" if opens.any() else "no patch"
            counts[kind if dpar else "token"] = log.launches - seen
            seen = log.launches

        tokens = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))
        given = {name: tensor.to("cuda") for name, tensor in (request(2) | {"prefix": tokens}).items()}
        there = [None if some is None else some.to("cuda") for some in (model, gate)]
        seen = log.launches
        sample(*there, **given, rule=RULE if dpar else None, settings=DrawSettings(2.5), observe=count)
    return dict(sorted(counts.items()))  # the last of each kind: the first token prepares what others use


def training(variant: str) -> dict[str, int]:
    """Kernels of the forward and of the backward pass of a step in bf16."""
    model = network(variant).train()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 40, (3, 12), generator=generator)
    starts = torch.rand(3, 12, generator=generator) < 0.5
    starts[:, 0] = True
    layout = PatchLayout.from_starts(starts) if isinstance(model, DPAR) else None
    with rehearsing() as gpu:
        given = Inputs(tokens, torch.arange(3), layout).to(torch.device("cuda"))
        model.to("cuda")
        with gpu.logging() as forward, autocast(torch.device("cuda"), "bfloat16"):
            loss = summed_loss(*logits_and_targets(model, given))
        with gpu.logging() as backward:
            loss.backward()
    return {"forward": forward.launches, "backward": backward.launches}


def kernels() -> dict[str, dict[str, dict[str, int]]]:
    """All numbers of the file."""
    return {variant: {"sampling": sampling(variant), "training": training(variant)} for variant in MODELS}


@pytest.mark.parametrize("variant", MODELS)
def test_kernels_are_as_many_as_they_were(variant):
    golden = json.loads(GOLDEN.read_text())[variant]
    assert {"sampling": sampling(variant), "training": training(variant)} == golden


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(kernels(), indent=1) + "\n")
    sys.stdout.write(GOLDEN.read_text())
