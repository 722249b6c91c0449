"""Where the image is predictable: the entropy model, its scores, thresholds and patches (Section 3.2.1)."""


def placing(wildcards):
    """The settings of the entropy model or gate whose folder a rule makes."""
    return EXPERIMENT.network(wildcards.network)


def networks_with(field):
    """Matches the folders of the networks that have `weights`, or `training`."""
    folders = [folder for folder, network in EXPERIMENT.networks.items() if getattr(network, field) is not None]
    return "|".join(map(re.escape, folders)) or "none"


def codes_to_learn(split):
    """The codes of a split, with the entropies where they are what is learned."""
    return lambda wildcards: (
        f"{RESULTS}/{'scored' if placing(wildcards).kind == 'distilled' else 'codes'}/{split}/manifest.json"
    )


rule train_entropy_model:
    """Train the autoregressive model whose next-token entropy places the boundaries, or a gate in its stead."""
    input:
        train=codes_to_learn("train"),
        val=codes_to_learn("val"),
    output:
        folder("{network}"),
    log:
        RESULTS + "/logs/train_entropy_model/{network}.log",
    wildcard_constraints:
        network=networks_with("training"),
    priority: 2  # every DPAR waits for it
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
            without(placing(wildcards), "training", "weights_sha256"),
            without(placing(wildcards).training, *(TRAINING_PACE - {"steps", "epochs"})),
            architecture="llamagen",
        ),
        folder=RESULTS + "/{network}",
        state=RESULTS + "/state/{network}",
    shell:
        TRAINING
        + " --network {wildcards.network} --train {input.train} --val {input.val} --state {params.state} --restart"
        " --output {params.folder}" + LOGGED


rule import_entropy_model:
    """Import a class-conditional LlamaGen, to be read through its null class, from its official file."""
    output:
        folder("{network}"),
    log:
        RESULTS + "/logs/import_entropy_model/{network}.log",
    wildcard_constraints:
        network=networks_with("weights"),
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=lambda wildcards: recipe(
            "import_entropy_model",
            without(placing(wildcards), "weights_sha256"),
            EXPERIMENT.tokenizer.vocab_size,
            EXPERIMENT.grid,
            architecture="llamagen",
        ),
        folder=RESULTS + "/{network}",
    shell:
        STAGE + " --network {wildcards.network} --output {params.folder}" + LOGGED


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
        STAGE + " --shard {input.shard} --entropy-model {params.entropy_model} --output {output}" + LOGGED


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


def compared_states():
    """Folders of the models that are sampled through gates."""
    return list(dict.fromkeys(f"models/{cell.model}/{cell.milestone}" for cell in gated_cells(EXPERIMENT)))


def thresholds_of_gated_cells():
    """Those that a gate's threshold stands for, where they are calibrated."""
    return sorted({path for cell in gated_cells(EXPERIMENT) for path in threshold_of_cell(cell.model, cell.patchify)})


rule calibrate_gate:
    """Find the threshold in nats at which a gate's patches are as long as the entropy model's."""
    input:
        gate=lambda wildcards: folder(gate_folder(wildcards.gate)),
        manifest=RESULTS + "/scored/train/manifest.json",
        thresholds=thresholds_of_gated_cells(),
    output:
        RESULTS + "/gates/{gate}.thresholds.json",
    log:
        RESULTS + "/logs/calibrate_gate/{gate}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe("calibrate_gate", EXPERIMENT.seed, *(cell.patchify for cell in gated_cells(EXPERIMENT))),
        folder=RESULTS + "/gates/{gate}",
    shell:
        STAGE + " --gate {wildcards.gate} --gate-folder {params.folder}"
        " --manifest {input.manifest} --thresholds {input.thresholds} --output {output}" + LOGGED


rule compare_gates:
    """Compare gates with the entropy model: boundaries, likelihood and cost on held-out images."""
    input:
        manifest=RESULTS + "/scored/val/manifest.json",
        entropy_model=folder("entropy_model"),
        gates=[path for gate in EXPERIMENT.gates for path in gate_files(gate)],
        models=[path for state in compared_states() for path in folder(state)],
        thresholds=thresholds_of_gated_cells(),
    output:
        json=RESULTS + "/gates/comparison.json",
        markdown=RESULTS + "/gates/comparison.md",
    log:
        RESULTS + "/logs/compare_gates.log",
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
        entropy_model=RESULTS + "/entropy_model",
        gates=[f"{RESULTS}/{gate_folder(gate)}" for gate in EXPERIMENT.gates],
        models=[f"{RESULTS}/{state}" for state in compared_states()],
    shell:
        STAGE + " --manifest {input.manifest} --entropy-model {params.entropy_model} --gates {params.gates}"
        " --models {params.models} --thresholds {input.thresholds}"
        " --output {output.json} --markdown {output.markdown}" + LOGGED


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
            EXPERIMENT.sampling.cfg_interval,
        ),
    shell:
        STAGE + " --manifest {input.manifest} --thresholds {input.thresholds} --output {output}" + LOGGED
