"""One self-contained HTML page: figures and styles are inside it, and it loads nothing."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from dpar.data.classes import Classes
from dpar.errors import InputError
from dpar.experiment.settings import Experiment


@dataclass
class Section:
    """A heading and what stands under it: kinds of parts, as the template knows them, with what they show."""

    title: str
    anchor: str
    parts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def _add(self, kind: str, **part: Any) -> "Section":
        self.parts.append((kind, part))
        return self

    def text(self, sentence: str) -> "Section":
        """Adds a paragraph."""
        return self._add("text", sentence=sentence)

    def points(self, sentences: Sequence[str]) -> "Section":
        """Adds a list."""
        return self._add("points", sentences=sentences)

    def facts(self, facts: Mapping[str, object]) -> "Section":
        """Adds names with their values."""
        return self._add("facts", facts=facts)

    def table(self, frame: pd.DataFrame, links: Sequence[str | None] = ()) -> "Section":
        """Adds a table of texts.

        Args:
            links: for each row the target of its first cell, if any, relative to the page.
        """
        return self._add("table", columns=frame.columns, rows=[*zip_longest(frame.itertuples(index=False), links)])

    def picture(self, image: str | Path | bytes, caption: str) -> "Section":
        """Adds a PNG (its file or its bytes), inside the page."""
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        return self._add("picture", data=base64.b64encode(data).decode(), caption=caption)

    def code(self, text: str, summary: str) -> "Section":
        """Adds a text that is shown when asked for."""
        return self._add("code", code=text, summary=summary)


def page(title: str, lead: str, sections: Sequence[Section], *, verdict: Sequence[str] = (), made: str = "") -> str:
    """The whole page, with every text escaped.

    Args:
        lead: what was run.
        verdict: what came out, a paragraph each.
        made: when, by which code, where and in which time.
    """
    made_of = {"title": title, "lead": lead, "sections": sections, "verdict": verdict, "made": made}
    return template("report", "page.html.jinja", keep_trailing_newline=True).render(made_of)


def template(package: str, name: str, **spaces: Any) -> jinja2.Template:
    """A template of a package of `dpar`: every text is escaped, and one that is not given is an error.

    Args:
        spaces: what becomes of white space, as Jinja has it.
    """
    loader = jinja2.PackageLoader("dpar", package)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, **spaces
    )
    return environment.get_template(name)


def lead(experiment: Experiment, classes: Classes) -> str:
    """One sentence on what was run."""
    rows, columns = experiment.grid
    named = f" ({classes.listed(10)})" if classes.names else ""
    return (
        f"{experiment.images.num_classes} classes{named} at {experiment.images.resolution} px as {rows} x {columns} "
        f"tokens of {experiment.tokenizer.vocab_size} codes; "
        "tokens whose next-token entropy is low are merged into patches of variable length."
    )


def caption(folder: Path, name: str) -> str:
    """Caption of the figure `name`, here and in Snakemake's own report.

    Raises:
        InputError: the figure has no caption.
    """
    path = folder / f"{name}.rst"
    if not path.is_file():
        raise InputError(f"{path} is missing: each figure has its caption there")
    return " ".join(path.read_text("utf-8").split())
