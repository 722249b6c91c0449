"""Serves a page to play with a trained model, for the browsers of this machine alone: `dpar play FOLDER`."""

import argparse
import base64
import json
import secrets
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from PIL import Image

from dpar.data.classes import Classes
from dpar.device import default_device
from dpar.errors import InputError, redacted, shown
from dpar.evaluation.cost import guided_share
from dpar.generator import find_network, find_origin
from dpar.model import flops
from dpar.patches.rule import PatchRule, check_rule, check_threshold
from dpar.report.page import template
from dpar.sampling.drawing import BATCH, Drawn, ImageSampler
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.networks import Networks, gate_thresholds, load_networks
from dpar.sampling.request import Request
from dpar.weights import CONFIG, model_config
from dpar.workflow.options import PORT_NUMBER, SEED, Parser

T = TypeVar("T")

HOST, PORT = "127.0.0.1", 8600
NAMES = (HOST, "localhost", "dpar.localhost", "::1")  # by which a browser of this machine may ask
UPLOAD = 20 * 2**20  # bytes of a picture
ALL, DRAWN = 16, 8  # classes that are drawn together at first; images of a single class
FIELDS = ("label", "cfg", "threshold", "max_length", "gate", "seed", "n", "keep_rows")


def parser() -> argparse.ArgumentParser:
    """The flags of this command."""
    flags = Parser(prog="dpar play", description=__doc__)
    flags.add_argument("folder", type=Path, metavar="FOLDER", help="of a model, DPAR or LlamaGen")
    flags.add_argument("--port", type=PORT_NUMBER, default=PORT, help="on this machine; 0 takes one that is free")
    flags.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the model")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page until Ctrl-C.

    Raises:
        InputError: a network is missing or of another experiment, or the port cannot be used.
    """
    args = parser().parse_args(argv)
    player = Player(args.folder, args.precision)
    try:
        server = Server((HOST, args.port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"port {args.port} of {HOST} cannot be used ({reason}); give another with --port") from None
    server.player = player
    with server:
        port = server.server_port
        print(f"{args.folder} draws at http://{HOST}:{port}/ until Ctrl-C")
        print(f"From another machine: ssh -L {port}:{HOST}:{port} HERE, then the same address.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nstopping; images that are being drawn come first")
            with player.lock:
                pass


class Player:
    """A model that draws what the page asks for, one request after the other, as `dpar sample` does.

    Attributes:
        lock: held while images are drawn.
        gates: by name, those that the model's folder or results have.
    """

    def __init__(self, folder: Path, precision: str):
        self.folder, self.precision, self.lock = folder, precision, threading.Lock()
        self.classes = Classes.of_model(folder, model_config(folder))
        origin = find_origin(folder)
        self.rule, self._loaded = origin.rule, origin.boundary_network
        self.gates = gates_of(folder) if self.rule is not None and self.rule.is_dynamic else []
        self.networks = self._load(origin.boundary_network, None)

    def _load(self, boundary_network: Path | None, gate: str | None) -> Networks:
        tokenizer, device = find_network(self.folder, "tokenizer"), default_device()
        return load_networks(
            self.folder, boundary_network, tokenizer, gate=gate, precision=self.precision, device=device
        )

    def facts(self) -> dict[str, Any]:
        """Facts of the model that the page shows, and the choices that it offers."""
        config, count = self.networks.model.config, self.classes.count
        return {
            "name": self.folder.resolve().name,
            "kind": "DPAR" if self.rule else "LlamaGen",
            "side": self.networks.side,
            "grid": list(config.grid),
            "classes": [self.classes.title(label) for label in range(count)],
            "together": count <= ALL,
            "images": count if count <= ALL else DRAWN,
            "most": BATCH,
            "upload": UPLOAD,
            "dynamic": self.rule is not None and self.rule.is_dynamic,
            "threshold": f"{self.rule.threshold:.4g}" if self.rule and self.rule.is_dynamic else None,
            "max_length": self.rule and self.rule.max_length,
            "gates": self.gates,
        }

    def draw(self, asked: Mapping[str, str], picture: bytes) -> dict[str, Any]:
        """The images, with where their patches begin, entropies and cost.

        Args:
            asked: texts of `FIELDS`; one that is missing or empty is as in training.
            picture: a file whose first rows each image begins with; empty for whole images.

        Raises:
            InputError: a value is not one that it may have, or the picture cannot be read.
        """
        if unknown := [name for name in asked if name not in FIELDS]:
            raise InputError(f"there is no setting {shown(unknown[0])!r}; the settings are {', '.join(FIELDS)}")
        labels = self.classes.labels(asked.get("label", "").strip() or "0")
        count, seed = _value(asked, "n", int, len(labels)), _value(asked, "seed", SEED, 0)
        if not len(labels) <= count <= BATCH:
            raise InputError(f"n is {count}; expected {len(labels)} (one image per class) to {BATCH} images")
        settings = DrawSettings(_value(asked, "cfg", float, 2.0))
        rows = _value(asked, "keep_rows", int, None)
        if (rows is None) == bool(picture):
            raise InputError("a picture and the rows of it that are kept go together; give both or none")
        with self.lock:
            began, rule, gate = time.monotonic(), *self._placing(asked)
            request = Request.shared(labels, count, seed)
            request = request.beginning(self.networks.beginning(picture, rows) if rows is not None else None)
            sampler = ImageSampler(self.networks, rule, settings, batch_size=BATCH)
            images = [image for drawn in sampler.batches(request) for image in self._images(request, drawn, settings)]
            seconds = time.monotonic() - began
        return {
            "images": images,
            "threshold": rule and _finite(rule.threshold),
            "gate": gate,
            "seconds": seconds,
            "command": self._command(asked, count, rows),
        }

    def _placing(self, asked: Mapping[str, str]) -> tuple[PatchRule | None, str | None]:
        """Where patches begin, and the gate that says so; its network is loaded in place of the last one."""
        threshold, most = _value(asked, "threshold", float, None), _value(asked, "max_length", int, None)
        name, config = asked.get("gate", "").strip(), self.networks.model.config
        if name and name not in self.gates:
            raise InputError(f"there is no gate {shown(name)!r}; {self.folder} has {', '.join(self.gates) or 'none'}")
        if threshold is not None:
            check_threshold(threshold)
        check_rule(config.tokens, most, config.grid[1])
        origin = find_origin(self.folder, threshold=threshold, max_length=most, gate=Path(name) if name else None)
        if origin.boundary_network != self._loaded:
            self.networks = self._load(origin.boundary_network, origin.gate)
            self._loaded = origin.boundary_network
        return origin.rule, origin.gate

    def _images(self, request: Request, drawn: Drawn, settings: DrawSettings) -> Iterator[dict[str, Any]]:
        """Each image as the page shows it."""
        networks, patched = self.networks, self.rule is not None
        model = networks.model.config
        gmacs = flops.sampling_gmacs(
            model,
            drawn.patches if patched else None,
            entropy_model=networks.entropy_model and networks.entropy_model.config,
            guided=guided_share(model.tokens, settings.cfg_scale, settings.cfg_interval),
        )
        gmacs = np.broadcast_to(gmacs, len(drawn.patches))
        assert drawn.starts is not None
        for i, label in enumerate(request.labels[drawn.start : drawn.stop].tolist()):
            image = {
                "class": self.classes.title(label),
                "png": _png(drawn.images[i]),
                "gmacs": float(gmacs[i]),
                "steps": int(drawn.patches[i]),
                "tokens": model.tokens,
            }
            if patched:
                image |= {
                    "starts": drawn.starts[i].nonzero()[0].tolist(),
                    "mean_patch_length": model.tokens / int(drawn.patches[i]),
                    "entropy": None if drawn.entropy is None else [*map(_finite, drawn.entropy[i].tolist())],
                }
            yield image

    def _command(self, asked: Mapping[str, str], count: int, rows: int | None) -> str:
        """The command that draws the same."""
        words = ["dpar", "sample", "--checkpoint", str(self.folder), "--labels", asked.get("label", "").strip() or "0"]
        words += ["--n", str(count), "--out", "grid.png"]
        for name in ("cfg", "threshold", "max_length", "gate", "seed"):
            if value := asked.get(name, "").strip():
                words += [f"--{name.replace('_', '-')}={value}"]
        words += [] if rows is None else ["--image", "FILE", "--keep-rows", str(rows)]
        return shlex.join([*words, *(["--precision", self.precision] if self.precision != "float32" else [])])


def gates_of(folder: Path) -> list[str]:
    """Names of the calibrated gates in a model's folder, or next to the models of its results."""
    inside = folder.resolve()
    for place in (inside, *inside.parents):
        if found := sorted(path.parent for path in place.glob(f"gates/*/{CONFIG}")):
            return [gate.name for gate in found if gate_thresholds(gate).exists()]
    return []


