"""Images drawn from the models (Algorithm 2)."""

COMPLETED = completed_cell()


rule sample_images:
    """Draw one shard of images with classifier-free guidance."""
    input:
        model=sampled_model,
        entropy_model=lambda wildcards: (
            gate_files(SAMPLES[wildcards.cell].gate)
            if is_gated(SAMPLES[wildcards.cell].patchify, sampled_transformer(wildcards))
            else []
        ),
        tokenizer=folder("tokenizer"),
        thresholds=thresholds_to_sample,
        index=classes_to_sample,
    output:
        images="<results>/samples/{cell}/seed{seed}/{shard}.npz",
        picture="<results>/samples/{cell}/seed{seed}/{shard}.png",
    log:
        "<results>/logs/sample_images/{cell}-seed{seed}-{shard}.log",
    priority: sampling_priority
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=sampling_recipe,
        model=lambda wildcards: f"{RESULTS}/models/{SAMPLES[wildcards.cell].model}/{SAMPLES[wildcards.cell].milestone}",
        results=lambda wildcards: RESULTS,
        index=lambda wildcards, input: f"--index {input.index}" if input.index else "",
    shell:
        stage(
            "sample_images",
            "--cell {wildcards.cell} --seed {wildcards.seed}"
            " --shard {wildcards.shard} --model-folder {params.model} --entropy-model {params.results}/entropy_model"
            " --gates {params.results}/gates"
            " --tokenizer {params.results}/tokenizer --thresholds {input.thresholds} {params.index}"
            " --output {output.images} --picture {output.picture}",
        )


rule complete_images:
    """Continue the upper halves of held-out images, for their own class and for others."""
    input:
        index="<results>/index/val.json",
        model=folder(f"models/{COMPLETED.model}/{COMPLETED.milestone}"),
        entropy_model=(
            folder("entropy_model")
            if is_gated(MODELS[COMPLETED.model].patchify, MODELS[COMPLETED.model].transformer)
            else []
        ),
        tokenizer=folder("tokenizer"),
    output:
        report(
            "<results>/figures/completions.png",
            caption="../report/completions.rst",
            category="Figures",
        ),
    log:
        "<results>/logs/complete_images.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=recipe(
            "complete_images",
            EXPERIMENT.seed,
            COMPLETED.slug,
            COMPLETED.sampling.draw,
            COMPLETED.sampling.precision,
        ),
        cell=COMPLETED.slug,
        model=in_results(f"models/{COMPLETED.model}/{COMPLETED.milestone}"),
        results=lambda wildcards: RESULTS,
    shell:
        stage(
            "complete_images",
            "--cell {params.cell} --index {input.index} --model-folder {params.model}"
            " --entropy-model {params.results}/entropy_model --tokenizer {params.results}/tokenizer"
            " --output {output}",
        )
