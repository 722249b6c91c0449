"""Every job's record on disk, and MLflow as a view of those records that can be made again at any time.

spool        what a stage calls while it runs; no MLflow, no network          `tracking.job(...)`
hashes       inputs and outputs with their digests
environment  commit, machine, versions
system       load of processor, memory and GPUs

"""

from dpar.tracking.spool import Job, job

__all__ = ["Job", "job"]
