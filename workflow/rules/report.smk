"""Tables and figures, ours next to the paper's, and one page that holds them all."""

from dpar.report.targets import likelihood_files, probe_files

CAPTIONS = Path(workflow.basedir) / "workflow" / "report"


rule make_table:
    """Print one table: ours, the paper's where it has one, and their conditions."""
    input:
        metrics=lambda wildcards: [f"<results>/{path}" for path in metric_files(table_cells(wildcards.table))],
        likelihoods=lambda wildcards: [f"<results>/{path}" for path in likelihood_files(table_cells(wildcards.table))],
        linear_probes=lambda wildcards: [
            f"<results>/{path}"
            for path in probe_files(EXPERIMENT.tables[wildcards.table], table_cells(wildcards.table))
        ],
        noise_floor="<results>/metrics/noise_floor.json",
        patch_counts="<results>/patch_counts.json",
        thresholds=lambda wildcards: sorted(
            {path for cell in table_cells(wildcards.table) for path in threshold_of_cell(cell.model, cell.patchify)}
        ),
        pictures=lambda wildcards: first_shards(table_cells(wildcards.table), "png"),
    output:
        csv="<results>/tables/{table}.csv",
        markdown="<results>/tables/{table}.md",
        latex="<results>/tables/{table}.tex",
    log:
        "<results>/logs/make_table/{table}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe(
            "make_table",
            EXPERIMENT.tables[wildcards.table],
            paper.of_table(EXPERIMENT.tables[wildcards.table].paper),
        ),
    shell:
        stage(
            "make_table",
            "--table {wildcards.table} --metrics {input.metrics}"
            " --likelihoods {input.likelihoods} --noise-floor {input.noise_floor} --patch-counts {input.patch_counts}"
            " --thresholds {input.thresholds} --linear-probes {input.linear_probes} --pictures {input.pictures}"
            " --csv {output.csv} --markdown {output.markdown} --latex {output.latex}",
        )


rule describe_models:
    """Print the parameters and the cost of the models (Tables 1 and 8); nothing has to be trained."""
    output:
        [f"<results>/{path}" for name in COMPUTED for path in table_files(name)],
    log:
        "<results>/logs/describe_models.log",
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
        folder=in_results("tables"),
    shell:
        stage("describe_models", "--output {params.folder}")


rule plot_entropy_maps:
    """Figure 2: entropy maps of held-out images with the outlines of their patches."""
    input:
        index="<results>/index/val.json",
        manifest="<results>/scored/val/manifest.json",
        thresholds=(
            [threshold_file(EXPERIMENT.patchify.p_avg)]
            if EXPERIMENT.patchify.p_avg in p_avg_targets(EXPERIMENT)
            else []
        ),
    output:
        report(
            "<results>/figures/entropy_maps.png",
            caption="../report/entropy_maps.rst",
            category="Figures",
        ),
    log:
        "<results>/logs/plot_entropy_maps.log",
    priority: FIRST
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("plot_entropy_maps", EXPERIMENT.patchify),
    shell:
        stage(
            "plot_entropy_maps",
            "--index {input.index} --manifest {input.manifest}" " --thresholds {input.thresholds} --output {output}",
        )


rule plot_samples:
    """Show samples, one row per class: of every model next to real images, or of a figure's cells and classes."""
    input:
        index=lambda wildcards: [] if wildcards.figure in EXPERIMENT.figures else ["<results>/index/val.json"],
        samples=lambda wildcards: first_shards(pictured_cells(wildcards.figure), "npz"),
    output:
        report(
            "<results>/figures/{figure}.png",
            caption="../report/samples.rst",
            category="Figures",
        ),
    log:
        "<results>/logs/plot_samples/{figure}.log",
    priority: FIRST
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe(
            "plot_samples",
            EXPERIMENT.figures.get(wildcards.figure),
            *([EXPERIMENT.images.classes] if EXPERIMENT.images.classes else []),
        ),
        index=lambda wildcards, input: f"--index {input.index}" if input.index else "",
    shell:
        stage(
            "plot_samples",
            f"--classes {RESULTS}/index/train.json"
            " --figure {wildcards.figure} {params.index} --samples {input.samples} --output {output}",
        )


