"""Makes the pictures of docs/dashboard.md from a results folder: `python docs/screenshots.py results/demo`.

Needs Chromium (`apt install chromium`) and nothing beyond the package: the browser is spoken to through a pipe, in the
protocol of its own developer tools. It sees this machine only.
"""

import argparse
import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from dpar.errors import InputError, run_command
from dpar.mirror import dashboard
from dpar.mirror import sync as mirror
from dpar.mirror.store import Store, find_store, open_store, writer_lock

WIDTH, HEIGHT = 1600, 1040  # pixels of the window, with a frame that no picture shows
COLOURS = 128  # of a picture's palette
SECONDS = 600.0  # to wait for what a page shall show
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe",
]  # fmt: skip


class Browser:
    """A page of a Chromium that listens to a pipe."""

    def __init__(self, profile: str):
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            raise InputError("there is no chromium on the path; install Debian's package `chromium`")
        theirs, self._to = os.pipe()
        self._from, ours = os.pipe()

        def as_three_and_four() -> None:
            for end, number in ((os.dup(theirs), 3), (os.dup(ours), 4)):
                os.dup2(end, number)

        self.process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"],
            preexec_fn=as_three_and_four, pass_fds=(3, 4), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(ours)
        self._buffer, self._number, self._session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                piece = os.read(self._from, 2**16)
                if not piece:
                    raise InputError("chromium has ended; start it by hand with the flags of this script to see why")
                self._buffer += piece
            line, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise InputError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str, what: str) -> None:
        """Returns when the expression is true.

        Raises:
            InputError: it does not become true.
        """
        deadline = time.monotonic() + SECONDS
        while not self.ask(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise InputError(
                    f"after {SECONDS:.0f} s the page does not show {what}; it shows:\n{self.text()[:2000]}"
                )
            time.sleep(0.3)

    def text(self) -> str:
        """All that the page says."""
        return self.ask("document.body.innerText") or ""

    def open(self, address: str, *expected: str) -> None:
        """Opens a page and waits until it says everything that is expected."""
        self.call("Page.navigate", url="about:blank")  # an address that differs after # alone would not be loaded
        self.call("Page.navigate", url=address)
        for text in expected:
            self.wait(f"(document.body?.innerText ?? '').includes({json.dumps(text)})", repr(text))

    def _last(self, text: str) -> str:
        """The innermost element whose text begins so, as JavaScript."""
        begins = f"e => e.innerText?.trim().startsWith({json.dumps(text)})"
        return f"[...document.querySelectorAll('body *')].filter({begins}).at(-1)"

    def click(self, text: str) -> None:
        """Clicks what begins with this text."""
        self.wait(self._last(text), repr(text))
        self.ask(f"{self._last(text)}.click()")

    def scroll_to(self, text: str) -> None:
        """Brings what begins with this text to the top, as far as the page goes."""
        self.wait(self._last(text), repr(text))
        self.ask(f"{self._last(text)}.scrollIntoView({{block: 'start'}})")
        time.sleep(5.0)  # cards are filled when they come into sight

    def picture(self) -> Image.Image:
        """Screenshot of the page when it has come to rest."""
        before = b""
        for _ in range(60):
            time.sleep(1.0)
            now = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
            if now == before:
                break
            before = now
        return Image.open(io.BytesIO(before)).convert("RGB")


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser without a past, ended with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        page = Browser(profile)
        try:
            yield page
        finally:
            page.process.terminate()
            page.process.wait()


def save(picture: Image.Image, path: Path) -> None:
    """Writes a small PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(argv: Sequence[str] | None = None) -> None:
    """Takes all pictures."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("results", type=Path, help="a results folder whose run has finished")
    flags.add_argument("--out", type=Path, default=Path(__file__).parent / "dashboard")
    args = flags.parse_args(argv)
    store = find_store(args.results)
    mirror.sync(store)
    with socket.socket() as probe:
        probe.bind((dashboard.HOST, 0))
        port = probe.getsockname()[1]
    with dashboard.serving(store, port, seconds=SECONDS), browser() as page:
        views = {title.partition(": ")[2]: address for title, address in dashboard.links(store, port)}
        home = f"http://{dashboard.NAME}:{port}/"
        page.open(views["1 Every row, best first"], "matching runs", "threshold")
        save(page.picture(), args.out / "rows.png")
        page.open(views["2 What decides quality and cost"], "Quality")
        save(page.picture(), args.out / "charts.png")
        page.scroll_to("Cost")
        save(page.picture(), args.out / "cost.png")
        page.open(views["2 Curves and pictures"], "Loss")
        page.scroll_to("Pictures by step")
        save(page.picture(), args.out / "pictures.png")
        row, model = best_row(store)
        page.open(f"{home}{row}", "Made from")
        page.click("Show more")
        save(page.picture(), args.out / "row.png")
        page.open(f"{home}{model}", "made by")
        save(page.picture(), args.out / "model.png")


def best_row(store: Store) -> tuple[str, str]:
    """The pages of the best row of a DPAR, and of its model, relative to the server's address."""
    with writer_lock(store):
        client = open_store(store)
    experiments = {e.name.rpartition("/")[2]: e.experiment_id for e in client.search_experiments()}
    best = ["metrics.`eval/frechet_distance` ASC"]
    rows = client.search_runs([experiments["results"]], "params.model = 'dpar'", order_by=best, max_results=1)
    if not rows:
        raise InputError(f"{store.results} has no table with a row of a DPAR; run the demo to its end")
    inputs = client.get_run(rows[0].info.run_id).inputs  # a search leaves models out
    assert inputs is not None
    (read,) = inputs.model_inputs
    page = "?workflowType=machine_learning"
    return (
        f"#/experiments/{experiments['results']}/runs/{rows[0].info.run_id}{page}",
        f"#/experiments/{experiments['train']}/models/{read.model_id}{page}",
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
