"""Images, and codes as sharded stores."""


def of_split(settings, wildcards):
    """Those of the settings `train`, `val`, `train_shards` and `val_shards` that speak of this split."""
    return getattr(settings, wildcards.split, None) or getattr(settings, f"{wildcards.split}_shards", None)


def generating_recipe(wildcards):
    images = EXPERIMENT.images
    count = of_split(images.generated, wildcards) if images.generated else None
    return recipe("generate_images", EXPERIMENT.seed, count, images.num_classes, images.resolution)


def indexing_recipe(wildcards):
    images = EXPERIMENT.images
    where = of_split(images, wildcards)
    settings = [images.source, where, images.resolution, images.num_classes, images.max_unreadable]
    if wildcards.split == "val" and images.max_val is not None:
        settings.append(images.max_val)
    return recipe("index_images", *settings)


def encoding_recipe(wildcards):
    codes = EXPERIMENT.codes
    views = (codes.crop_ranges, codes.ten_crop) if wildcards.split == "train" else None  # held out: the centre
    return recipe("encode_images", codes.format, of_split(codes, wildcards), views, EXPERIMENT.images.resolution)


rule generate_images:
    """Draw the demo's own pictures: eight classes with flat and busy regions."""
    output:
        RESULTS + "/images/{split}.parquet",
    log:
        RESULTS + "/logs/generate_images/{split}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=generating_recipe,
    shell:
        STAGE + " --split {wildcards.split} --output {output}" + LOGGED


def images_to_index(wildcards):
    if EXPERIMENT.images.source == "generated":
        return f"{RESULTS}/images/{wildcards.split}.parquet"
    return []  # the user's own images: a path in the experiment, checked by the stage, absent in a dry run


rule index_images:
    """List the images, their labels and which could not be read."""
    input:
        images=images_to_index,
    output:
        RESULTS + "/index/{split}.json",
    log:
        RESULTS + "/logs/index_images/{split}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=indexing_recipe,
        images=lambda wildcards, input: (f"--images {input.images}" if input.images else ""),
    shell:
        STAGE + " --split {wildcards.split} {params.images} --output {output}" + LOGGED


rule encode_images:
    """Turn the crops of one shard of images into codes."""
    input:
        index=rules.index_images.output,
        tokenizer=folder("tokenizer"),
    output:
        f"{RESULTS}/codes/{{split}}/{{shard}}.{SHARD_SUFFIX}",
    log:
        RESULTS + "/logs/encode_images/{split}-{shard}.log",
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=encoding_recipe,
        tokenizer=RESULTS + "/tokenizer",
    shell:
        STAGE + " --split {wildcards.split} --shard {wildcards.shard}"
        " --index {input.index} --tokenizer {params.tokenizer} --output {output}" + LOGGED


rule index_codes:
    """List the shards of a store of codes with counts and digests."""
    input:
        shards=lambda wildcards: shards(wildcards.store, wildcards.split),
    output:
        RESULTS + "/{store}/{split}/manifest.json",
    log:
        RESULTS + "/logs/index_codes/{store}-{split}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("index_codes"),
    shell:
        STAGE + " --shards {input.shards} --output {output}" + LOGGED


rule verify_codes:
    """Read every shard again and compare it with the manifest."""
    input:
        manifest=rules.index_codes.output,
    output:
        RESULTS + "/{store}/{split}/verified.json",
    log:
        RESULTS + "/logs/verify_codes/{store}-{split}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("verify_codes"),
    shell:
        STAGE + " --manifest {input.manifest} --output {output}" + LOGGED
