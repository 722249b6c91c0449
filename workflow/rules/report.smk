"""Tables and figures, ours beside the paper's, and one page that holds them all."""

from dpar.report.targets import likelihood_files, probe_files

CAPTIONS = Path(workflow.basedir) / "workflow" / "report"


def first_shards(cells, form):
    return [f"{RESULTS}/samples/{cell.slug}/seed{cell.sampling.seeds[0]}/00000.{form}" for cell in cells]


def table_cells(name):
    return list({cell.slug: cell for row in table_rows(EXPERIMENT, name) for cell in row.samples}.values())


rule make_table:
    """Print one table: ours, the paper's where it has one, and their conditions."""
    input:
        metrics=lambda wildcards: [f"{RESULTS}/{path}" for path in metric_files(table_cells(wildcards.table))],
        likelihoods=lambda wildcards: [f"{RESULTS}/{path}" for path in likelihood_files(table_cells(wildcards.table))],
        linear_probes=lambda wildcards: [
            f"{RESULTS}/{path}"
            for path in probe_files(EXPERIMENT.tables[wildcards.table], table_cells(wildcards.table))
        ],
        noise_floor=RESULTS + "/metrics/noise_floor.json",
        patch_counts=RESULTS + "/patch_counts.json",
        thresholds=lambda wildcards: sorted(
            {path for cell in table_cells(wildcards.table) for path in threshold_of_cell(cell.model, cell.patchify)}
        ),
        pictures=lambda wildcards: first_shards(table_cells(wildcards.table), "png"),
    output:
        csv=RESULTS + "/tables/{table}.csv",
        markdown=RESULTS + "/tables/{table}.md",
        latex=RESULTS + "/tables/{table}.tex",
    log:
        RESULTS + "/logs/make_table/{table}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe(
            "make_table",
            EXPERIMENT.tables[wildcards.table],
            paper.of_table(EXPERIMENT.tables[wildcards.table].paper),
        ),
    shell:
        STAGE + " --table {wildcards.table} --metrics {input.metrics}"
        " --likelihoods {input.likelihoods} --noise-floor {input.noise_floor} --patch-counts {input.patch_counts}"
        " --thresholds {input.thresholds} --linear-probes {input.linear_probes} --pictures {input.pictures}"
        " --csv {output.csv} --markdown {output.markdown} --latex {output.latex}" + LOGGED


rule describe_models:
    """Print the parameters and the cost of the models (Tables 1 and 8); nothing has to be trained."""
    output:
        [f"{RESULTS}/{path}" for name in COMPUTED for path in table_files(name)],
    log:
        RESULTS + "/logs/describe_models.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe(
            "describe_models",
            {name: model.model_dump() for name, model in EXPERIMENT.models.items()},
            [EXPERIMENT.tokenizer.vocab_size, EXPERIMENT.grid],
            [EXPERIMENT.images.resolution, EXPERIMENT.images.num_classes],
            EXPERIMENT.patchify,
        ),
        folder=RESULTS + "/tables",
    shell:
        STAGE + " --output {params.folder}" + LOGGED


rule plot_entropy_maps:
    """Figure 2: entropy maps of held-out images with the outlines of their patches."""
    input:
        index=RESULTS + "/index/val.json",
        manifest=RESULTS + "/scored/val/manifest.json",
        thresholds=(
            [threshold_file(EXPERIMENT.patchify.p_avg)]
            if EXPERIMENT.patchify.p_avg in p_avg_targets(EXPERIMENT)
            else []
        ),
    output:
        report(
            RESULTS + "/figures/entropy_maps.png",
            caption="../report/entropy_maps.rst",
            category="Figures",
        ),
    log:
        RESULTS + "/logs/plot_entropy_maps.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("plot_entropy_maps", EXPERIMENT.patchify),
    shell:
        STAGE + " --index {input.index} --manifest {input.manifest}"
        " --thresholds {input.thresholds} --output {output}" + LOGGED


def pictured_cells(figure):
    """The cells of a figure; for `samples` one of each model, fully trained rather than not."""
    if figure in EXPERIMENT.figures:
        return [row.sample for row in figure_rows(EXPERIMENT, figure)]
    chosen, described = {}, described_models(EXPERIMENT)
    for row in (row for name in EXPERIMENT.tables for row in table_rows(EXPERIMENT, name)):
        if row.sample.milestone == row.model.milestones[-1] or row.model.slug not in described:
            chosen.setdefault(row.model.slug, row.sample)
    return list(chosen.values())


