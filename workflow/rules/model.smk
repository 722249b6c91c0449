"""DPAR and the LlamaGen baseline: training and likelihood (Algorithm 1, Section 4.1)."""


rule train_model:
    """Train DPAR or the LlamaGen baseline up to a milestone."""
    input:
        train=codes_for("train"),
        val=codes_for("val"),
        thresholds=lambda wildcards: threshold_of_cell(wildcards.model, MODELS[wildcards.model].patchify),
        previous=previous_milestone,
    output:
        folder("models/{model}/{milestone}"),
        history="<results>/models/{model}/{milestone}/history.jsonl",
    log:
        "<results>/logs/train_model/{model}-{milestone}.log",
    priority: training_priority
    conda:
        "../../envs/dpar.yaml"
    threads: TRAINING_THREADS
    resources:
        gpu=0,
        nodes=1,
        cpus_per_task=1,
    params:
        recipe=training_recipe,
        folder=in_results("models/{model}/{milestone}"),
        state=in_results("state/models/{model}"),
        results=lambda wildcards: RESULTS,  # where the makers of the codes and entropies are, for a look at each checkpoint's samples
    shell:
        training(
            "train_model",
            "--model {wildcards.model} --milestone {wildcards.milestone}"
            " --train {input.train} --val {input.val} --classes {params.results}/index/train.json"
            " --thresholds {input.thresholds}"
            " --tokenizer {params.results}/tokenizer --entropy-model {params.results}/entropy_model"
            " --previous {input.previous}"
            " --state {params.state} --restart --output {params.folder} --history {output.history}",
        )


rule evaluate_likelihood:
    """Measure the negative log-likelihood of held-out codes in nats per token."""
    input:
        model=folder("models/{model}/{milestone}"),
        manifest=codes_for("val"),
    output:
        "<results>/likelihood/{model}/{milestone}.json",
    log:
        "<results>/logs/evaluate_likelihood/{model}-{milestone}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe("evaluate_likelihood"),
        folder=in_results("models/{model}/{milestone}"),
    shell:
        stage("evaluate_likelihood", "--model-folder {params.folder} --manifest {input.manifest} --output {output}")
