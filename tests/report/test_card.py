"""The card of an exported model is Markdown whatever names it holds."""

from dpar.data.classes import Classes
from dpar.report.card import model_card

EVIL = "<script>alert(1)</script>\n```\n<img src=x>"


def test_names_and_settings_are_no_html():
    card = model_card(
        EVIL,
        {
            "kind": "dpar",
            "model": {"grid": [4, 4], "num_classes": 3},
            "provenance": {"experiment": EVIL, "patchify": {"strategy": "dynamic"}, "step": 7},
        },
        parameters=1234,
        side=8,
        measured={},
        likelihood=None,
        origin=[f"images: {EVIL}"],
        classes=Classes(3, [EVIL, "```", None]),
        credits=EVIL,
        picture=None,
    )
    assert "<" not in card
    assert card.count("\n```\n") == 7  # and ```python: four blocks, which nothing ends before their time
    assert "step: 7" in card
    assert "\n1 ```\n2 class 2\n" in card
    assert "--labels 0,1 " in card
    assert "# &lt;script>alert(1)&lt;/script>" in card
