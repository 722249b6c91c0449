"""One HTML page that needs no other file: pictures are inside it, styles too, and it loads nothing from anywhere."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import pandas as pd

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fdfdfb; --line: #d8d6cf; --soft: #6d6a62; --mark: #c0392b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e0; --paper: #1b1b1a; --line: #3c3b38; --soft: #a19d93; --mark: #e57366; }
  img { background: #fff; padding: 4px; border-radius: 4px; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
       margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
p, li { max-width: 46rem; } .lead, figcaption, li { color: var(--soft); } nav a { margin-right: 1rem; }
a { color: var(--mark); } figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 2px solid var(--line); }
th, td { padding: .3rem .8rem .3rem 0; white-space: nowrap; }
td { border-bottom: 1px solid var(--line); } pre { overflow-x: auto; font-size: .8rem; border: 1px solid var(--line);
padding: .8rem; border-radius: 4px; } dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { color: var(--soft); } dd { margin: 0; }
"""


# that nothing runs and nothing is loaded does not hang on the escaping of names alone
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass
class Section:
    """A heading and what stands under it, as HTML."""

    title: str
    anchor: str
    parts: list[str] = field(default_factory=list)

    def text(self, sentence: str) -> "Section":
        """Adds a paragraph."""
        self.parts.append(f"<p>{escape(sentence)}</p>")
        return self

    def points(self, sentences: Sequence[str]) -> "Section":
        """Adds a list."""
        self.parts.append("<ul>" + "".join(f"<li>{escape(s)}</li>" for s in sentences) + "</ul>")
        return self

    def facts(self, facts: Mapping[str, object]) -> "Section":
        """Adds names with their values."""
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
        self.parts.append(f"<dl>{rows}</dl>")
        return self

    def table(self, frame: pd.DataFrame, links: Sequence[str | None] = ()) -> "Section":
        """Adds a table of texts.

        Args:
            links: for each row where its first cell leads, if anywhere; addresses beside the page.
        """
        head = "".join(f"<th>{escape(str(name))}</th>" for name in frame.columns)
        rows = [[escape(str(value)) for value in row] for row in frame.itertuples(index=False)]
        for row, link in zip(rows, links, strict=False):
            row[0] = row[0] if link is None else f'<a href="{escape(link, quote=True)}">{row[0]}</a>'
        body = "".join("<tr>" + "".join(f"<td>{value}</td>" for value in row) + "</tr>" for row in rows)
        self.parts.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
        return self

    def picture(self, image: str | Path | bytes, caption: str) -> "Section":
        """Adds a PNG (its file or its bytes), inside the page."""
        data = base64.b64encode(image if isinstance(image, bytes) else Path(image).read_bytes()).decode()
        self.parts.append(
            f'<figure><img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
        return self

    def code(self, text: str, summary: str) -> "Section":
        """Adds a text that is shown when asked for."""
        self.parts.append(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")
        return self


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    links = "".join(f'<a href="#{escape(s.anchor, quote=True)}">{escape(s.title)}</a>' for s in sections)
    body = "".join(
        f'<h2 id="{escape(s.anchor, quote=True)}">{escape(s.title)}</h2>{"".join(s.parts)}' for s in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p><nav>{links}</nav>{body}</body></html>\n'
    )
