"""The entropy model, its scores, thresholds and patches (Section 3.2.1)."""


rule train_entropy_model:
    """Train the autoregressive model whose next-token entropy places the boundaries, or a gate that replaces it."""
    input:
        train=codes_to_learn("train"),
        val=codes_to_learn("val"),
    output:
        folder("{network}"),
    log:
        "<results>/logs/train_entropy_model/{network}.log",
    wildcard_constraints:
        network=networks_with("training"),
    priority: network_priority
    conda:
        "../../envs/dpar.yaml"
    threads: 2
    resources:
        gpu=0,
        nodes=1,
        cpus_per_task=1,
    params:
        recipe=lambda wildcards: recipe(
            "train_entropy_model",
            EXPERIMENT.seed,
            without(boundary_network(wildcards), "training", "weights_sha256", "precision"),
            without(boundary_network(wildcards).training, *(TRAINING_PACE - {"steps", "epochs"})),
            architecture="llamagen",
        ),
        folder=in_results("{network}"),
        state=in_results("state/{network}"),
    shell:
        training(
            "train_entropy_model",
            "--network {wildcards.network} --train {input.train} --val {input.val} --state {params.state} --restart"
            " --output {params.folder}",
        )


rule import_entropy_model:
    """Import a class-conditional LlamaGen, to be read through its null class, from its official file."""
    output:
        folder("{network}"),
    log:
        "<results>/logs/import_entropy_model/{network}.log",
    wildcard_constraints:
        network=networks_with("weights"),
    priority: network_priority
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe(
            "import_entropy_model",
            without(boundary_network(wildcards), "weights_sha256", "precision"),
            EXPERIMENT.tokenizer.vocab_size,
            EXPERIMENT.grid,
            architecture="llamagen",
        ),
        folder=in_results("{network}"),
    shell:
        stage("import_entropy_model", "--network {wildcards.network} --output {params.folder}")


rule score_entropies:
    """Add each token's entropy to one shard of codes."""
    input:
        shard=rules.encode_images.output,
        entropy_model=folder("entropy_model"),
    output:
        f"<results>/scored/{{split}}/{{shard}}.{SHARD_SUFFIX}",
    log:
        "<results>/logs/score_entropies/{split}-{shard}.log",
    priority: FIRST + 2
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe("score_entropies", EXPERIMENT.entropy_model.kind, *precision_of(EXPERIMENT.entropy_model)),
        entropy_model=in_results("entropy_model"),
    shell:
        stage("score_entropies", "--shard {input.shard} --entropy-model {params.entropy_model} --output {output}")


rule calibrate_threshold:
    """Find the threshold in nats that gives a wanted mean patch length."""
    input:
        manifest="<results>/scored/train/manifest.json",
    output:
        "<results>/thresholds/pavg{p_avg}.json",
    log:
        "<results>/logs/calibrate_threshold/pavg{p_avg}.log",
    priority: FIRST + 2
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("calibrate_threshold", EXPERIMENT.patchify.max_length, EXPERIMENT.patchify.row_boundary),
    shell:
        stage("calibrate_threshold", "--p-avg {wildcards.p_avg} --manifest {input.manifest} --output {output}")


rule calibrate_gate:
    """Find the threshold in nats at which a gate's patches are as long as the entropy model's."""
    input:
        gate=lambda wildcards: folder(gate_folder(wildcards.gate)),
        manifest="<results>/scored/train/manifest.json",
        thresholds=thresholds_of_gated_cells(),
    output:
        "<results>/gates/{gate}.thresholds.json",
    log:
        "<results>/logs/calibrate_gate/{gate}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=lambda wildcards: recipe(
            "calibrate_gate",
            EXPERIMENT.seed,
            *(cell.patchify for cell in gated_cells(EXPERIMENT)),
            *precision_of(EXPERIMENT.gates.get(wildcards.gate)),
        ),
        folder=in_results("gates/{gate}"),
    shell:
        stage(
            "calibrate_gate",
            "--gate {wildcards.gate} --gate-folder {params.folder}"
            " --manifest {input.manifest} --thresholds {input.thresholds} --output {output}",
        )


rule compare_gates:
    """Compare gates with the entropy model: boundaries, likelihood and cost on held-out images."""
    input:
        manifest="<results>/scored/val/manifest.json",
        entropy_model=folder("entropy_model"),
        gates=[path for gate in EXPERIMENT.gates for path in gate_files(gate)],
        models=[path for state in compared_states() for path in folder(state)],
        thresholds=thresholds_of_gated_cells(),
    output:
        json="<results>/gates/comparison.json",
        markdown="<results>/gates/comparison.md",
    log:
        "<results>/logs/compare_gates.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe(
            "compare_gates",
            *(
                [
                    cell.patchify,
                    cell.sampling.cfg_scale in (0, 1) and cell.sampling.cfg_scale,  # all else computes both branches
                    cell.sampling.cfg_interval,
                ]
                for cell in gated_cells(EXPERIMENT)
            ),
        ),
        entropy_model=in_results("entropy_model"),
        gates=[f"{RESULTS}/{gate_folder(gate)}" for gate in EXPERIMENT.gates],
        models=[f"{RESULTS}/{state}" for state in compared_states()],
    shell:
        stage(
            "compare_gates",
            "--manifest {input.manifest} --entropy-model {params.entropy_model} --gates {params.gates}"
            " --models {params.models} --thresholds {input.thresholds}"
            " --output {output.json} --markdown {output.markdown}",
        )


rule count_patches:
    """Count the patches that each cell of each table gives the training images."""
    input:
        manifest="<results>/scored/train/manifest.json",
        thresholds=[threshold_file(p_avg) for p_avg in p_avg_targets(EXPERIMENT)],
    output:
        "<results>/patch_counts.json",
    log:
        "<results>/logs/count_patches.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe(
            "count_patches",
            {slug: [cell.patchify.model_dump(), cell.transformer.model_dump()] for slug, cell in MODELS.items()},
            EXPERIMENT.entropy_model.model,
            EXPERIMENT.sampling.cfg_scale,
            EXPERIMENT.sampling.cfg_interval,
        ),
    shell:
        stage("count_patches", "--manifest {input.manifest} --thresholds {input.thresholds} --output {output}")
