"""Files of JSON lines that grow while a process runs: a kill or a full disk may cut the last line.

What was cut never spoils what comes after it: a line is appended on a line of its own, and reading leaves out what is
no JSON object.
"""

import json
from pathlib import Path
from typing import Any

from rapidun.base.files import write_atomic


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one line by one write call, after the end of a line that was cut."""
    line = json.dumps(value) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(line.encode())


def read_grown(path: Path, *keys: str) -> tuple[list[dict[str, Any]], int]:
    """The objects that have these keys, in order, and how many lines are damaged; nothing where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    kept = [row for line in lines if (row := _read(line, keys)) is not None]
    return kept, sum(bool(line.strip()) for line in lines) - len(kept)


def mend(path: Path, *keys: str) -> str:
    """Drop the damaged lines of a file that nobody else writes; returns what to say of it, empty where it is whole."""
    rows, damaged = read_grown(path, *keys)
    if not damaged:
        return ""
    good = [line for line in path.read_bytes().split(b"\n") if _read(line, keys) is not None]
    write_atomic(path, lambda part: part.write_bytes(b"".join(line + b"\n" for line in good)))
    lines = f"{damaged} line that was cut or damaged is" if damaged == 1 else f"{damaged} damaged lines are"
    return f"{path}: {lines} left out, {len(rows)} stay"


def _read(line: bytes, keys: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # bytes that are no UTF-8 are the former
        return None
    return row if isinstance(row, dict) and row.keys() >= set(keys) else None
