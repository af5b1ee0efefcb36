"""How a value that is not what it should be is shown."""

import json


def kind_of(value: object) -> str:
    """`a number (3)`, `a list (["a"])`, `null`."""
    if value is None:
        return "null"
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    name = kinds.get(type(value), type(value).__name__)
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"{name} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


def listed(names: list[str], most: int = 20) -> str:
    """Names as a list that stays short."""
    shown = ", ".join(names[:most]) or "none"
    return f"{shown}, ..." if len(names) > most else shown
