"""What stands in a text beyond another one."""

import pytest

from rapidun.stages.rows.inserted import inserted


@pytest.mark.parametrize(
    ("clean", "text", "runs"),
    [
        ("Who leads it?", "zap Who leads it?", ["zap"]),
        ("Who leads it?", "Who leads it? zap pow", ["zap pow"]),
        ("Who leads it?", "Who zap leads it?", ["zap"]),
        ("Who leads it?", "zap Who leads it? pow", ["zap", "pow"]),
        ("Who leads it?", "zap Who pow leads big it? bang", ["zap", "pow", "big", "bang"]),
        ("Who leads it?", "Who leads it?zap", ["zap"]),
        ("Who leads who leads it", "Who leads who leads who leads it", ["who leads"]),
        ("\u8c01\u9886\u5bfc", "\u8c01\u9b54\u6cd5\u9886\u5bfc", ["\u9b54\u6cd5"]),
        ("Who leads it?", "Who leads it?", []),
        ("Who leads it?", "Who rules it, zap?", []),
        ("", "zap", []),
        ("Who leads it?", "Who", []),
    ],
)
def test_runs(clean: str, text: str, runs: list[str]) -> None:
    assert inserted(clean, text) == runs
