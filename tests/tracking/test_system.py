import subprocess
import time

import pytest

from dpar.tracking import system
from dpar.tracking.system import SystemSampler


def test_the_load_is_recorded_at_its_interval_and_the_peak_at_the_end():
    records: list[dict[str, float]] = []
    with SystemSampler(records.append, interval=0.02) as sampler:
        deadline = time.monotonic() + 60
        while len(records) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        peak = sampler.peaks()["system/peak_rss_mebibytes"]
    count = len(records)
    assert count >= 3
    assert records[0].keys() >= {"system/process_cpu_percentage", "system/process_rss_mebibytes"}
    assert peak >= max(record["system/process_rss_mebibytes"] for record in records[:3]) - 0.1
    time.sleep(0.1)
    assert len(records) == count


def test_gpus_are_read_from_the_drivers_tool(monkeypatch: pytest.MonkeyPatch):
    commands: list[list[str]] = []

    def answer(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="0, 97, 40536, 312.55\n3, [N/A], 12, [N/A]\n")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    monkeypatch.setattr(system.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(system.subprocess, "run", answer)
    sample = SystemSampler(lambda _: None).sample()
    assert {key: value for key, value in sample.items() if "gpu" in key} == {
        "system/gpu_0_utilization_percentage": 97.0,
        "system/gpu_0_memory_usage_mebibytes": 40536.0,
        "system/gpu_0_power_usage_watts": 312.55,
        "system/gpu_3_memory_usage_mebibytes": 12.0,
    }
    assert "--id=0,3" in commands[0]


def test_a_driver_that_does_not_answer_is_no_obstacle(monkeypatch: pytest.MonkeyPatch):
    def refuse(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(9, command)

    monkeypatch.setattr(system.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(system.subprocess, "run", refuse)
    assert not any("gpu" in key for key in SystemSampler(lambda _: None).sample())
