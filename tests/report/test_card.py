"""The card of an exported model is Markdown whatever names it holds."""

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
        credits=EVIL,
        picture=None,
    )
    assert "<" not in card
    assert card.count("\n```\n") == 5  # and ```python: three blocks, which nothing ends before their time
    assert "step: 7" in card
    assert "# &lt;script>alert(1)&lt;/script>" in card
