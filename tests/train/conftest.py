"""Fixtures of training tests."""

import subprocess
from pathlib import Path

import pytest


class Disk:
    """A file system of its own, of 8 MiB, that can fill up or become read-only."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._filler = folder / "something else"

    def fill(self) -> None:
        """Leaves no space."""
        with open(self._filler, "wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    return

    def clear(self) -> None:
        """Gives the space back."""
        self._filler.unlink()

    def remount(self, how: str) -> None:
        """`ro` or `rw`."""
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    """A real file system; a test that asks for it is skipped for who may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield Disk(folder)
    subprocess.run(["umount", str(folder)], check=True)
