"""Analyses patches: how entropy, patch length and loss per token hang together, and how long drawn patches are."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar.data.codes import CodeStore, open_codes
from dpar.device import default_device
from dpar.errors import InputError, run_command
from dpar.evaluation import patch_losses
from dpar.evaluation.features import ImageArray
from dpar.evaluation.image_sets import Arrays
from dpar.files import fields_of, write_json, write_text
from dpar.patches.rule import PatchRule
from dpar.report import patches
from dpar.report.figures import save
from dpar.train.objective import token_losses
from dpar.weights import load_model, model_config, provenance_of
from dpar.workflow import jobs
from dpar.workflow.stage import Stage, flag

STAGE = Stage(
    "analyse_patches",
    __doc__,
    flag("--manifest", "held-out codes, scored by the entropy model"),
    flag("--models", "folder models/MODEL/STATE of a DPAR, and of networks to compare it with", nargs="+"),
    flag("--samples", "samples/CELL/seedN/NNNNN.npz, drawn from the DPAR ...", nargs="+"),
    flag("--output", "the numbers as JSON"),
    flag("--markdown", "the same as tables"),
    flag("--figure", "the same as a PNG"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage.

    Raises:
        InputError: networks or codes that were not made for one another, or the first network asks no entropies.
    """
    run = STAGE.start(argv)
    args = run.args
    states = [f"{folder.parent.name}/{folder.name}" for folder in args.models]
    with run.job(
        inputs=[
            *jobs.codes("scored", "val", args.manifest),
            *(
                wanted
                for state, folder in zip(states, args.models, strict=True)
                for wanted in jobs.model(state, folder)
            ),
            *jobs.samples(args.samples),
        ],
        outputs=[args.output, args.markdown, args.figure],
        params={"models": ", ".join(states)},
    ) as job:
        codes, rule = open_codes(args.manifest), rule_of(args.models[0])
        losses = torch.stack([losses_of(folder, codes, args.manifest) for folder in args.models])
        drawn, conditions = samples_of(args.samples)
        found = analysed(codes, losses, rule, drawn) | conditions
        found["models"] = [
            {"model": state, "sha256": model_config(folder)["sha256"], "nll": loss.double().mean().item()}
            for state, folder, loss in zip(states, args.models, losses, strict=True)
        ]
        write_json(args.output, found)
        write_text(args.markdown, patches.tables(found))
        save(patches.figure(found), args.figure)
        print(args.markdown.read_text("utf-8"))
        job.figure(args.figure)
        job.summary({"drawn/images": len(drawn), "drawn/distance": found["drawn_distance"]})


def rule_of(folder: Path) -> PatchRule:
    """The patch rule that the DPAR in `folder` was trained with.

    Raises:
        InputError: it has no patches, or static ones.
    """
    rule = PatchRule.of_model(model_config(folder))
    if rule is None or not rule.is_dynamic:
        raise InputError(
            f"{folder} holds a model whose patches do not follow entropies; give a DPAR with dynamic patches first"
        )
    return rule


def losses_of(folder: Path, codes: CodeStore, where: Path) -> Float[Tensor, "I T"]:
    """The losses in nats of the network in `folder`, under the rule and in the precision of its training.

    Raises:
        InputError: the codes were made by another tokenizer, or scored by another entropy model than its own.
    """
    described, origin = model_config(folder), provenance_of(folder, "tokenizer", "entropy_model", "precision")
    rule, device = PatchRule.of_model(described), default_device()
    scored = {} if rule is None else {"entropy_model": origin["entropy_model"]}
    codes.metadata.expect(where, tokenizer=origin["tokenizer"], **scored)
    model = load_model(folder, described["kind"], device)
    return token_losses(model, codes, rule=rule, precision=origin["precision"], device=device)


def samples_of(paths: Sequence[Path]) -> tuple[Int[np.ndarray, " N"], dict[str, Any]]:
    """Patches of each image in the shards of a set of samples, and the set's cell and scale of guidance, for JSON.

    Raises:
        InputError: the shards are not those of one set, or do not say this.
    """
    with fields_of(paths[0]):
        files = [ImageArray.open(path) for path in paths]
        drawn = Arrays(files).conditions()["drawn"]
        counts = np.concatenate([file.arrays["patches"] for file in files])
        return counts, {"samples": drawn["cell"], "cfg_scale": drawn["sampling"]["cfg_scale"]}


def analysed(
    codes: CodeStore, losses: Float[Tensor, "K I T"], rule: PatchRule, drawn: Int[np.ndarray, " N"]
) -> dict[str, Any]:
    """The analysis of the first view of every image, for JSON.

    Args:
        codes: scored.
        losses: nats, of each of K networks.
        rule: that says where patches begin.
        drawn: patches of each drawn image.
    """
    assert codes.entropy is not None
    entropy = torch.from_numpy(np.array(codes.entropy[:, 0]))
    starts = rule.starts(entropy)
    lengths, real = patch_losses.patch_lengths(starts), starts.sum(1).numpy()
    groups: Mapping[str, Int[Tensor, "I T"]] = {
        "by_place": patch_losses.place_in_patch(starts),
        "by_reason": patch_losses.reasons(starts, entropy, rule),
        "by_entropy": patch_losses.entropy_groups(entropy),
    }
    tokens = entropy.shape[1]
    return {
        "images": len(entropy),
        "length": tokens,
        "codes": codes.digest,
        "rule": {name: getattr(rule, name) for name in ("threshold", "max_length", "row_boundary")},
        **{name: patch_losses.by_group(group, list(losses), entropy, starts) for name, group in groups.items()},
        "lengths": (lengths / lengths.sum()).tolist(),
        "patches": {
            "held-out": patch_losses.patches_per_image(real, tokens),
            "drawn": patch_losses.patches_per_image(drawn, tokens),
        },
        "distribution": {"held-out": np.sort(real).tolist(), "drawn": np.sort(drawn).tolist()},
        "drawn_distance": patch_losses.largest_difference(real, drawn),
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
