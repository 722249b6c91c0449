"""Benchmarks: one module for each, with the interleaving and the conditions that they share."""
