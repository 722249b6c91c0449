"""Quality of the samples (Section 4.2)."""


rule train_classifier:
    """Train the small classifier whose features stand in for Inception's on small images."""
    input:
        train="<results>/index/train.json",
        val="<results>/index/val.json",
    output:
        folder("classifier"),
    log:
        "<results>/logs/train_classifier.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe(
            "train_classifier",
            EXPERIMENT.seed,
            EXPERIMENT.evaluation.classifier,
            EXPERIMENT.images.resolution,
            EXPERIMENT.evaluation.resolution,
        ),
        folder=in_results("classifier"),
    shell:
        stage("train_classifier", "--train-index {input.train} --val-index {input.val} --output {params.folder}")


rule extract_features:
    """Compute the features of the real images, or of one set of samples."""
    input:
        extractor=EXTRACTOR_FILES,
        images=images_to_describe,
    output:
        "<results>/features/{features}.npz",
    log:
        "<results>/logs/extract_features/{features}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
        nodes=1,
        cpus_per_task=1,
    params:
        recipe=features_recipe,
        extractor=lambda wildcards: user_path(EXTRACTOR),  # a function's value is taken as it is, braces and all
        images=lambda wildcards, input: input.images or user_path(EXPERIMENT.evaluation.reference),
    shell:
        training("extract_features", "--extractor {params.extractor:q} --images {params.images:q} --output {output}")


rule compute_metrics:
    """Compute the Frechet distance, Inception Score, precision and recall of one set of samples."""
    input:
        samples="<results>/features/{cell}/seed{seed}.npz",
        reference="<results>/features/reference.npz",
    output:
        "<results>/metrics/{cell}/seed{seed}.json",
    log:
        "<results>/logs/compute_metrics/{cell}-seed{seed}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("compute_metrics", EXPERIMENT.seed, EXPERIMENT.evaluation.splits, EXPERIMENT.evaluation.k),
    shell:
        stage("compute_metrics", "--samples {input.samples} --reference {input.reference} --output {output}")


rule linear_probe:
    """Measure how well a linear classifier tells classes from a model's states (Table 7)."""
    input:
        model=folder("models/{model}/{milestone}"),
        train=codes_for("train"),
        val=codes_for("val"),
    output:
        "<results>/linear_probe/{model}/{milestone}.json",
    log:
        "<results>/logs/linear_probe/{model}-{milestone}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe("linear_probe", EXPERIMENT.seed, EXPERIMENT.evaluation.linear_probe),
        folder=in_results("models/{model}/{milestone}"),
    shell:
        stage(
            "linear_probe",
            "--model-folder {params.folder} --train {input.train} --val {input.val} --output {output}",
        )


rule measure_noise_floor:
    """Measure the metrics of real images against other real images, at the samples' number."""
    input:
        reference="<results>/features/reference.npz",
    output:
        "<results>/metrics/noise_floor.json",
    log:
        "<results>/logs/measure_noise_floor.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe(
            "measure_noise_floor",
            EXPERIMENT.seed,
            EXPERIMENT.evaluation.splits,
            EXPERIMENT.evaluation.k,
            EXPERIMENT.sampling.num_images,
        ),
    shell:
        stage("measure_noise_floor", "--reference {input.reference} --output {output}")


rule measure_degradations:
    """Measure how the Frechet distance orders real images that were made worse by known amounts."""
    input:
        index="<results>/index/val.json",
        tokenizer=folder("tokenizer"),
        extractor=EXTRACTOR_FILES,
        reference="<results>/features/reference.npz",
    output:
        json="<results>/metrics/degradations.json",
        markdown="<results>/metrics/degradations.md",
    log:
        "<results>/logs/measure_degradations.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe(
            "measure_degradations",
            EXPERIMENT.seed,
            EXPERIMENT.evaluation.resolution,
            EXPERIMENT.sampling.num_images,
        ),
        folder=in_results("tokenizer"),
        extractor=lambda wildcards: user_path(EXTRACTOR),
    shell:
        stage(
            "measure_degradations",
            "--index {input.index} --tokenizer {params.folder} --extractor {params.extractor:q}"
            " --reference {input.reference} --output {output.json} --markdown {output.markdown}",
        )


rule analyse_patches:
    """Analyse how entropy, patch length and loss per token hang together, and how long drawn patches are."""
    input:
        manifest="<results>/scored/val/manifest.json",
        models=[path for cell in ANALYSED for path in folder(f"models/{cell.model}/{cell.milestone}")],
        samples=[
            f"<results>/samples/{cell.slug}/seed{cell.sampling.seeds[0]}/{i:05d}.npz"
            for cell in ANALYSED[:1]
            for i in range(cell.sampling.shards)
        ],
    output:
        json="<results>/patches/analysis.json",
        markdown="<results>/patches/analysis.md",
        figure=report(
            "<results>/patches/analysis.png",
            caption="../report/patches.rst",
            category="Figures",
        ),
    log:
        "<results>/logs/analyse_patches.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe("analyse_patches"),
        models=[f"{RESULTS}/models/{cell.model}/{cell.milestone}" for cell in ANALYSED],
    shell:
        stage(
            "analyse_patches",
            "--manifest {input.manifest} --models {params.models} --samples {input.samples}"
            " --output {output.json} --markdown {output.markdown} --figure {output.figure}",
        )
