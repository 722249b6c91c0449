"""Quality of samples and its cost: features, distances, likelihood, multiply-accumulates."""
