"""Targets by name: the paper's tables and figures, and those that an experiment adds."""

import re
from collections.abc import Iterable
from pathlib import Path

from dpar.errors import InputError, did_you_mean
from dpar.experiment.cells import (
    SampleCell,
    analysed_cells,
    described_models,
    model_cells,
    sample_cells,
    table_rows,
)
from dpar.experiment.loading import load_experiment
from dpar.experiment.settings import Experiment, Table

# Figures 1a and 3 are drawings of the paper.
PAPER_TARGETS = (*(f"table{n}" for n in range(1, 13)), "figure1b", "figure2", *(f"figure{n}" for n in range(4, 13)))
# Those that are computed, and those of which every experiment has one.
COMPUTED = ("table1", "table8")
# Shared by the cells of all tables.
SHARED = {"the noise floor": "metrics/noise_floor.json", "the patch counts": "patch_counts.json"}
ALWAYS = {
    "figure1b": ["figures/compute.png"],
    "figure2": ["figures/entropy_maps.png"],
    "degradations": ["metrics/degradations.json", "metrics/degradations.md"],
    "report": ["report.html"],
}
ANALYSIS = [f"patches/analysis.{form}" for form in ("json", "md", "png")]  # where a DPAR's patches follow entropies
SUMMARIES = {
    "table1": "What the models are made of.",
    "table8": "What a forward pass of each model costs.",
    "figure1b": "Quality against the cost of training.",
    "figure2": "Entropy maps with the outlines of patches.",
    "figure_patches": "How entropy, patch length and loss per token hang together; patches of drawn images.",
    "degradations": "How the Frechet distance orders real images that were made worse by known amounts.",
    "all_tables": "Every table of this experiment.",
    "report": "The report, one page.",
}


def targets(experiment: Experiment) -> dict[str, list[str]]:
    """The names that can be made for `experiment`, and of each its files below the experiment's results.

    A table's are also its measurements, so that one that was deleted is made again.
    """
    found: dict[str, list[str]] = {name: table_files(name) for name in COMPUTED} | ALWAYS
    if analysed_cells(experiment):
        found["figure_patches"] = ANALYSIS
    for name, table in experiment.tables.items():
        files = [*table_files(name), f"figures/{name}.png", *([pareto_file(name)] if table.is_grid else [])]
        cells = [cell for row in table_rows(experiment, name) for cell in row.samples]
        files += [*metric_files(cells), *likelihood_files(cells), *probe_files(table, cells), *SHARED.values()]
        for target in {name, table.paper or name}:
            found[target] = list(dict.fromkeys([*found.get(target, []), *files]))
    found |= {name: [f"figures/{name}.png"] for name in experiment.figures}
    every = [
        file
        for name in (*COMPUTED, *experiment.shown_tables)
        for file in found[name]
        if not file.startswith("figures/")
    ]
    found["all_tables"] = list(dict.fromkeys(every))
    return found


def table_files(name: str) -> list[str]:
    """The three forms of a table, below the results."""
    return [f"tables/{name}.{form}" for form in ("csv", "md", "tex")]


def metric_files(cells: Iterable[SampleCell]) -> list[str]:
    """The measurements of sets of samples, below the results."""
    return [f"metrics/{cell.slug}/seed{seed}.json" for cell in cells for seed in cell.sampling.seeds]


def likelihood_files(cells: Iterable[SampleCell]) -> list[str]:
    """The likelihoods of the states that `cells` are drawn from, below the results."""
    return sorted({f"likelihood/{cell.model}/{cell.milestone}.json" for cell in cells})


def probe_files(table: Table, cells: Iterable[SampleCell]) -> list[str]:
    """The linear probes of the states that `cells` of `table` are drawn from, if it shows any; below the results."""
    states = {(cell.model, cell.milestone) for cell in cells if table.linear_probe}
    return sorted(f"linear_probe/{model}/{milestone}.json" for model, milestone in states)


def pareto_file(name: str) -> str:
    """The Pareto plot of a table, below the results."""
    return f"figures/pareto/{name}.png"


def tables_of(experiment: Experiment, names: Iterable[str]) -> list[str]:
    """The tables of `experiment` that the targets `names` ask for, in the experiment's order.

    Raises:
        InputError: one of them is no table or figure of this experiment.
    """
    made, names = targets(experiment), list(names)
    if unknown := [name for name in names if name not in made]:
        raise InputError(f"{unknown[0]} is no target of {experiment.name}; targets are {', '.join(made)}")
    files = {file for name in names for file in made[name]}
    return [name for name in experiment.tables if files & {*table_files(name), f"figures/{name}.png"}]


