"""The page is self-contained and escapes what it is given."""

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


def test_facts_points_and_code_are_escaped():
    section = Section("s", "s").facts({"<k>": "<v>"}).points(["<p>"]).code("<c>", "<s>").text("<t>")
    text = page("t", "l", [section])
    for inner in "kvpcst":
        assert f"&lt;{inner}&gt;" in text
