"""What an experiment may say, and the cells that its tables need."""
