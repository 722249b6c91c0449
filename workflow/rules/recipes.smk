"""Parameters of each rule, a change of which makes its outputs out of date."""


def recipe(stage, *settings, architecture=None):
    """Parameters of a stage's rule: the stage's number, that of the network it trains, the settings it reads."""
    plain = [s.model_dump(mode="json") if hasattr(s, "model_dump") else s for s in settings]
    return f"{recipe_number(stage, architecture)}.{digest(plain)}"


def without(settings, *names):
    """`settings` but for those that do not decide what is computed."""
    return settings and settings.model_dump(mode="json", exclude=set(names))


def with_any_attention(transformer):
    """`transformer` whatever back end attends, which only rounds differently; `auto`, as most recipes have had it."""
    return transformer.model_copy(update={"attention": "auto"})


def precision_of(network):
    """The precision of an entropy model or gate, as one of the settings; none where it is the default."""
    return [network.precision] if network and "precision" in network.model_dump() else []


def dimensions():
    """How many dimensions of features are compared, as one of the settings; none where it is all."""
    return [["dimensions", EXPERIMENT.evaluation.dimensions]] if EXPERIMENT.evaluation.dimensions else []


def of_split(settings, wildcards):
    """Those of the settings `train`, `val`, `train_shards` and `val_shards` that are of this split."""
    return getattr(settings, wildcards.split, None) or getattr(settings, f"{wildcards.split}_shards", None)


def generating_recipe(wildcards):
    images = EXPERIMENT.images
    count = of_split(images.generated, wildcards) if images.generated else None
    return recipe("generate_images", EXPERIMENT.seed, count, images.num_classes, images.resolution)


def indexing_recipe(wildcards):
    images = EXPERIMENT.images
    where = images.path(wildcards.split)
    settings = [images.source, where, images.resolution, images.num_classes, images.max_unreadable]
    if images.held_out is not None:
        settings.append(["held_out", images.held_out])
    if wildcards.split == "train" and images.max_train is not None:
        settings.append(["the first of each class", images.max_train])
    if wildcards.split == "val" and images.max_val is not None:
        settings.append(["of each class", images.max_val])
    if wildcards.split == "val" and images.allow_shared:
        settings.append("allow_shared")
    return recipe("index_images", *settings)


def encoding_recipe(wildcards):
    codes = EXPERIMENT.codes
    views = (codes.crop_ranges, codes.ten_crop) if wildcards.split == "train" else None  # held out: the centre
    return recipe("encode_images", codes.format, of_split(codes, wildcards), views, EXPERIMENT.images.resolution)


def training_recipe(wildcards):
    cell = MODELS[wildcards.model]
    patchify = None  # the baseline does not depend on where patches begin
    if cell.transformer.is_dpar:
        gated = is_gated(cell.patchify, cell.transformer)
        patchify = cell.patchify if gated else [cell.patchify.strategy, cell.patchify.p_avg]
    transformer, training = with_any_attention(cell.transformer), without(cell.training, *TRAINING_PACE)
    architecture = cell.transformer.sizes["architecture"]
    return recipe("train_model", cell.seed, transformer, patchify, training, architecture=architecture)


def sampling_recipe(wildcards):
    """Batches matter where there are several shards, which are made of whole ones."""
    cell = SAMPLES[wildcards.cell]
    return recipe(
        "sample_images",
        cell.patchify if sampled_transformer(wildcards).is_dpar else None,
        without(cell.sampling, "seeds", "compile", *(["batch_size"] if cell.sampling.shards == 1 else [])),
        EXPERIMENT.evaluation.resolution,
    )


def features_recipe(wildcards):
    read = EXPERIMENT.evaluation
    of_reference = (read.reference, read.reference_images) if wildcards.features == "reference" else ()
    return recipe("extract_features", EXPERIMENT.seed, EXTRACTOR, read.resolution, *of_reference, *dimensions())
