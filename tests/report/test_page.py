"""The page is self-contained and escapes what it is given."""

import html
from html.parser import HTMLParser

import pandas as pd

from dpar.report.page import Section, page


def test_the_page_holds_its_pictures_and_loads_nothing():
    section = (
        Section("Tables & more", "tables").picture(b"\x89PNG", 'a "caption"').table(pd.DataFrame({"a<b": ["1 < 2"]}))
    )
    text = page("Title", "Lead", [section])
    assert "data:image/png;base64,iVBORw==" in text
    assert "a&lt;b" in text
    assert "1 &lt; 2" in text
    assert 'href="#tables"' in text
    assert 'id="tables"' in text
    assert 'src="http' not in text
    assert "<script" not in text


def test_a_picture_opens_at_full_size_without_a_script():
    text = page("t", "l", [Section("s", "cost").text("a").picture(b"", "c")], verdict=["<worse>"], made="<today>")
    assert '<figure id="cost-2"><a class="close" href="#cost">close</a>' in text
    assert '<a class="open" href="#cost-2" title="full size"><img' in text
    assert "figure:target img { max-width: none; }" in text
    assert '<p class="verdict">&lt;worse&gt;</p>' in text
    assert '<p class="made">&lt;today&gt;</p>' in text


def test_facts_points_and_code_are_escaped():
    section = Section("s", "s").facts({"<k>": "<v>"}).points(["<p>"]).code("<c>", "<s>").text("<t>")
    text = page("t", "l", [section])
    for inner in "kvpcst":
        assert f"&lt;{inner}&gt;" in text


EVIL = "</script><script>alert('x')</script><img src=x onerror=\"alert(1)\">"


def test_names_reach_no_page_as_html():
    section = Section(EVIL, EVIL).facts({EVIL: EVIL}).points([EVIL]).code(EVIL, EVIL).text(EVIL)
    section.table(pd.DataFrame({EVIL: [EVIL]}, index=[EVIL]), [f'metrics/{EVIL}" onclick="x']).picture(b"", EVIL)
    text = page(EVIL, EVIL, [section])
    tags = Tags()
    tags.feed(text)
    assert not tags.found & {"script", "iframe", "object", "link", "base"}
    assert not {name for name in tags.attributes if name.startswith("on")}
    assert all(source.startswith("data:image/png") for source in tags.sources)
    assert tags.text.count(EVIL) >= 10


def test_the_page_forbids_what_it_never_needs():
    text = page("t", "l", [Section("s", "s")])
    assert """content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">""" in text
    assert text.index("Content-Security-Policy") < text.index("<style>")


class Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self):
        super().__init__()
        self.found, self.attributes, self.sources, self.text = set(), set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value for name, value in attrs if name == "src"]

    def handle_data(self, data):
        self.text += data


def test_texts_keep_their_lines_and_rows_their_links():
    code, frame = '{\n  "a": [1]\n}\n', pd.DataFrame({"a": ["one", "two", "three"], "n": [1, 2, 3]})
    text = page("t", "l", [Section("s", "s").code(code, "settings").table(frame, [None, "metrics/a&b.json"])])
    assert html.escape(code).replace("&quot;", "&#34;") in text
    assert '<td><a href="metrics/a&amp;b.json">two</a></td><td>2</td>' in text
    assert "<td>one</td><td>1</td>" in text
    assert "<td>three</td><td>3</td>" in text
