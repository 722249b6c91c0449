"""Images drawn from the models (Algorithm 2)."""


def sampled_model(wildcards):
    cell = SAMPLES[wildcards.cell]
    return folder(f"models/{cell.model}/{cell.milestone}")


rule sample_images:
    """Draw one shard of images with classifier-free guidance."""
    input:
        model=sampled_model,
        entropy_model=folder("entropy_model"),
        tokenizer=folder("tokenizer"),
        thresholds=RESULTS + "/thresholds.json",
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
        recipe=lambda wildcards: recipe(
            "sample_images",
            SAMPLES[wildcards.cell].patchify,
            SAMPLES[wildcards.cell].sampling.model_dump(exclude={"seeds", "batch_size"}),
        ),
        model=lambda wildcards: f"{RESULTS}/models/{SAMPLES[wildcards.cell].model}/{SAMPLES[wildcards.cell].milestone}",
        results=RESULTS,
    shell:
        STAGE + " --cell {wildcards.cell} --seed {wildcards.seed}"
        " --shard {wildcards.shard} --model-folder {params.model} --entropy-model {params.results}/entropy_model"
        " --tokenizer {params.results}/tokenizer --thresholds {input.thresholds} --output {output.images}"
        " --picture {output.picture}" + LOGGED
