"""Inputs of the rules that depend on the wildcards or on the experiment."""


def images_to_index(wildcards):
    if EXPERIMENT.images.source == "generated":
        return f"<results>/images/{wildcards.split}.parquet"
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
    return "<results>/index/train.json"


def boundary_network(wildcards):
    """The settings of the entropy model or gate whose folder a rule makes."""
    return EXPERIMENT.network(wildcards.network)


def networks_with(field):
    """Matches the folders of the networks that have `weights`, or `training`."""
    folders = [folder for folder, network in EXPERIMENT.networks.items() if getattr(network, field) is not None]
    return "|".join(map(re.escape, folders)) or "none"


def codes_to_learn(split):
    """The codes of a split, with the entropies where a network is trained on them."""
    return lambda wildcards: (
        f"<results>/{'scored' if boundary_network(wildcards).kind == 'distilled' else 'codes'}/{split}/manifest.json"
    )


def compared_states():
    """Folders of the models that are sampled through gates."""
    return list(dict.fromkeys(f"models/{cell.model}/{cell.milestone}" for cell in gated_cells(EXPERIMENT)))


def thresholds_of_gated_cells():
    """Those that a gate's threshold stands for, where they are calibrated."""
    return sorted({path for cell in gated_cells(EXPERIMENT) for path in threshold_of_cell(cell.model, cell.patchify)})


def previous_milestone(wildcards):
    """The state that this one continues: milestones of one training are made one after the other."""
    names = MODELS[wildcards.model].milestones
    before = names[: names.index(wildcards.milestone)] if wildcards.milestone in names else ()
    return folder(f"models/{wildcards.model}/{before[-1]}") if before else []


def codes_for(split):
    """The manifest that a model reads: with entropies where they decide about patches, else without."""

    def manifest(wildcards):
        cell = MODELS[wildcards.model]
        store = "scored" if is_gated(cell.patchify, cell.transformer) else "codes"
        return f"<results>/{store}/{split}/manifest.json"

    return manifest


def sampled_transformer(wildcards):
    return MODELS[SAMPLES[wildcards.cell].model].transformer


def sampled_model(wildcards):
    cell = SAMPLES[wildcards.cell]
    return folder(f"models/{cell.model}/{cell.milestone}")


def completed_cell():
    """The cell whose completions are shown: the first DPAR of the samples with its training's patches, else the first."""

    def last_choice(cell):
        model = MODELS[cell.model]
        return not model.transformer.is_dpar, cell.patchify != model.patchify

    return min(SAMPLES.values(), key=last_choice)


def thresholds_to_sample(wildcards):
    """The entropy model's threshold, where it is calibrated; a gate has its own."""
    cell = SAMPLES[wildcards.cell]
    return [] if cell.gate else threshold_of_cell(cell.model, cell.patchify)


def classes_to_sample(wildcards):
    """The index of the training images, where classes are drawn as often as they have them."""
    return "<results>/index/train.json" if SAMPLES[wildcards.cell].sampling.labels == "training" else []


def images_to_describe(wildcards):
    """The real images for `reference`, else the shards of the samples CELL/seedN."""
    if wildcards.features != "reference":
        cell = SAMPLES[os.path.dirname(wildcards.features)]
        return [f"<results>/samples/{wildcards.features}/{i:05d}.npz" for i in range(cell.sampling.shards)]
    if EXPERIMENT.evaluation.reference in SPLITS:
        return [f"<results>/index/{EXPERIMENT.evaluation.reference}.json"]
    return []  # the user's npz: a path in the experiment, checked by the stage


def first_shards(cells, form):
    return [f"<results>/samples/{cell.slug}/seed{cell.sampling.seeds[0]}/00000.{form}" for cell in cells]


def table_cells(name):
    return list({cell.slug: cell for row in table_rows(EXPERIMENT, name) for cell in row.samples}.values())


def shown_cells():
    """The cells of the tables and figures that are made without being asked for."""
    rows = [row for name in EXPERIMENT.shown_tables for row in table_rows(EXPERIMENT, name)]
    rows += [row for name in EXPERIMENT.figures for row in figure_rows(EXPERIMENT, name)]
    return [cell for row in rows for cell in row.samples]


def pictured_cells(figure):
    """The cells of a figure; for `samples` one of each model, fully trained rather than not."""
    if figure in EXPERIMENT.figures:
        return [row.sample for row in figure_rows(EXPERIMENT, figure)]
    chosen, described = {}, described_models(EXPERIMENT)
    for row in (row for name in EXPERIMENT.shown_tables for row in table_rows(EXPERIMENT, name)):
        if row.sample.milestone == row.model.milestones[-1] or row.model.slug not in described:
            chosen.setdefault(row.model.slug, row.sample)
    return list(chosen.values())


def network_priority(wildcards):
    """The entropy model comes first, for every DPAR waits for it; gates can wait."""
    return FIRST + 2 if wildcards.network == gate_folder(None) else 2


def training_priority(wildcards):
    """The models of the first page, DPAR before LlamaGen, come before others; samples can wait for those."""
    pictured = wildcards.model in {cell.model for cell in pictured_cells("samples")}
    return FIRST + MODELS[wildcards.model].transformer.is_dpar if pictured else 1


def sampling_priority(wildcards):
    """The samples of the first page come before all others."""
    first = {(cell.slug, str(cell.sampling.seeds[0])) for cell in pictured_cells("samples")}
    return FIRST + 2 if (wildcards.cell, wildcards.seed) in first else 0


def files_of_target(name):
    """The target's files; for one that this experiment lacks, a function that says so when it is asked."""

    def refuse(wildcards):
        raise WorkflowError(targets.refusal(name, EXPERIMENT, Path(workflow.basedir) / "config"))

    return TARGETS.get(name, refuse)
