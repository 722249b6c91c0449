"""The page of `dpar play`: what it draws is what `dpar sample` draws, and it is for this machine's browsers alone."""

import base64
import http.client
import io
import json
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

from dpar import cli
from dpar.commands import play, sample
from dpar.errors import InputError
from dpar.files import read_json, write_json
from dpar.model import flops
from tests.stages.sampled import GATE_THRESHOLDS, THRESHOLD, add_gates, write_results

NAMES = ["tulips", "<b>red & roses</b>", '"dog\'s" ear']
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    results = write_results(tmp_path_factory.mktemp("results"))
    add_gates(results)
    for model in ("dpar", "llamagen"):
        config = results / "models" / model / "step1" / "config.json"
        described = read_json(config)
        described["provenance"]["classes"] = NAMES
        write_json(config, described)
    return results


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """A server of the model in `folder`, on a port of its own."""
    server = play.Server((play.HOST, 0), play.Handler)
    server.player = play.Player(folder, "float32")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def port(results):
    with serving(results / "models/dpar/step1") as port:
        yield port


@pytest.fixture(scope="module")
def port_of_llamagen(results):
    with serving(results / "models/llamagen/step1") as port:
        yield port


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, Any]:
    """Status, body and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def draw_by(port: int, body: bytes = b"", **asked: object) -> dict[str, Any]:
    status, found, _ = ask(port, "POST", f"/draw?{urlencode(asked)}", body)
    assert status == 200, found
    return json.loads(found)


def refusal(port: int, body: bytes = b"", **asked: object) -> str:
    status, found, _ = ask(port, "POST", f"/draw?{urlencode(asked)}", body)
    assert status == 400, found
    assert list(json.loads(found)) == ["error"]
    return json.loads(found)["error"]


def pixels(image: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"]))))


def sampled(tmp_path: Path, capsys, results: Path, model: str, *flags: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The picture of `dpar sample`, and what it says of it."""
    out = tmp_path / "grid.png"
    sample.main(["--checkpoint", str(results / "models" / model / "step1"), "--out", str(out), "--json", *flags])
    return np.asarray(Image.open(out)), json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"cfg": "1.5", "seed": "7", "threshold": "2.5", "max_length": "2"},
        {"gate": "distilled", "cfg": "1"},
        {"gate": "small", "threshold": "inf"},
    ],
)
def test_it_draws_what_the_command_draws(results, port, tmp_path, capsys, asked):
    found = draw_by(port, label="2,0", n="3", **asked)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    picture, said = sampled(tmp_path, capsys, results, "dpar", "--labels", "2,0", "--n", "3", *flags)
    places = [(0, 0), (0, 10), (10, 0)]
    for image, (top, left), label in zip(found["images"], places, (2, 2, 0), strict=True):
        assert np.array_equal(pixels(image), picture[top : top + 8, left : left + 8])
        assert image["class"] == NAMES[label]
    assert [image["steps"] for image in found["images"]] == said["patches"]
    assert found["gate"] == said["gate"]
    if said["threshold"] != float("inf"):
        assert found["threshold"] == pytest.approx(said["threshold"])
    sample.main([*shlex.split(found["command"])[2:], "--out", str(tmp_path / "again.png")])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png")), picture)


def test_patches_entropies_and_cost_of_each_image(results, port):
    player = play.Player(results / "models/dpar/step1", "float32")
    found = draw_by(port, label="1", n="4", cfg="2")
    assert found["threshold"] == pytest.approx(THRESHOLD, abs=1e-4)
    assert player.networks.entropy_model is not None
    for image in found["images"]:
        starts, entropy = image["starts"], image["entropy"]
        assert starts[:2] == [0, 1]
        assert len(starts) == image["steps"]
        assert image["mean_patch_length"] == pytest.approx(16 / len(starts))
        assert (len(entropy), entropy[0]) == (16, None)
        assert {t for t in range(2, 16) if entropy[t] > THRESHOLD + 1e-4} <= set(starts)
        expected = flops.sampling_gmacs(
            player.networks.model.config, len(starts), entropy_model=player.networks.entropy_model.config
        )
        assert image["gmacs"] == pytest.approx(expected)
    assert len({tuple(image["starts"]) for image in found["images"]}) > 1
    alone = draw_by(port, label="1", n="1", cfg="1")["images"][0]
    assert alone["gmacs"] < found["images"][0]["gmacs"]


