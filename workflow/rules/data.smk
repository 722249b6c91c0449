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
    if wildcards.split == "val" and images.allow_shared:
        settings.append("allow_shared")
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


def has_class_names(split):
    """Whether there is no index of this split yet, or one that says the classes' names or that they have none."""
    path = f"{RESULTS}/index/{split}.json"
    if not os.path.exists(path):
        return True
    with open(path, "rb") as index:
        return b'"classes":' in index.read(2**16)  # among the first fields


def training_classes(wildcards):
    """The index that numbers the classes of the user's held-out images; finished ones from before it did so stay."""
    old = not (has_class_names("train") or has_class_names("val"))
    if wildcards.split == "train" or EXPERIMENT.images.source == "generated" or old:
        return []
    return RESULTS + "/index/train.json"


rule index_images:
    """List the images, their labels and which could not be read."""
    input:
        images=images_to_index,
        classes=training_classes,
    output:
        RESULTS + "/index/{split}.json",
    log:
        RESULTS + "/logs/index_images/{split}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=indexing_recipe,
        images=lambda wildcards, input: (f"--images {input.images}" if input.images else ""),
        classes=lambda wildcards, input: (f"--classes-of {input.classes}" if input.classes else ""),
    shell:
        STAGE + " --split {wildcards.split} {params.images} {params.classes} --output {output}" + LOGGED


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