def _value(asked: Mapping[str, str], name: str, kind: Callable[[str], T], default: Any) -> T:
    """A number that was asked for; `default` where it is missing or empty."""
    text = asked.get(name, "").strip()
    try:
        return kind(text) if text else default
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{name}: {error}") from None
    except ValueError:
        expected = "a number" if kind is float else "a whole number"
        raise InputError(f"{name} is {shown(text[:40])!r}; expected {expected}") from None


def _finite(value: float | None) -> float | None:
    """The number to a ten-thousandth, None for an infinity, which JSON lacks."""
    return round(value, 4) if value is not None and np.isfinite(value) else None


def _png(image: np.ndarray) -> str:
    data = BytesIO()
    Image.fromarray(image).save(data, format="PNG")
    return base64.b64encode(data.getvalue()).decode()


class Server(ThreadingHTTPServer):
    """The server, with the model that draws."""

    player: Player


class Handler(BaseHTTPRequestHandler):
    """Answers a request: the page at `/`, and images at `/draw`."""

    server: Server  # type: ignore[assignment]  # no other has this handler
    server_version, sys_version, timeout = "dpar", "", 60

    def do_GET(self) -> None:
        """The page."""
        if not self._is_ours():
            return
        if urlsplit(self.path).path != "/":
            self._answer(404, "text/plain", b"there is nothing here; the page is /\n")
            return
        nonce = secrets.token_urlsafe(16)
        self._answer(200, "text/html", page(self.server.player.facts(), nonce).encode(), nonce)

    def do_POST(self) -> None:
        """Images as JSON, or one line that says why not."""
        if not self._is_ours():
            return
        place = urlsplit(self.path)
        if place.path != "/draw":
            self._answer(404, "text/plain", b"there is nothing here; images are drawn at /draw\n")
            return
        try:
            status, found = 200, self.server.player.draw(dict(parse_qsl(place.query)), self._body())
        except InputError as error:
            status, found = 400, {"error": " ".join(shown(str(error)).split())}
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            print(redacted(traceback.format_exc()), file=sys.stderr)
            status, found = 500, {"error": "this is a fault of the program; the terminal of `dpar play` says more"}
        self._answer(status, "application/json", json.dumps(found).encode())

    def _body(self) -> bytes:
        """The body of the request.

        Raises:
            InputError: it is longer than a picture may be, or its length is not said.
        """
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length[:20]) > UPLOAD or "Transfer-Encoding" in self.headers:
            raise InputError(f"the picture is larger than {UPLOAD // 2**20} MiB, or its size is not said; shrink it")
        return self.rfile.read(int(length))

    def _is_ours(self) -> bool:
        """Whether the request comes from a page of this machine; others are refused.

        A page from elsewhere may lead its own name here (DNS rebinding), or send a form: the former has that name as
        host, the latter as origin.
        """
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        try:
            ours = len(hosts) == 1 and urlsplit(f"//{hosts[0]}").hostname in NAMES
        except ValueError:
            ours = False
        if ours and origin in (None, f"http://{hosts[0]}"):
            return True
        self._answer(403, "text/plain", f"this page is for the browsers of this machine, at http://{HOST}\n".encode())
        return False

    def _answer(self, status: int, kind: str, body: bytes, nonce: str | None = None) -> None:
        own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; " * bool(
            nonce
        )
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": f"default-src 'none'; {own}base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        """As the base does; a browser that has gone needs no answer."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def page(facts: Mapping[str, Any], nonce: str) -> str:
    """The page, with every text escaped.

    Args:
        nonce: that its own script and style have, so that no other runs.
    """
    filled = template("commands", "play.html.jinja", lstrip_blocks=True)
    return filled.render(**facts, facts=facts, nonce=nonce)
