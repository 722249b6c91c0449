"""Targets by name: the paper's tables and figures (`snakemake table4`), and this experiment's own."""

from dpar.report import targets

TARGETS = {name: [f"<results>/{path}" for path in paths] for name, paths in targets.targets(EXPERIMENT).items()}


for target in dict.fromkeys([*targets.PAPER_TARGETS, *TARGETS]):

    rule:
        name:
            target
        input:
            files_of_target(target),

    # what `snakemake --list` says of it
    workflow.get_rule(target).docstring = targets.summary(target, EXPERIMENT)
