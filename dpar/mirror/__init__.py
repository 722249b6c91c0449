"""The records of `dpar.tracking` in an MLflow store: a view that can be made again at any time."""
