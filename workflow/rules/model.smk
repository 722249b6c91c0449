"""DPAR and the LlamaGen baseline: training and likelihood (Algorithm 1, Section 4.1)."""


def previous_milestone(wildcards):
    """The state that this one continues: milestones of one training are made one after the other."""
    names = MODELS[wildcards.model].milestones
    before = names[: names.index(wildcards.milestone)] if wildcards.milestone in names else ()
    return folder(f"models/{wildcards.model}/{before[-1]}") if before else []


def training_recipe(wildcards):
    cell = MODELS[wildcards.model]
    patchify = None  # the baseline does not depend on where patches begin
    if cell.transformer.is_dpar:
        gated = is_gated(cell.patchify, cell.transformer)
        patchify = cell.patchify if gated else [cell.patchify.strategy, cell.patchify.p_avg]
    transformer, training = with_any_attention(cell.transformer), without(cell.training, *TRAINING_PACE)
    architecture = cell.transformer.sizes["architecture"]
    return recipe("train_model", cell.seed, transformer, patchify, training, architecture=architecture)


def codes_for(split):
    """The manifest that a model reads: with entropies where they decide about patches, else without."""

    def manifest(wildcards):
        cell = MODELS[wildcards.model]
        store = "scored" if is_gated(cell.patchify, cell.transformer) else "codes"
        return f"{RESULTS}/{store}/{split}/manifest.json"

    return manifest


rule train_model:
    """Train DPAR or the LlamaGen baseline up to a milestone."""
    input:
        train=codes_for("train"),
        val=codes_for("val"),
        thresholds=lambda wildcards: threshold_of_cell(wildcards.model, MODELS[wildcards.model].patchify),
        previous=previous_milestone,
    output:
        folder("models/{model}/{milestone}"),
        history=RESULTS + "/models/{model}/{milestone}/history.jsonl",
    log:
        RESULTS + "/logs/train_model/{model}-{milestone}.log",
    priority: 1  # samples of one model can wait for the training of another
    conda:
        "../../envs/dpar.yaml"
    threads: TRAINING_THREADS
    resources:
        gpu=0,
        nodes=1,
        cpus_per_task=1,
    params:
        recipe=training_recipe,
        folder=RESULTS + "/models/{model}/{milestone}",
        state=RESULTS + "/state/models/{model}",
        results=RESULTS,  # where the makers of the codes and entropies are, for a look at each checkpoint's samples
    shell:
        TRAINING + " --model {wildcards.model} --milestone {wildcards.milestone}"
        " --train {input.train} --val {input.val} --thresholds {input.thresholds}"
        " --tokenizer {params.results}/tokenizer --entropy-model {params.results}/entropy_model"
        " --previous {input.previous}"
        " --state {params.state} --restart --output {params.folder} --history {output.history}" + LOGGED


rule evaluate_likelihood:
    """Measure the negative log-likelihood of held-out codes in nats a token."""
    input:
        model=folder("models/{model}/{milestone}"),
        manifest=codes_for("val"),
    output:
        RESULTS + "/likelihood/{model}/{milestone}.json",
    log:
        RESULTS + "/logs/evaluate_likelihood/{model}-{milestone}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe("evaluate_likelihood"),
        folder=RESULTS + "/models/{model}/{milestone}",
    shell:
        STAGE + " --model-folder {params.folder} --manifest {input.manifest} --output {output}" + LOGGED
