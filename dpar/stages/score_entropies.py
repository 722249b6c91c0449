"""Adds to each token of a shard how uncertain the entropy model was about it, in nats (Eq. 3)."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt16

from dpar import jobs, tracking
from dpar.config import EntropyKind, EntropyModel, load_experiment
from dpar.data.codes import CodeMetadata, CodeRows, read_shard, write_shard
from dpar.data.workers import reported
from dpar.device import default_device, filled_up, full_float32
from dpar.entropy import token_entropies
from dpar.errors import InputError, run_command
from dpar.model.llamagen import LlamaGen
from dpar.train.objective import images_at_once
from dpar.weights import load_model, model_config


def parser() -> argparse.ArgumentParser:
    """The flags of this stage."""
    flags = argparse.ArgumentParser(prog="score_entropies", description=__doc__)
    flags.add_argument("--experiment", type=Path, required=True)
    flags.add_argument("--shard", type=Path, required=True, help="a shard of codes")
    flags.add_argument("--entropy-model", type=Path, required=True, help="folder of the entropy model")
    flags.add_argument("--output", type=Path, required=True, help="the same shard with entropies, .parquet or .tar")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: the shard or the model is damaged, or they were not made for one another.
    """
    args = parser().parse_args(argv)
    experiment = load_experiment(args.experiment)
    settings = experiment.entropy_model
    with tracking.job(
        rule="score_entropies",
        experiment=args.experiment,
        name=f"score_entropies[{args.output.parent.name}-{args.output.stem}]",
        inputs=[
            *tracking.made_by(f"encode_images[{args.output.parent.name}-{args.output.stem}]", args.shard),
            *jobs.network("entropy_model", args.entropy_model),
        ],
        outputs=[args.output],
        params={"kind": settings.kind, "shard": args.output.stem},
    ) as job:
        rows = read_shard(args.shard)
        turn = int(rows.images[0]) // rows.num_images  # shards are equally large
        start = time.monotonic()
        entropy = scored(args.entropy_model, settings, rows.tokens, rows.metadata, args.shard, default_device(turn))
        metadata = rows.metadata.model_copy(update={"entropy_model": model_config(args.entropy_model)["sha256"]})
        write_shard(args.output, CodeRows(**vars(rows) | {"entropy": entropy, "metadata": metadata}))
        job.summary(
            {
                "entropy/mean": entropy[:, 1:].mean(),
                "entropy/p10": np.quantile(entropy[:, 1:], 0.1),
                "entropy/p90": np.quantile(entropy[:, 1:], 0.9),
                "perf/tokens_per_s": rows.tokens.size / (time.monotonic() - start),
            }
        )


def scored(
    folder: Path,
    settings: EntropyModel,
    tokens: UInt16[np.ndarray, "N T"],
    metadata: CodeMetadata,
    where: Path,
    device: torch.device,
) -> Float32[np.ndarray, "N T"]:
    """Entropies of rows by the network in `folder`, an entropy model or a gate with these settings.

    Args:
        metadata: of the codes.
        where: the codes come from, for messages.

    Raises:
        InputError: the network and the codes were not made for one another, or an entropy is not finite.
    """
    model = load_model(folder, settings.stored_as, device)
    metadata.expect(
        where,
        grid=model.config.grid,
        vocab_size=model.config.vocab_size,
        tokenizer=model_config(folder)["provenance"].get("tokenizer"),  # a published model knows of none
    )
    entropy = score(model, tokens, settings.kind)
    if not np.isfinite(entropy[:, 1:]).all():
        raise InputError(f"{folder} gives entropies that are not finite; train or import it again")
    return entropy


def score(model: LlamaGen, tokens: UInt16[np.ndarray, "N T"], kind: EntropyKind) -> Float32[np.ndarray, "N T"]:
    """Entropies of all rows in float32: half precision, or TF32, would move decisions near the threshold.

    A row has the same entropies in a shard of any size, to the bit.
    """
    device = model.output.weight.device
    size = images_at_once(model.config, device)

    def batches() -> Iterator[Float32[np.ndarray, "B T"]]:
        for first in range(0, len(tokens), size):
            batch = torch.from_numpy(tokens[first : first + size].astype(np.int64))
            with torch.inference_mode():
                entropy = token_entropies(model, filled_up(batch, size).to(device), kind).float().cpu()
            yield entropy[: len(batch)].numpy()

    with full_float32():
        return np.concatenate(list(reported(batches(), len(tokens), "scored", size=size)))


if __name__ == "__main__":
    sys.exit(run_command(main))
