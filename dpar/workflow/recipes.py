"""One number per stage and per architecture, raised by hand when a change to the code changes what it computes.

Snakemake does not look inside the package, so a comment never retrains a model; raising the number of a stage marks
exactly its outputs, and all that is made from them, as out of date.
"""

RECIPES = {
    "generate_images": 1,
    "index_images": 2,
    "train_tokenizer": 2,
    "import_tokenizer": 1,
    "evaluate_tokenizer": 2,
    "encode_images": 2,
    "index_codes": 2,
    "verify_codes": 1,
    "train_entropy_model": 1,
    "import_entropy_model": 1,
    "score_entropies": 2,
    "calibrate_threshold": 1,
    "calibrate_gate": 1,
    "compare_gates": 3,
    "count_patches": 2,
    "describe_models": 3,
    "train_model": 1,
    "evaluate_likelihood": 1,
    "sample_images": 2,
    "complete_images": 2,
    "train_classifier": 1,
    "extract_features": 2,
    "compute_metrics": 3,
    "measure_noise_floor": 2,
    "measure_degradations": 1,
    "analyse_patches": 1,
    "linear_probe": 2,
    "make_table": 3,
    "plot_entropy_maps": 1,
    "plot_samples": 2,
    "plot_ablation": 4,
    "plot_pareto": 1,
    "plot_compute": 1,
    "write_first_report": 1,
    "write_report": 4,
}

# The same for the code of the models: raised when what a network of that architecture computes changes. That marks the
# trainings of this architecture, and all that is made from them; entropy models and gates are LlamaGens.
ARCHITECTURES = {"llamagen": 1, "dpar": 1}


def recipe_number(stage: str, architecture: str | None = None) -> int | str:
    """The number of a stage, with that of the architecture that it trains or imports.

    The latter is left out until it is raised: what was made before it was there stays up to date.
    """
    raised = ARCHITECTURES[architecture] if architecture else 1
    return RECIPES[stage] if raised == 1 else f"{RECIPES[stage]}-{architecture}{raised}"