rule plot_samples:
    """Show samples, a row a class: of every model beside real images, or of a figure's cells and classes."""
    input:
        index=lambda wildcards: [] if wildcards.figure in EXPERIMENT.figures else [f"{RESULTS}/index/val.json"],
        samples=lambda wildcards: first_shards(pictured_cells(wildcards.figure), "npz"),
    output:
        report(
            RESULTS + "/figures/{figure}.png",
            caption="../report/samples.rst",
            category="Figures",
        ),
    log:
        RESULTS + "/logs/plot_samples/{figure}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe("plot_samples", EXPERIMENT.figures.get(wildcards.figure)),
        index=lambda wildcards, input: f"--index {input.index}" if input.index else "",
    shell:
        STAGE + " --figure {wildcards.figure} {params.index} --samples {input.samples} --output {output}" + LOGGED


rule plot_ablation:
    """One table as curves: the metrics against what the table varies."""
    input:
        table=rules.make_table.output.csv,
        noise_floor=RESULTS + "/metrics/noise_floor.json",
    output:
        report(
            RESULTS + "/figures/{table}.png",
            caption="../report/ablation.rst",
            category="Figures",
        ),
    log:
        RESULTS + "/logs/plot_ablation/{table}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe("plot_ablation", EXPERIMENT.tables[wildcards.table]),
    shell:
        STAGE + " --table {wildcards.table} --csv {input.table}"
        " --noise-floor {input.noise_floor} --output {output}" + LOGGED


rule plot_pareto:
    """A table's cells by metric and cost, of training and of sampling, and which of them no other beats."""
    input:
        table=rules.make_table.output.csv,
        noise_floor=RESULTS + "/metrics/noise_floor.json",
    output:
        report(
            RESULTS + "/figures/pareto/{table}.png",
            caption="../report/pareto.rst",
            category="Figures",
        ),
    log:
        RESULTS + "/logs/plot_pareto/{table}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe("plot_pareto", EXPERIMENT.tables[wildcards.table]),
    shell:
        STAGE + " --table {wildcards.table} --csv {input.table}"
        " --noise-floor {input.noise_floor} --output {output}" + LOGGED


rule plot_compute:
    """Figure 1b: the metric against the cost of training, DPAR beside LlamaGen."""
    input:
        tables=expand(RESULTS + "/tables/{table}.csv", table=sized_tables(EXPERIMENT)),
        noise_floor=RESULTS + "/metrics/noise_floor.json",
    output:
        report(
            RESULTS + "/figures/compute.png",
            caption="../report/compute.rst",
            category="Figures",
        ),
    log:
        RESULTS + "/logs/plot_compute.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("plot_compute"),
    shell:
        STAGE + " --tables {input.tables} --noise-floor {input.noise_floor} --output {output}" + LOGGED


rule write_report:
    """The report: one page that needs no other file."""
    input:
        tables=expand(RESULTS + "/tables/{table}.csv", table=EXPERIMENT.tables),
        notes=expand(RESULTS + "/tables/{table}.md", table=EXPERIMENT.tables),
        models=expand(RESULTS + "/tables/{table}.csv", table=COMPUTED),
        ablations=expand(RESULTS + "/figures/{table}.png", table=EXPERIMENT.tables),
        paretos=[f"{RESULTS}/{pareto_file(name)}" for name, table in EXPERIMENT.tables.items() if table.is_grid],
        figures=expand(RESULTS + "/figures/{figure}.png", figure=[*FIGURES, *EXPERIMENT.figures]),
        gates=[RESULTS + "/gates/comparison.json"] if EXPERIMENT.gates else [],
        tokenizer=RESULTS + "/tokenizer/report.json",
        reconstructions=RESULTS + "/tokenizer/reconstructions.png",
        noise_floor=RESULTS + "/metrics/noise_floor.json",
        thresholds=[threshold_file(p_avg) for p_avg in p_avg_targets(EXPERIMENT)],
        histories=[
            f"{RESULTS}/models/{cell.model}/{cell.milestone}/history.jsonl"
            for cell in {(c.model, c.milestone): c for c in SAMPLES.values()}.values()
        ],
    output:
        RESULTS + "/report.html",
    log:
        RESULTS + "/logs/write_report.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("write_report", EXPERIMENT, [path.read_text("utf-8") for path in sorted(CAPTIONS.glob("*.rst"))]),
        captions=CAPTIONS,
    shell:
        STAGE + " --tables {input.tables} --models {input.models} --ablations {input.ablations}"
        " --paretos {input.paretos} --figures {input.figures} --captions {params.captions:q} --gates {input.gates}"
        " --tokenizer {input.tokenizer} --reconstructions {input.reconstructions}"
        " --noise-floor {input.noise_floor} --thresholds {input.thresholds}"
        " --histories {input.histories} --output {output}" + LOGGED
