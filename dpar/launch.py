"""Starts a training stage the way its resources ask for: one process, torchrun, or srun with torchrun on each node."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from dpar.errors import InputError, run_command


def command(module: str, arguments: Sequence[str], *, gpus: int, nodes: int, environment: dict[str, str]) -> list[str]:
    """The command line that runs `module` on `gpus` GPUs in all, over `nodes` nodes.

    Args:
        gpus: over all nodes; 0 or 1 means one process.
        environment: of the caller; several nodes need `SLURM_JOB_ID` and the name of the first node in `HEAD_NODE`.

    Raises:
        InputError: GPUs that cannot be divided by the nodes, or several nodes outside a Slurm allocation.
    """
    if nodes < 1 or gpus < 0:
        raise InputError(f"--nodes {nodes} --gpus {gpus}: expected at least one node and no negative number of GPUs")
    if nodes == 1 and gpus <= 1:
        return [sys.executable, "-m", module, *arguments]
    if gpus == 0 or gpus % nodes:
        raise InputError(f"{gpus} GPUs cannot be divided over {nodes} nodes; ask for a multiple of {nodes}")
    torchrun = [sys.executable, "-m", "dpar.train.torchrun", f"--nproc-per-node={gpus // nodes}"]
    if nodes == 1:
        return [*torchrun, "--standalone", "-m", module, *arguments]
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        raise InputError(f"{nodes} nodes need a Slurm allocation (SLURM_JOB_ID is not set); use --profile slurm")
    rendezvous = [
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={job}",
        f"--rdzv-endpoint={environment['HEAD_NODE']}:29500",
    ]
    per_node = shlex.join([*torchrun, *rendezvous, "-m", module, *arguments])
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        f"--gres=gpu:{gpus // nodes}",
        "bash",
        "-c",
        f"exec {per_node}",
    ]


def head_node(job: str) -> str:
    """The host name of the first node of a Slurm job.

    Raises:
        InputError: Slurm's programs are missing or do not know the job.
    """
    try:
        return _first_host(job)
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise InputError(
            f"cannot ask Slurm for the nodes of job {job} ({error}); several nodes need squeue and scontrol"
        ) from None


def _first_host(job: str) -> str:
    nodes = subprocess.run(["squeue", "-h", "-j", job, "-o", "%N"], capture_output=True, text=True, check=True).stdout
    hosts = subprocess.run(["scontrol", "show", "hostnames", nodes.strip()], capture_output=True, text=True, check=True)
    return hosts.stdout.split()[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Replaces this process by the training, so that signals reach it."""
    parser = argparse.ArgumentParser(prog="dpar.launch", description=__doc__)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("module", help="such as dpar.stages.train_model")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    environment = dict(os.environ)
    if args.nodes > 1 and "SLURM_JOB_ID" in environment:
        environment["HEAD_NODE"] = head_node(environment["SLURM_JOB_ID"])
    line = command(args.module, args.arguments, gpus=args.gpus, nodes=args.nodes, environment=environment)
    os.execvpe(line[0], line, environment)


if __name__ == "__main__":
    sys.exit(run_command(main))