rule plot_ablation:
    """One table as curves: the metrics against what the table varies."""
    input:
        table=rules.make_table.output.csv,
        noise_floor="<results>/metrics/noise_floor.json",
    output:
        report(
            "<results>/figures/{table}.png",
            caption="../report/ablation.rst",
            category="Figures",
        ),
    log:
        "<results>/logs/plot_ablation/{table}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe("plot_ablation", EXPERIMENT.tables[wildcards.table]),
    shell:
        stage(
            "plot_ablation",
            "--table {wildcards.table} --csv {input.table}" " --noise-floor {input.noise_floor} --output {output}",
        )


rule plot_pareto:
    """A table's cells by metric and cost, of training and of sampling, and which of them no other beats."""
    input:
        table=rules.make_table.output.csv,
        noise_floor="<results>/metrics/noise_floor.json",
    output:
        report(
            "<results>/figures/pareto/{table}.png",
            caption="../report/pareto.rst",
            category="Figures",
        ),
    log:
        "<results>/logs/plot_pareto/{table}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe("plot_pareto", EXPERIMENT.tables[wildcards.table]),
    shell:
        stage(
            "plot_pareto",
            "--table {wildcards.table} --csv {input.table}" " --noise-floor {input.noise_floor} --output {output}",
        )


rule plot_compute:
    """Figure 1b: the metric against the cost of training, DPAR and LlamaGen."""
    input:
        tables=expand("<results>/tables/{table}.csv", table=sized_tables(EXPERIMENT)),
        noise_floor="<results>/metrics/noise_floor.json",
    output:
        report(
            "<results>/figures/compute.png",
            caption="../report/compute.rst",
            category="Figures",
        ),
    log:
        "<results>/logs/plot_compute.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("plot_compute"),
    shell:
        stage("plot_compute", "--tables {input.tables} --noise-floor {input.noise_floor} --output {output}")


rule write_first_report:
    """The first pictures, before anything is measured: one page that needs no other file."""
    input:
        figures=["<results>/figures/samples.png", "<results>/figures/entropy_maps.png"],
    output:
        "<results>/first_report.html",
    log:
        "<results>/logs/write_first_report.log",
    priority: FIRST
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe(
            "write_first_report",
            EXPERIMENT.name,
            EXPERIMENT.grid,
            [EXPERIMENT.images.num_classes, EXPERIMENT.images.resolution, EXPERIMENT.tokenizer.vocab_size],
            [(CAPTIONS / f"{name}.rst").read_text("utf-8") for name in ("samples", "entropy_maps")],
        ),
        captions=CAPTIONS,
    shell:
        stage("write_first_report", "--figures {input.figures} --captions {params.captions:q} --output {output}")


rule write_report:
    """The report: one page that needs no other file."""
    input:
        tables=expand("<results>/tables/{table}.csv", table=EXPERIMENT.shown_tables),
        notes=expand("<results>/tables/{table}.md", table=EXPERIMENT.shown_tables),
        models=expand("<results>/tables/{table}.csv", table=COMPUTED),
        ablations=expand("<results>/figures/{table}.png", table=EXPERIMENT.shown_tables),
        paretos=[
            f"<results>/{pareto_file(name)}" for name in EXPERIMENT.shown_tables if EXPERIMENT.tables[name].is_grid
        ],
        figures=expand("<results>/figures/{figure}.png", figure=[*FIGURES, *EXPERIMENT.figures]),
        gates=["<results>/gates/comparison.json"] if EXPERIMENT.gates else [],
        tokenizer="<results>/tokenizer/report.json",
        reconstructions="<results>/tokenizer/reconstructions.png",
        noise_floor="<results>/metrics/noise_floor.json",
        thresholds=[threshold_file(p_avg) for p_avg in p_avg_targets(EXPERIMENT)],
        histories=[
            f"<results>/models/{cell.model}/{cell.milestone}/history.jsonl"
            for cell in {(c.model, c.milestone): c for c in shown_cells()}.values()
        ],
    output:
        "<results>/report.html",
    log:
        "<results>/logs/write_report.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("write_report", EXPERIMENT, [path.read_text("utf-8") for path in sorted(CAPTIONS.glob("*.rst"))]),
        captions=CAPTIONS,
    shell:
        stage(
            "write_report",
            "--tables {input.tables} --models {input.models} --ablations {input.ablations}"
            " --paretos {input.paretos} --figures {input.figures} --captions {params.captions:q} --gates {input.gates}"
            " --tokenizer {input.tokenizer} --reconstructions {input.reconstructions}"
            " --noise-floor {input.noise_floor} --thresholds {input.thresholds}"
            " --histories {input.histories} --output {output}",
        )
