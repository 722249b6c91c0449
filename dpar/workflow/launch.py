"""Starts a training stage the way its resources ask for: one process, torchrun, or srun with torchrun on each node.

In a Slurm job it also answers the warning that Slurm sends before the time limit (`--signal` in slurm/config.yaml): the
training saves its state and ends with status 75, and the job is put back into the queue.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from dpar.errors import InputError, run_command
from dpar.train.interruption import REQUEUE, heeding
from dpar.workflow.slurm import start_again


def command(module: str, arguments: Sequence[str], *, gpus: int, nodes: int, cpus: int, job: str | None) -> list[str]:
    """The command line that runs `module` on `gpus` GPUs in all, over `nodes` nodes.

    Args:
        gpus: over all nodes; 0 or 1 means one process.
        cpus: cores of each node, where there are several nodes.
        job: the number of the Slurm job that this is, if any; several nodes need one.

    Raises:
        InputError: GPUs that cannot be divided by the nodes, or several nodes outside a Slurm allocation.
    """
    if nodes < 1 or gpus < 0:
        raise InputError(f"--nodes {nodes} --gpus {gpus}: expected at least one node and no negative number of GPUs")
    if nodes == 1 and gpus <= 1:
        return [sys.executable, "-m", module, *arguments]
    if gpus == 0 or gpus % nodes:
        raise InputError(f"{gpus} GPUs cannot be divided over {nodes} nodes; ask for a multiple of {nodes}")
    torchrun = [sys.executable, "-m", "dpar.workflow.torchrun", f"--nproc-per-node={gpus // nodes}"]
    if nodes == 1:
        return [*torchrun, "--standalone", "-m", module, *arguments]
    if job is None:
        raise InputError(f"{nodes} nodes need a Slurm allocation (SLURM_JOB_ID is not set); use --profile slurm")
    # Slurm runs a job's script on the first of its nodes, which so has rank 0; jobs that share a node have other ports
    port = 10000 + int(job) % 20000
    meeting = f'--nnodes={nodes} --node-rank="$SLURM_NODEID" --master-addr="$SLURM_LAUNCH_NODE_IPADDR"'
    step = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", f"--cpus-per-task={cpus}", f"--gres=gpu:{gpus // nodes}"]
    return [
        *step,
        "--wait=60",  # seconds that the other nodes have when one has ended
        "bash",
        "-c",
        f"exec {shlex.join(torchrun)} {meeting} --master-port={port} {shlex.join(['-m', module, *arguments])}",
    ]


def run_in_job(line: Sequence[str], job: str) -> int:
    """Exit status of `line` as a part of a Slurm job, which starts again if `line` saved and stopped before its limit.

    Slurm sends its signals to every process of the job: this one has only to wait.
    """
    heeding(lambda *_: None)
    status = subprocess.run(line).returncode
    if status == REQUEUE:
        print(start_again(job), file=sys.stderr, flush=True)
    return status if status >= 0 else 128 - status


def main(argv: Sequence[str] | None = None) -> None:
    """Becomes the training, so that signals reach it; in a Slurm job, waits for it."""
    parser = argparse.ArgumentParser(prog="dpar.workflow.launch", description=__doc__)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=1, help="of each node, where there are several")
    parser.add_argument("module", help="such as dpar.stages.train_model")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    job = os.environ.get("SLURM_JOB_ID")
    line = command(args.module, args.arguments, gpus=args.gpus, nodes=args.nodes, cpus=args.cpus, job=job)
    if args.gpus > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # Snakemake's is for all the job's cores, and each of these has its GPU
    if job is None or "DPAR_SLURM_RUN" not in os.environ:  # no job, or one in which somebody works: not ours to requeue
        os.execvp(line[0], line)
    raise SystemExit(run_in_job(line, job))


if __name__ == "__main__":
    sys.exit(run_command(main))
