"""The VQ autoencoder: trained here, or imported."""

if EXPERIMENT.tokenizer.weights is None:

    rule train_tokenizer:
        """Train the VQ tokenizer."""
        input:
            train="<results>/index/train.json",
            val="<results>/index/val.json",
        output:
            folder("tokenizer"),
        log:
            "<results>/logs/train_tokenizer.log",
        priority: FIRST + 2
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
            folder=in_results("tokenizer"),
            state=in_results("state/tokenizer"),
        shell:
            training(
                "train_tokenizer",
                "--train-index {input.train}"
                " --val-index {input.val} --state {params.state} --restart --output {params.folder}",
            )

else:

    rule import_tokenizer:
        """Import LlamaGen's VQ tokenizer from its official file."""
        output:
            folder("tokenizer"),
        log:
            "<results>/logs/import_tokenizer.log",
        priority: FIRST + 2
        conda:
            "../../envs/dpar.yaml"
        params:
            recipe=recipe("import_tokenizer", without(EXPERIMENT.tokenizer, "weights_sha256")),
            folder=in_results("tokenizer"),
        shell:
            stage("import_tokenizer", "--output {params.folder}")


rule evaluate_tokenizer:
    """Measure reconstructions of held-out images and show some."""
    input:
        tokenizer=folder("tokenizer"),
        index="<results>/index/val.json",
        extractor=EXTRACTOR_FILES,
    output:
        report="<results>/tokenizer/report.json",
        picture=report(
            "<results>/tokenizer/reconstructions.png",
            caption="../report/reconstructions.rst",
            category="Tokenizer",
        ),
    log:
        "<results>/logs/evaluate_tokenizer.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe(
            "evaluate_tokenizer",
            EXPERIMENT.evaluation.extractor,
            EXPERIMENT.evaluation.inception_weights,
            *dimensions(),
        ),
        folder=in_results("tokenizer"),
        extractor=lambda wildcards: user_path(EXTRACTOR),
    shell:
        stage(
            "evaluate_tokenizer",
            "--tokenizer {params.folder} --index {input.index} --extractor {params.extractor:q}"
            " --report {output.report} --picture {output.picture}",
        )
