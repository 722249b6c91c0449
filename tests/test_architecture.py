"""ARCHITECTURE.md and the tree say the same: every part of the paper has its place, every departure its line."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
MAP = TEXT.partition("## From the paper to the code")[2].partition("\n## ")[0]


def numbers(kind: str) -> set[int]:
    """The equations, algorithms, tables or figures that the map's first column names."""
    found: set[int] = set()
    for cell in re.findall(r"^\| ([^|]+) \|", MAP, re.MULTILINE):
        for listed in re.findall(rf"{kind}s?\.? (\d+[ab]?(?:(?:, |-)\d+[ab]?)*)", cell):
            for part in listed.split(", "):
                first, _, last = part.partition("-")
                found |= set(range(int(first.rstrip("ab")), int((last or first).rstrip("ab")) + 1))
    return found


@pytest.mark.parametrize(("kind", "last"), [("Eq", 9), ("Algorithm", 3), ("Table", 12), ("Figure", 12)])
def test_every_part_of_the_paper_is_in_the_map(kind, last):
    assert numbers(kind) == set(range(1, last + 1))


def test_each_departure_is_listed_and_stands_where_it_happens():
    listed = set()
    for bullet in re.findall(r"^- (`[^:]*`):", TEXT.partition("Of this code from the paper")[2], re.MULTILINE):
        listed |= set(re.findall(r"`([^`]+)`", bullet))
    sources = [*ROOT.glob("dpar/**/*.py"), *ROOT.glob("config/*.yaml")]
    stated = {str(path.relative_to(ROOT)) for path in sources if "Deviation:" in path.read_text()}
    assert len(stated) > 5
    assert listed == stated
