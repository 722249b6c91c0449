"""A number a stage, raised by hand when a change to the code changes what the stage computes.

Snakemake does not look inside the package, so a comment never retrains a model; raising a number here marks exactly
the outputs of that stage, and all that is made from them, as out of date.
"""

RECIPES = {
    "generate_images": 1,
    "index_images": 2,
    "train_tokenizer": 1,
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
    "describe_models": 1,
    "train_model": 1,
    "evaluate_likelihood": 1,
    "sample_images": 2,
    "complete_images": 2,
    "train_classifier": 1,
    "extract_features": 2,
    "compute_metrics": 3,
    "measure_noise_floor": 2,
    "linear_probe": 2,
    "make_table": 3,
    "plot_entropy_maps": 1,
    "plot_samples": 2,
    "plot_ablation": 3,
    "plot_pareto": 1,
    "plot_compute": 1,
    "write_report": 3,
}
