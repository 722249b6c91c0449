"""What samples are worth: features, distances, likelihood, cost."""
