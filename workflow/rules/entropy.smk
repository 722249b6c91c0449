"""Where the image is predictable: the entropy model, its scores, thresholds and patches (Section 3.2.1)."""

if EXPERIMENT.entropy_model.weights is None:

    rule train_entropy_model:
        """Train the autoregressive model whose next-token entropy places the boundaries."""
        input:
            train=RESULTS + "/codes/train/manifest.json",
            val=RESULTS + "/codes/val/manifest.json",
        output:
            folder("entropy_model"),
        log:
            RESULTS + "/logs/train_entropy_model.log",
        priority: 2  # every DPAR waits for it
        conda:
            "../../envs/dpar.yaml"
        threads: 2
        resources:
            gpu=0,
            nodes=1,
            cpus_per_task=1,
        params:
            recipe=recipe(
                "train_entropy_model",
                EXPERIMENT.seed,
                without(EXPERIMENT.entropy_model, "training", "weights_sha256"),
                without(EXPERIMENT.entropy_model.training, *(TRAINING_PACE - {"steps", "epochs"})),
            ),
            folder=RESULTS + "/entropy_model",
            state=RESULTS + "/state/entropy_model",
        shell:
            TRAINING + " --train {input.train} --val {input.val} --state {params.state} --restart"
            " --output {params.folder}" + LOGGED

else:

    rule import_entropy_model:
        """Import a class-conditional LlamaGen, to be read through its null class, from its official file."""
        output:
            folder("entropy_model"),
        log:
            RESULTS + "/logs/import_entropy_model.log",
        conda:
            "../../envs/dpar.yaml"
        params:
            recipe=recipe(
                "import_entropy_model",
                without(EXPERIMENT.entropy_model, "weights_sha256"),
                EXPERIMENT.tokenizer.vocab_size,
                EXPERIMENT.grid,
            ),
            folder=RESULTS + "/entropy_model",
        shell:
            STAGE + " --output {params.folder}" + LOGGED


rule score_entropies:
    """Add each token's entropy to one shard of codes."""
    input:
        shard=rules.encode_images.output,
        entropy_model=folder("entropy_model"),
    output:
        f"{RESULTS}/scored/{{split}}/{{shard}}.{SHARD_SUFFIX}",
    log:
        RESULTS + "/logs/score_entropies/{split}-{shard}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe("score_entropies", EXPERIMENT.entropy_model.kind),
        entropy_model=RESULTS + "/entropy_model",
    shell:
        STAGE + " --shard {input.shard}" " --entropy-model {params.entropy_model} --output {output}" + LOGGED


rule calibrate_threshold:
    """Find the threshold in nats that gives a wanted mean patch length."""
    input:
        manifest=RESULTS + "/scored/train/manifest.json",
    output:
        RESULTS + "/thresholds/pavg{p_avg}.json",
    log:
        RESULTS + "/logs/calibrate_threshold/pavg{p_avg}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("calibrate_threshold", EXPERIMENT.patchify.max_length, EXPERIMENT.patchify.row_boundary),
    shell:
        STAGE + " --p-avg {wildcards.p_avg} --manifest {input.manifest} --output {output}" + LOGGED


rule count_patches:
    """Count the patches that each cell of each table gives the training images."""
    input:
        manifest=RESULTS + "/scored/train/manifest.json",
        thresholds=[threshold_file(p_avg) for p_avg in p_avg_targets(EXPERIMENT)],
    output:
        RESULTS + "/patch_counts.json",
    log:
        RESULTS + "/logs/count_patches.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe(
            "count_patches",
            {slug: [cell.patchify.model_dump(), cell.transformer.model_dump()] for slug, cell in MODELS.items()},
            EXPERIMENT.entropy_model.model,
            EXPERIMENT.sampling.cfg_scale,
        ),
    shell:
        STAGE + " --manifest {input.manifest}" " --thresholds {input.thresholds} --output {output}" + LOGGED
