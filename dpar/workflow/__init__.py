"""Tools of the graph: jobs' names, checks before the start, plans and their cost, launching, Slurm."""
