"""What the samples are worth (Section 4.2)."""

if EXPERIMENT.evaluation.extractor == "classifier":
    EXTRACTOR = RESULTS + "/classifier"
    EXTRACTOR_FILES = folder("classifier")
else:
    EXTRACTOR = EXPERIMENT.evaluation.inception_weights or EXPERIMENT.evaluation.extractor
    EXTRACTOR_FILES = []  # the user's file: a path in the experiment, checked by the stage


rule train_classifier:
    """Train the small classifier whose features stand in for Inception's on small images."""
    input:
        train=RESULTS + "/index/train.json",
        val=RESULTS + "/index/val.json",
    output:
        folder("classifier"),
    log:
        RESULTS + "/logs/train_classifier.log",
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
        folder=RESULTS + "/classifier",
    shell:
        STAGE + " --train-index {input.train} --val-index {input.val} --output {params.folder}" + LOGGED


def images_to_describe(wildcards):
    """The real images for `reference`, else the shards of the samples CELL/seedN."""
    if wildcards.features != "reference":
        cell, seed = wildcards.features.rsplit("/seed", 1)
        return [f"{RESULTS}/samples/{cell}/seed{seed}/{i:05d}.npz" for i in range(SAMPLES[cell].sampling.shards)]
    if EXPERIMENT.evaluation.reference in SPLITS:
        return [f"{RESULTS}/index/{EXPERIMENT.evaluation.reference}.json"]
    return []  # the user's npz: a path in the experiment, checked by the stage


def features_recipe(wildcards):
    read = EXPERIMENT.evaluation
    of_reference = (read.reference, read.reference_images) if wildcards.features == "reference" else ()
    return recipe("extract_features", EXPERIMENT.seed, EXTRACTOR, read.resolution, *of_reference)


rule extract_features:
    """Compute the features of the real images, or of one set of samples."""
    input:
        extractor=EXTRACTOR_FILES,
        images=images_to_describe,
    output:
        RESULTS + "/features/{features}.npz",
    log:
        RESULTS + "/logs/extract_features/{features}.log",
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
        TRAINING + " --extractor {params.extractor:q} --images {params.images:q} --output {output}" + LOGGED


rule compute_metrics:
    """Compute the Frechet distance, Inception Score, precision and recall of one set of samples."""
    input:
        samples=RESULTS + "/features/{cell}/seed{seed}.npz",
        reference=RESULTS + "/features/reference.npz",
    output:
        RESULTS + "/metrics/{cell}/seed{seed}.json",
    log:
        RESULTS + "/logs/compute_metrics/{cell}-seed{seed}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("compute_metrics", EXPERIMENT.seed, EXPERIMENT.evaluation.splits, EXPERIMENT.evaluation.k),
    shell:
        STAGE + " --samples {input.samples} --reference {input.reference} --output {output}" + LOGGED


rule linear_probe:
    """Measure how well a linear classifier tells classes from a model's states (Table 7)."""
    input:
        model=folder("models/{model}/{milestone}"),
        train=codes_for("train"),
        val=codes_for("val"),
    output:
        RESULTS + "/linear_probe/{model}/{milestone}.json",
    log:
        RESULTS + "/logs/linear_probe/{model}-{milestone}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe("linear_probe", EXPERIMENT.seed, EXPERIMENT.evaluation.linear_probe),
        folder=RESULTS + "/models/{model}/{milestone}",
    shell:
        STAGE + " --model-folder {params.folder} --train {input.train} --val {input.val} --output {output}" + LOGGED


rule measure_noise_floor:
    """Measure the metrics of real images against other real images, at the samples' number."""
    input:
        reference=RESULTS + "/features/reference.npz",
    output:
        RESULTS + "/metrics/noise_floor.json",
    log:
        RESULTS + "/logs/measure_noise_floor.log",
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
        STAGE + " --reference {input.reference} --output {output}" + LOGGED
