"""What runs the graph: jobs' names, checks before the start, plans and their cost, launching, Slurm."""
