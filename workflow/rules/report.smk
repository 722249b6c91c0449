"""Tables and figures, ours beside the paper's, and one page that holds them all."""


def metric_files(cells):
    return [f"{RESULTS}/metrics/{cell.slug}/seed{seed}.json" for cell in cells for seed in cell.sampling.seeds]


def likelihood_files(cells):
    return sorted({f"{RESULTS}/likelihood/{cell.model}/{cell.milestone}.json" for cell in cells})


def probe_files(name):
    cells = table_cells(name) if EXPERIMENT.tables[name].linear_probe else []
    return sorted({f"{RESULTS}/linear_probe/{cell.model}/{cell.milestone}.json" for cell in cells})


def first_pictures(cells):
    return [f"{RESULTS}/samples/{cell.slug}/seed{cell.sampling.seeds[0]}/00000.png" for cell in cells]


def table_cells(name):
    return list({row.sample.slug: row.sample for row in table_rows(EXPERIMENT, name)}.values())


rule make_table:
    """Print one table: ours, the paper's where it has one, and their conditions."""
    input:
        metrics=lambda wildcards: metric_files(table_cells(wildcards.table)),
        likelihoods=lambda wildcards: likelihood_files(table_cells(wildcards.table)),
        linear_probes=lambda wildcards: probe_files(wildcards.table),
        noise_floor=RESULTS + "/metrics/noise_floor.json",
        patch_counts=RESULTS + "/patch_counts.json",
        thresholds=lambda wildcards: sorted(
            {path for cell in table_cells(wildcards.table) for path in threshold_of_cell(cell.model, cell.patchify)}
        ),
        pictures=lambda wildcards: first_pictures(table_cells(wildcards.table)),
    output:
        csv=RESULTS + "/tables/{table}.csv",
        markdown=RESULTS + "/tables/{table}.md",
        latex=RESULTS + "/tables/{table}.tex",
    log:
        RESULTS + "/logs/make_table/{table}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe("make_table", EXPERIMENT.tables[wildcards.table]),
    shell:
        STAGE + " --table {wildcards.table} --metrics {input.metrics}"
        " --likelihoods {input.likelihoods} --noise-floor {input.noise_floor} --patch-counts {input.patch_counts}"
        " --thresholds {input.thresholds} --linear-probes {input.linear_probes} --pictures {input.pictures}"
        " --csv {output.csv} --markdown {output.markdown} --latex {output.latex}" + LOGGED


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


rule plot_samples:
    """Samples of every model side by side, a row a class."""
    input:
        index=RESULTS + "/index/val.json",
        samples=[f"{RESULTS}/samples/{cell.slug}/seed{cell.sampling.seeds[0]}/00000.npz" for cell in SAMPLES.values()],
    output:
        report(
            RESULTS + "/figures/samples.png",
            caption="../report/samples.rst",
            category="Figures",
        ),
    log:
        RESULTS + "/logs/plot_samples.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("plot_samples"),
    shell:
        STAGE + " --index {input.index} --samples {input.samples}" " --output {output}" + LOGGED


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


rule plot_compute:
    """Figure 1b: the metric against the cost of training, DPAR beside LlamaGen."""
    input:
        tables=expand(RESULTS + "/tables/{table}.csv", table=EXPERIMENT.tables),
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
        STAGE + " --tables {input.tables}" " --noise-floor {input.noise_floor} --output {output}" + LOGGED


rule write_report:
    """The report: one page that needs no other file."""
    input:
        tables=expand(RESULTS + "/tables/{table}.csv", table=EXPERIMENT.tables),
        notes=expand(RESULTS + "/tables/{table}.md", table=EXPERIMENT.tables),
        ablations=expand(RESULTS + "/figures/{table}.png", table=EXPERIMENT.tables),
        figures=[
            RESULTS + "/figures/samples.png",
            RESULTS + "/figures/completions.png",
            RESULTS + "/figures/entropy_maps.png",
            RESULTS + "/figures/compute.png",
        ],
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
        recipe=recipe("write_report", EXPERIMENT),
    shell:
        STAGE + " --tables {input.tables} --ablations {input.ablations}"
        " --figures {input.figures} --gates {input.gates} --tokenizer {input.tokenizer} --reconstructions {input.reconstructions}"
        " --noise-floor {input.noise_floor} --thresholds {input.thresholds}"
        " --histories {input.histories} --output {output}" + LOGGED
