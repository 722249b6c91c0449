"""Use of processor, memory and GPUs while a job runs."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable

import psutil

_GPU_QUERY = ("index", "utilization.gpu", "memory.used", "power.draw")


def _gpus() -> dict[str, float]:
    """Load (percent), memory (MiB) and power (watts) of each visible GPU, by the driver's own tool."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    try:
        finished = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = {}
    for line in finished.stdout.splitlines():
        index, *numbers = (cell.strip() for cell in line.split(","))
        names = ("utilization_percentage", "memory_usage_mebibytes", "power_usage_watts")
        for name, number in zip(names, numbers, strict=True):
            if number.replace(".", "", 1).isdigit():  # "[N/A]" where the device does not tell
                values[f"system/gpu_{index}_{name}"] = float(number)
    return values


class SystemSampler:
    """Calls `record` with the load of the machine every `interval` seconds while the block runs."""

    def __init__(self, record: Callable[[dict[str, float]], None], *, interval: float = 30.0):
        self._record = record
        self._interval = interval
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._peak = 0.0
        self._has_gpu = shutil.which("nvidia-smi") is not None
        self._thread = threading.Thread(target=self._run, name="system-sampler", daemon=True)

    def __enter__(self) -> "SystemSampler":
        self._process.cpu_percent()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1)

    def peaks(self) -> dict[str, float]:
        """The largest resident memory of this process so far (MiB)."""
        return {"system/peak_rss_mebibytes": max(self._peak, self._process.memory_info().rss / 2**20)}

    def sample(self) -> dict[str, float]:
        """The load now; processor time in percent of one core."""
        resident = self._process.memory_info().rss / 2**20
        self._peak = max(self._peak, resident)
        values = {
            "system/process_cpu_percentage": self._process.cpu_percent(),
            "system/process_rss_mebibytes": round(resident, 1),
            "system/memory_used_percentage": psutil.virtual_memory().percent,
        }
        return values | (_gpus() if self._has_gpu else {})

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            values = self.sample()
            if not self._stop.is_set():  # a driver may take its time to answer
                self._record(values)
