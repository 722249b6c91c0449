"""The VQ autoencoder: trained here, or imported."""

if EXPERIMENT.tokenizer.weights is None:

    rule train_tokenizer:
        """Train the VQ tokenizer."""
        input:
            train=RESULTS + "/index/train.json",
            val=RESULTS + "/index/val.json",
        output:
            folder("tokenizer"),
        log:
            RESULTS + "/logs/train_tokenizer.log",
        conda:
            "../../envs/dpar.yaml"
        threads: 2
        resources:
            gpu=0,
            nodes=1,
            cpus_per_task=1,
        params:
            recipe=recipe(
                "train_tokenizer",
                EXPERIMENT.seed,
                EXPERIMENT.tokenizer.autoencoder,
                without(EXPERIMENT.tokenizer.training, "checkpoint_every"),
                EXPERIMENT.images.resolution,
            ),
            folder=RESULTS + "/tokenizer",
            state=RESULTS + "/state/tokenizer",
        shell:
            TRAINING + " --train-index {input.train}"
            " --val-index {input.val} --state {params.state} --restart --output {params.folder}" + LOGGED

else:

    rule import_tokenizer:
        """Import LlamaGen's VQ tokenizer from its official file."""
        output:
            folder("tokenizer"),
        log:
            RESULTS + "/logs/import_tokenizer.log",
        conda:
            "../../envs/dpar.yaml"
        params:
            recipe=recipe("import_tokenizer", without(EXPERIMENT.tokenizer, "weights_sha256")),
            folder=RESULTS + "/tokenizer",
        shell:
            STAGE + " --output {params.folder}" + LOGGED


rule evaluate_tokenizer:
    """Measure reconstructions of held-out images and show some."""
    input:
        tokenizer=folder("tokenizer"),
        index=RESULTS + "/index/val.json",
        extractor=lambda wildcards: EXTRACTOR_FILES,
    output:
        report=RESULTS + "/tokenizer/report.json",
        picture=report(
            RESULTS + "/tokenizer/reconstructions.png",
            caption="../report/reconstructions.rst",
            category="Tokenizer",
        ),
    log:
        RESULTS + "/logs/evaluate_tokenizer.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe("evaluate_tokenizer", EXPERIMENT.evaluation.extractor, EXPERIMENT.evaluation.inception_weights),
        folder=RESULTS + "/tokenizer",
        extractor=lambda wildcards: user_path(EXTRACTOR),
    shell:
        STAGE + " --tokenizer {params.folder} --index {input.index} --extractor {params.extractor:q}"
        " --report {output.report} --picture {output.picture}" + LOGGED