def test_the_gate_of_the_request_before_leaves_nothing_behind(port):
    usual = draw_by(port, label="1", n="2")
    gated = draw_by(port, label="1", n="2", gate="distilled")
    assert gated["threshold"] == pytest.approx(GATE_THRESHOLDS["distilled"])
    assert gated["images"] != usual["images"]
    assert draw_by(port, label="1", n="2")["images"] == usual["images"]


def test_an_uploaded_picture_is_continued_as_by_the_command(results, port, tmp_path, capsys):
    file = tmp_path / "begun.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)).save(file)
    found = draw_by(port, file.read_bytes(), label="0", n="2", keep_rows="3")
    flags = ["--labels", "0", "--n", "2", "--image", str(file), "--keep-rows", "3"]
    picture, _ = sampled(tmp_path, capsys, results, "dpar", *flags)
    assert np.array_equal(pixels(found["images"][0]), picture[:, :8])
    assert np.array_equal(pixels(found["images"][1]), picture[:, 10:])
    assert "--image FILE --keep-rows 3" in found["command"]


def test_a_model_without_patches_shows_none(results, port_of_llamagen, tmp_path, capsys):
    found = draw_by(port_of_llamagen, label="1", n="2", seed="3")
    picture, _ = sampled(tmp_path, capsys, results, "llamagen", "--labels", "1", "--n", "2", "--seed", "3")
    assert np.array_equal(pixels(found["images"][1]), picture[:, 10:])
    assert all(image.keys() == {"class", "png", "gmacs", "steps", "tokens"} for image in found["images"])
    assert {image["steps"] for image in found["images"]} == {16}
    assert found["threshold"] is None
    shown = ask(port_of_llamagen, "GET", "/")[1].decode()
    assert all(f'name="{name}"' not in shown for name in ("threshold", "max_length", "gate"))
    assert "is a model without patches; leave it out" in refusal(port_of_llamagen, label="1", threshold="2")
    assert "there is no gate 'small'" in refusal(port_of_llamagen, label="1", gate="small")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label": "rose"}, "there is no class 'rose'"),
        ({"label": "3"}, "label 3 is out of range"),
        ({"n": "0"}, "n is 0; expected 1 (one image per class) to 32 images"),
        ({"n": "33"}, "n is 33"),
        ({"n": "two"}, "n is 'two'; expected a whole number"),
        ({"label": "all", "n": "2"}, "expected 3 (one image per class)"),
        ({"seed": "-1"}, "seed: found -1, expected a whole number from 0"),
        ({"seed": "1.5"}, "seed is '1.5'; expected a whole number"),
        ({"cfg": "-1"}, "the guidance scale is -1"),
        ({"cfg": "nan"}, "the guidance scale is nan"),
        ({"cfg": "2,5"}, "cfg is '2,5'; expected a number"),
        ({"threshold": "nan"}, "the threshold is NaN"),
        ({"max_length": "0"}, "max_length is 0"),
        ({"gate": "../gates/small"}, "there is no gate '../gates/small'"),
        ({"gate": "small", "max_length": "2"}, "has no threshold for patches of"),
        ({"keep_rows": "2"}, "a picture and the rows of it that are kept go together"),
        ({"temprature": "2"}, "there is no setting 'temprature'"),
        ({"seed": "9" * 5000}, "seed is '9999"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(port, asked, message):
    said = refusal(port, **asked)
    assert message in said
    assert "\n" not in said


def test_a_file_that_is_no_picture_is_one_line(port):
    whole = io.BytesIO()
    Image.new("RGB", (9, 9)).save(whole, "PNG")
    for body in (b"<svg/>", b"\0", whole.getvalue()[:-20]):
        assert "it cannot be read" in refusal(port, body, keep_rows="2")
    for rows in ("0", "4"):
        assert f"keep 1 to 3, not {rows}" in refusal(port, whole.getvalue(), keep_rows=rows)
    assert "go together" in refusal(port, whole.getvalue())
    for length in (str(play.UPLOAD + 1), "9" * 99, "-1", "x"):  # nothing of it is read
        status, found, _ = ask(port, "POST", "/draw?keep_rows=2", Content_Length=length)
        assert (status, "larger than 20 MiB" in found.decode()) == (400, True), length


def test_a_fault_of_the_program_is_said_on_the_terminal_alone(port, capsys, monkeypatch):
    monkeypatch.setattr(play.Player, "_images", lambda *_: [][0])
    status, found, _ = ask(port, "POST", "/draw")
    assert status == 500
    assert json.loads(found)["error"].startswith("this is a fault of the program")
    assert "IndexError" in capsys.readouterr().err


def test_others_than_the_browsers_of_this_machine_are_refused(port):
    for host in (f"127.0.0.1:{port}", "localhost", "dpar.localhost:1", "[::1]:80"):
        assert ask(port, "GET", "/", Host=host)[0] == 200, host
    for host in ("evil.example", f"127.0.0.1.evil.example:{port}", "", "[", "0.0.0.0", "localhost.evil"):
        for method, path in (("GET", "/"), ("POST", "/draw"), ("GET", "/x")):
            assert ask(port, method, path, Host=host)[0] == 403, host
    own = f"127.0.0.1:{port}"
    assert ask(port, "POST", "/draw", Host=own, Origin=f"http://{own}")[0] == 200
    for origin in ("http://evil.example", "null", f"https://{own}", "http://127.0.0.1:1"):
        assert ask(port, "POST", "/draw", Host=own, Origin=origin)[0] == 403, origin


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_script_but_its_own(port):
    status, body, headers = ask(port, "GET", "/")
    shown = body.decode()
    assert status == 200
    assert "http://" not in shown
    assert "https://" not in shown
    assert "//" not in shown.replace("// ", "")
    policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    nonce = policy["script-src"].removeprefix("'nonce-").removesuffix("'")
    assert shown.count(f'<script nonce="{nonce}">') == 1
    assert nonce not in ask(port, "GET", "/")[1].decode()
    assert "Access-Control-Allow-Origin" not in headers
    assert "<b>red" not in shown
    assert "&lt;b&gt;red &amp; roses&lt;/b&gt;</option>" in shown
    assert ask(port, "GET", "/etc/passwd")[0] == ask(port, "POST", "/other")[0] == 404


def test_one_request_is_drawn_after_the_other(port, monkeypatch):
    busy, most, original = 0, 0, play.ImageSampler.draw

    def draw(self, request):
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        result = original(self, request)
        busy -= 1
        return result

    monkeypatch.setattr(play.ImageSampler, "draw", draw)
    found: dict[int, dict[str, Any]] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: draw_by(port, label="0", n="8", seed=i % 2)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert found[0]["images"] == found[2]["images"] != found[1]["images"] == found[3]["images"]


def test_what_keeps_it_from_starting_is_one_line(results, port, tmp_path, capsys):
    folder = str(results / "models/dpar/step1")
    assert cli.main(["play", folder, "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err
    shutil.copytree(folder, tmp_path / "alone")
    with pytest.raises(InputError, match=r"no entropy_model folder in"):
        play.main([str(tmp_path / "alone")])


class Browser:
    """A chromium without a window, told what to do over its debugging pipe."""

    def __init__(self, folder: Path):
        (theirs, ours), (self._answers, other) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        command = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{other}', "-", CHROMIUM, *flags]
        command += ["--disable-background-networking", f"--user-data-dir={folder}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(theirs, other), **quiet)
        os.close(theirs)
        os.close(other)
        self._asked, self._number, self._rest, self._session = ours, 0, b"", None
        self._session = self._attach()

    def _attach(self) -> str:
        found = self.tell("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in found if each["type"] == "page")
        return self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def tell(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of one of the browser's own methods."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        asked |= {} if self._session is None else {"sessionId": self._session}
        os.write(self._asked, json.dumps(asked).encode() + b"\0")
        while True:
            message, separator, rest = self._rest.partition(b"\0")
            if separator:
                self._rest = rest
                answer = json.loads(message)
                if answer.get("id") == self._number:
                    assert "error" not in answer, answer
                    return answer["result"]
                continue
            read = os.read(self._answers, 2**20)
            assert read, "the browser has ended"
            self._rest += read

    def run(self, script: str) -> Any:
        """The value of an expression in the page, when it is there."""
        found = self.tell("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, address: str, width: int) -> None:
        """Opens a page in a window of that many pixels, and waits for what it draws at once."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 700
        )
        self.tell("Page.enable")
        self.tell("Page.navigate", url=address)
        self.run("new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))")
        self.wait()

    def wait(self) -> None:
        """Waits until nothing is being drawn."""
        self.run(
            "new Promise((done) => { const look = () => !document.getElementById('draw').disabled ? done() :"
            " setTimeout(look, 50); look(); })"
        )

    def close(self) -> None:
        """Ends the browser."""
        with suppress(OSError, AssertionError):
            self._session = None
            self.tell("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._asked)
        os.close(self._answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


SAID = "document.getElementById('said').textContent"
CAPTIONS = "[...document.querySelectorAll('figcaption')].map((each) => each.textContent)"
# how many different colours each canvas has: a picture or a map is more than one colour
COLOURS = """[...document.querySelectorAll('figure canvas')].map((each) => {
  const data = new Uint32Array(each.getContext('2d').getImageData(0, 0, each.width, each.height).data.buffer);
  return new Set(data).size; })"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_an_address_with_settings_draws_at_once(browser, port, width):
    expected = draw_by(port, label="1", n="2", cfg="1.5", seed="4")["images"]
    browser.open(f"http://127.0.0.1:{port}/?label=1&n=2&cfg=1.5&seed=4", width)
    assert browser.run(SAID).startswith("2 images in ")
    for image, caption in zip(expected, browser.run(CAPTIONS), strict=True):
        length = f"{image['mean_patch_length']:.2f} tokens per patch"
        assert caption.startswith(f"{NAMES[1]} {image['steps']} steps of 16, {length}, ")
        assert caption.endswith(" GMACs")
    found = browser.run(COLOURS)
    assert len(found) == 4
    assert min(found) > 5
    assert browser.run(OVERFLOW) <= 0
    assert browser.run("document.getElementById('mark').textContent") == "E_Th 3.400"


@pytest.mark.slow
def test_in_a_browser_settings_are_chosen_and_a_picture_is_continued(browser, port, tmp_path):
    browser.open(f"http://127.0.0.1:{port}/", 1280)
    assert browser.run(SAID) == "Nothing is drawn yet."
    options = "[...document.querySelectorAll('select[name=label] option')].map((each) => each.textContent)"
    assert browser.run(options) == ["all 3", *NAMES]
    click = "document.getElementById('draw').click()"
    browser.run(click)
    browser.wait()
    assert [caption.split(" ")[0] for caption in browser.run(CAPTIONS)] == [name.split(" ")[0] for name in NAMES]
    with_frames = browser.run("document.querySelector('figure canvas').toDataURL()")
    browser.run("document.getElementById('frames').click(); new Promise((done) => setTimeout(done, 300))")
    assert browser.run("document.querySelector('figure canvas').toDataURL()") != with_frames
    browser.run("document.forms[0].elements.gate.value = 'small'; document.forms[0].elements.threshold.value = '2.x'")
    browser.run(click)
    browser.wait()
    assert browser.run(SAID) == "threshold is '2.x'; expected a number"
    assert browser.run("document.getElementById('said').getAttribute('role')") == "alert"
    file = tmp_path / "begun.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    document = browser.tell("DOM.getDocument")["root"]["nodeId"]
    node = browser.tell("DOM.querySelector", nodeId=document, selector="#picture")["nodeId"]
    browser.tell("DOM.setFileInputFiles", files=[str(file)], nodeId=node)
    assert browser.run("document.getElementById('kept').hidden") is False
    browser.run("document.forms[0].elements.threshold.value = ''")
    browser.run(click)
    browser.wait()
    found = draw_by(port, file.read_bytes(), label="all", n="3", cfg="2", gate="small", keep_rows="2")["images"]
    captions = browser.run(CAPTIONS)
    assert all(f" {image['steps']} steps" in caption for image, caption in zip(found, captions, strict=True))
    assert "--keep-rows 2" in browser.run("document.getElementById('command').textContent")
    assert "of the gate small" in browser.run("document.getElementById('mark').textContent")


@pytest.mark.slow
def test_in_a_browser_a_model_without_patches_has_pictures_alone(browser, port_of_llamagen):
    browser.open(f"http://127.0.0.1:{port_of_llamagen}/?label=0&n=2", 390)
    assert all("16 steps of 16, 0.0" in caption for caption in browser.run(CAPTIONS))
    assert len(browser.run(COLOURS)) == 2
    assert browser.run(OVERFLOW) <= 0
