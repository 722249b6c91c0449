"""What is timed: a module a benchmark, with the interleaving and the conditions that they share."""
