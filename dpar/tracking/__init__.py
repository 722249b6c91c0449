"""Every job's record on disk, and MLflow as a view of those records that can be made again at any time.

spool        what a stage calls while it runs; no MLflow, no network          `tracking.job(...)`
makers       who made which file last, and whether it still is what they made
settings     whether experiment.json is the one of its results folder
hashes       inputs and outputs with their digests
environment  commit, machine, versions
system       load of processor, memory and GPUs
"""

from dpar.tracking.makers import check, made_by
from dpar.tracking.spool import Job, job

__all__ = ["Job", "check", "job", "made_by"]