def summary(name: str, experiment: Experiment) -> str:
    """One line on what the target `name` makes."""
    titles = [table.title for key, table in experiment.tables.items() if name in (key, table.paper)]
    titles += [figure.title for key, figure in experiment.figures.items() if name == key]
    return "; ".join(titles) or SUMMARIES.get(name, "No part of this experiment.")


def sized_tables(experiment: Experiment) -> list[str]:
    """The tables with the models as the experiment describes them, fully trained: what Figure 1b is drawn from.

    None, where no table has such a model. Where tables stand for the paper's, they alone.
    """
    described = described_models(experiment)
    found = [
        name
        for name, table in experiment.tables.items()
        if not (table.on_request or table.linear_probe or table.is_training_curve)
        and any(
            row.model.slug in described and row.sample.milestone == row.model.milestones[-1]
            for row in table_rows(experiment, name)
        )
    ]
    return [name for name in found if experiment.tables[name].paper] or found


def refusal(name: str, experiment: Experiment, configs: Path, asked: str = "--configfile config") -> str:
    """Why `name` cannot be made for `experiment`, and which of the experiments in the folder `configs` has it.

    Args:
        asked: the flag of the command at hand, and how that folder is written there.
    """
    near = "" if name in PAPER_TARGETS else did_you_mean(name, targets(experiment))
    having = [path for path in sorted(configs.glob("*.yaml")) if name in _targets_of(path)]
    made = " or ".join(f"{asked}/{path.name}" for path in having)
    return (
        f"{name} is no part of the experiment {experiment.name}{near}; "
        + (f"it is made with {made}" if having else f"no experiment under {asked.split()[-1]}/ has it")
        + (
            f" (a table stands for it with `paper: {name}`, a picture with its name under `figures`)"
            * (name in PAPER_TARGETS)
        )
        + (f"; targets are {', '.join(targets(experiment))}" * (not having))
    )


def file_refusal(name: str, experiment: Experiment, patterns: Iterable[str]) -> str | None:
    """Why the file `name` cannot be made, and which was meant; None where a rule makes it.

    Args:
        name: as it was given; files are named from the folder that `results/` lies in.
        patterns: outputs of the rules, as `output_patterns` has them.
    """
    results, below = f"results/{experiment.name}/", re.sub(r"^(?:.*/)?results/[^/]+/", "", name)
    if any(re.fullmatch(pattern, below) for pattern in patterns):
        return None if name == results + below else f"{name} is called {results}{below}; say --target {results}{below}"
    files = [re.sub(r"\\(.)", r"\1", pattern) for pattern in patterns if not re.search(r"[(\[]", pattern)]
    near = did_you_mean(below, [*files, *(file for found in targets(experiment).values() for file in found)])
    return f"no rule makes {name}" + (
        near.replace("mean ", f"mean {results}") or f"; files that rules make begin with {results}, and -n lists them"
    )


def output_patterns(experiment: Experiment, rules: Iterable[str]) -> list[str]:
    """The outputs in the texts of the rules, below the results, as regular expressions."""
    values = {
        "split": ["train", "val"],
        "store": ["codes", "scored"],
        "model": model_cells(experiment),
        "cell": sample_cells(experiment),
        "network": experiment.networks,
        "gate": experiment.gates,
        "table": experiment.tables,
        "figure": ["samples", *experiment.figures],
        "path": [file for name in COMPUTED for file in table_files(name)],
    }
    wildcards = {name: f"({'|'.join(map(re.escape, known))})" for name, known in values.items()}
    wildcards["features"] = r"(reference|[^/]+/seed[^/]+)"
    written = [
        path
        for text in rules
        for block in re.findall(r"^ +output:\n(.*?)^ +log:", text, re.MULTILINE | re.DOTALL)
        for file, folder in re.findall(r'"<results>/([^"]+)"|\bfolder\("([^"]+)"\)', block)
        for path in ([file] if file else [f"{folder}/model.safetensors", f"{folder}/config.json"])
    ]
    return [
        "".join(
            wildcards.get(part.strip("{}"), "[^/]+") if part.startswith("{") else re.escape(part)
            for part in re.split(r"(\{+\w+\}+)", path)
        )
        for path in written
    ]


def _targets_of(path: Path) -> Iterable[str]:
    try:
        return targets(load_experiment(path))
    except InputError:  # somebody's draft, or no experiment
        return ()
