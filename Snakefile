"""The paper as a graph: one rule per stage, the same rules at every scale.

images -> VQ tokenizer -> codes -> entropy model -> entropies -> thresholds -> patches
       -> DPAR and LlamaGen, one trainer -> samples -> features -> metrics -> tables, figures, report

An experiment is one file under config/; without --configfile it is the demo.
"""

from snakemake.utils import min_version

min_version("9.20")

# An experiment given with --configfile stands alone: what it lacks is an error, not the demo's.
if "name" not in config and not workflow.overwrite_configfiles:

    configfile: workflow.source_path("config/demo.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/recipes.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/handlers.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/tokenizer.smk"
include: "workflow/rules/entropy.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/sampling.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/paper.smk"


rule all:
    """Everything: tables, figures and the report of this experiment."""
    default_target: True
    input:
        "<results>/first_report.html",
        "<results>/report.html",
        TARGETS["all_tables"],
        "<results>/tokenizer/report.json",
        expand("<results>/{store}/{split}/verified.json", store="scored", split=SPLITS),


# Seconds each, so not worth a job of a cluster's.
localrules:
    describe_models,
    make_table,
    plot_ablation,
    plot_compute,
    plot_entropy_maps,
    plot_pareto,
    plot_samples,
    write_first_report,
    write_report,


onstart:
    in_words(lock_results, check_experiment, guard_trainings, check_slurm, announce)
    in_words(begin_forced_trainings, write_experiment, start_tracking, begin_journal)


onsuccess:
    journal.write(Path(RESULTS), "ended", how="done")
    finish_tracking()


onerror:
    journal.write(Path(RESULTS), "ended", how="failed")
    finish_tracking()
