"""Settings of an experiment, and the cells that its tables need."""
