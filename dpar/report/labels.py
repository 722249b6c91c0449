"""Labels of axes and levels in figures and tables."""

from collections.abc import Sequence

import pandas as pd


def level(key: str, value: object, part: pd.DataFrame) -> str:
    """A setting's value for people; a calibrated threshold in nats, from the rows `part` that have it."""
    if key.endswith("p_avg") and "threshold" in part:
        return f"{part['threshold'].iloc[0]:.3f}\n($P_{{avg}}$ {value})"
    return str(value)


def label(keys: Sequence[str], frame: pd.DataFrame, place: int) -> str:
    """Short label of the row at `place`: its values of the settings `keys`."""
    row = frame.iloc[[place]]
    given = [key for key in keys if row[key].notna().all()]
    return ", ".join(f"{symbol(key)} {level(key, row[key].iloc[0], row).partition(chr(10))[0]}" for key in given)


def symbol(key: str) -> str:
    """The paper's symbol of a setting."""
    name = key.rpartition(".")[2]
    return {"p_avg": "$E_{Th}$", "threshold": "$E_{Th}$", "max_length": "$P_{max}$"}.get(name, name)


def axis_label(key: str) -> str:
    """The symbol of a setting, with its unit."""
    unit = {"$E_{Th}$": " (nats)", "$P_{max}$": " (tokens)"}
    return symbol(key) + unit.get(symbol(key), "")
