"""Images, and codes as sharded stores."""


rule generate_images:
    """Draw the demo's own images: eight classes with flat and busy regions."""
    output:
        "<results>/images/{split}.parquet",
    log:
        "<results>/logs/generate_images/{split}.log",
    priority: FIRST + 2
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=generating_recipe,
    shell:
        stage("generate_images", "--split {wildcards.split} --output {output}")


rule index_images:
    """List the images, their labels and which could not be read."""
    input:
        images=images_to_index,
        classes=training_classes,
    output:
        "<results>/index/{split}.json",
    log:
        "<results>/logs/index_images/{split}.log",
    priority: FIRST + 2
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=indexing_recipe,
        images=lambda wildcards, input: (f"--images {input.images}" if input.images else ""),
        classes=lambda wildcards, input: (f"--classes-of {input.classes}" if input.classes else ""),
    shell:
        stage("index_images", "--split {wildcards.split} {params.images} {params.classes} --output {output}")


rule encode_images:
    """Turn the crops of one shard of images into codes."""
    input:
        index=rules.index_images.output,
        tokenizer=folder("tokenizer"),
    output:
        f"<results>/codes/{{split}}/{{shard}}.{SHARD_SUFFIX}",
    log:
        "<results>/logs/encode_images/{split}-{shard}.log",
    priority: FIRST + 2
    conda:
        "../../envs/dpar.yaml"
    resources:
        gpu=0,
    params:
        recipe=encoding_recipe,
        tokenizer=in_results("tokenizer"),
    shell:
        stage(
            "encode_images",
            "--split {wildcards.split} --shard {wildcards.shard}"
            " --index {input.index} --tokenizer {params.tokenizer} --output {output}",
        )


rule index_codes:
    """List the shards of a store of codes with counts and digests."""
    input:
        shards=lambda wildcards: shards(wildcards.store, wildcards.split),
    output:
        "<results>/{store}/{split}/manifest.json",
    log:
        "<results>/logs/index_codes/{store}-{split}.log",
    priority: FIRST + 2
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("index_codes"),
    shell:
        stage("index_codes", "--shards {input.shards} --output {output}")


rule verify_codes:
    """Read every shard again and compare it with the manifest."""
    input:
        manifest=rules.index_codes.output,
    output:
        "<results>/{store}/{split}/verified.json",
    log:
        "<results>/logs/verify_codes/{store}-{split}.log",
    conda:
        "../../envs/dpar.yaml"
    params:
        recipe=recipe("verify_codes"),
    shell:
        stage("verify_codes", "--manifest {input.manifest} --output {output}")
