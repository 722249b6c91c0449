"""Drawing images from a model (Algorithm 2)."""
