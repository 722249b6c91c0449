"""Images drawn from the models (Algorithm 2)."""


def sampled_transformer(wildcards):
    return MODELS[SAMPLES[wildcards.cell].model].transformer


def sampled_model(wildcards):
    cell = SAMPLES[wildcards.cell]
    return folder(f"models/{cell.model}/{cell.milestone}")


def sampling_recipe(wildcards):
    """Batches matter where there are several shards, which are made of whole ones."""
    cell = SAMPLES[wildcards.cell]
    return recipe(
        "sample_images",
        cell.patchify if sampled_transformer(wildcards).is_dpar else None,
        without(cell.sampling, "seeds", "compile", *(["batch_size"] if cell.sampling.shards == 1 else [])),
        EXPERIMENT.evaluation.resolution,
    )


def completed_cell():
    """Whose completions are shown: the first DPAR of the samples with the patches of its training, or what there is."""

    def last_choice(cell):
        model = MODELS[cell.model]
        return not model.transformer.is_dpar, cell.patchify != model.patchify

    return min(SAMPLES.values(), key=last_choice)


COMPLETED = completed_cell()


def thresholds_to_sample(wildcards):
    """The entropy model's threshold, where it is calibrated; a gate has its own."""
    cell = SAMPLES[wildcards.cell]
    return [] if cell.gate else threshold_of_cell(cell.model, cell.patchify)


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
    output:
        images=RESULTS + "/samples/{cell}/seed{seed}/{shard}.npz",
        picture=RESULTS + "/samples/{cell}/seed{seed}/{shard}.png",
    log:
        RESULTS + "/logs/sample_images/{cell}-seed{seed}-{shard}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=sampling_recipe,
        model=lambda wildcards: f"{RESULTS}/models/{SAMPLES[wildcards.cell].model}/{SAMPLES[wildcards.cell].milestone}",
        results=RESULTS,
    shell:
        STAGE + " --cell {wildcards.cell} --seed {wildcards.seed}"
        " --shard {wildcards.shard} --model-folder {params.model} --entropy-model {params.results}/entropy_model"
        " --gates {params.results}/gates"
        " --tokenizer {params.results}/tokenizer --thresholds {input.thresholds} --output {output.images}"
        " --picture {output.picture}" + LOGGED


rule complete_images:
    """Continue the upper halves of held-out images, for their own class and for others."""
    input:
        index=RESULTS + "/index/val.json",
        model=folder(f"models/{COMPLETED.model}/{COMPLETED.milestone}"),
        entropy_model=(
            folder("entropy_model")
            if is_gated(MODELS[COMPLETED.model].patchify, MODELS[COMPLETED.model].transformer)
            else []
        ),
        tokenizer=folder("tokenizer"),
    output:
        report(
            RESULTS + "/figures/completions.png",
            caption="../report/completions.rst",
            category="Figures",
        ),
    log:
        RESULTS + "/logs/complete_images.log",
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
        model=f"{RESULTS}/models/{COMPLETED.model}/{COMPLETED.milestone}",
        results=RESULTS,
    shell:
        STAGE + " --cell {params.cell} --index {input.index} --model-folder {params.model}"
        " --entropy-model {params.results}/entropy_model --tokenizer {params.results}/tokenizer"
        " --output {output}" + LOGGED
