"""Influence by token in the reports: shades by hand, contrast, what is left out, and hostile texts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ArtifactError
from rapidun.report.run.page import write_run_report
from rapidun.report.run.tokens import (
    DARK,
    LIGHT,
    choose_pairs,
    read_token_weights,
    read_tokens,
    shade,
    shade_colours,
    shade_css,
    show_token,
    strongest,
)
from rapidun.report.sweep.details import Texts, influence_details

EVIL = "<script>document.title = 'owned'</script>"


def pair(query: str, train: str, left: list[list[Any]], right: list[list[Any]]) -> dict[str, Any]:
    score = sum(row[1] for row in left)
    return {"query": query, "train": train, "by": "position", "score": score, "query_tokens": left,
            "train_tokens": right}  # fmt: skip


def write(run_dir: Path, value: object) -> Path:
    (run_dir / "influence").mkdir(parents=True, exist_ok=True)
    (run_dir / "influence" / "tokens.json").write_text(json.dumps(value), encoding="utf-8")
    return run_dir


def test_shades_are_fifths_of_the_largest_on_either_side(tmp_path: Path) -> None:
    """Largest 2.0 (training side): 1.0 is 2.5 fifths (so 2), -1.2 is 3, 0.2 a tenth (so 1), 0.19 nothing."""
    left = [["a", 1.0], [" b", -1.2], ["c", 0.2], ["d", 0.19]]
    (one,) = read_tokens(write(tmp_path, [pair("q", "t", left, [["x", 2.0], ["y", -1.81]])]))
    assert [token.shade for token in one.query_tokens] == [2, -3, 1, 0]
    assert [token.shade for token in one.train_tokens] == [5, -5]
    assert shade(0.0, 0.0) == 0
    assert strongest(one.query_tokens, count=2) == [1, 0]


def test_a_token_without_text_counts_to_the_one_that_completes_it(tmp_path: Path) -> None:
    left = [["", 0.25], ["é", 0.5], ["x", 1.0], ["", -0.5]]
    (one,) = read_tokens(write(tmp_path, [pair("q", "t", left, [["", 1.25]])]))
    assert [(token.text, token.score) for token in one.query_tokens] == [("é", 0.75), ("x", 0.5)]
    assert [(token.text, token.score) for token in one.train_tokens] == [("", 1.25)]


def test_a_long_row_keeps_both_ends_and_its_sum(tmp_path: Path) -> None:
    left = [[f" {i}", 1.0 if i % 2 else -0.5] for i in range(1000)]
    (one,) = read_tokens(write(tmp_path, [pair("q", "t", left, [["x", 250.0]])]))
    gap = one.query_tokens[150]
    assert (len(one.query_tokens), gap.left_out, gap.score) == (401, 600, 150.0)
    assert one.query_tokens[-1].text == " 999"
    assert sum(token.score for token in one.query_tokens) == one.score == 250.0
    assert 150 not in strongest(one.query_tokens)


def test_choice_keeps_both_ends_of_a_query(tmp_path: Path) -> None:
    entries = [pair(f"q{i}", train, [["x", 1.0]], [["y", 1.0]]) for i in range(8) for train in ("up", "down")]
    pairs = read_tokens(write(tmp_path, entries))
    assert [(one.query, one.train) for one in choose_pairs(pairs, 5)] == [
        ("q2", "up"), ("q2", "down"), ("q6", "up"), ("q6", "down")]  # fmt: skip
    assert choose_pairs(pairs, 16) == pairs
    assert len(choose_pairs(pairs, 1)) == 1 and choose_pairs(pairs, 0) == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "need a list of pairs, got dict"),
        ([3], "pair 0: need an object, got int"),
        ([pair("q", "t", [["a", 1.0]], [["b"]])], r"pair 0, train_tokens: need \[text, score\], got \['b'\]"),
        ([pair("q", "t", [["a", 1.0]], []) | {"score": None}], "need score, a number, got None"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, value: object, says: str) -> None:
    with pytest.raises(ArtifactError, match=rf"tokens\.json.*{says}"):
        read_tokens(write(tmp_path, value))


def luminance(colour: str) -> float:
    parts = [value / 255 for value in bytes.fromhex(colour[1:])]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("scheme", "ink"), [(LIGHT, "#211f1c"), (DARK, "#ebe8e2")])
def test_text_on_every_shade_has_contrast(scheme: tuple[str, str, str, float], ink: str) -> None:
    """WCAG AA, 4.5; and the ten shades are ten colours."""
    colours = shade_colours(scheme)
    assert len(set(colours.values())) == 10
    for colour in colours.values():
        low, high = sorted((luminance(colour), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour
    assert all(f"--{name}:{colour};" in shade_css() for name, colour in colours.items())


def test_white_space_is_seen_and_markup_is_text() -> None:
    assert show_token(" the") == "·<wbr>the"
    assert show_token("a b  ") == "a b·<wbr>·<wbr>"
    assert show_token("x\n") == "x↵\n"
    assert show_token("\t") == "⇥\t"
    assert show_token("<b>&") == "&lt;b&gt;&amp;"
    assert "U+200D" in show_token("a\u200d")


def test_the_run_page_shows_tokens_without_a_script(run_dir: Path) -> None:
    entries = [pair("f003", "r010", [[" aloha", 1.0], [EVIL, -0.5]], [["x", 0.5]])]
    text = write_run_report(write(run_dir, entries)).read_text(encoding="utf-8")
    assert '<span class="helps-5" title="1.00">·<wbr>aloha</span>' in text
    assert '<span class="harms-2" title="−0.500">&lt;script&gt;document.title' in text
    assert "1 of 1\n    pair shown" in text
    # the rows' own words, cut; their ids are in the files, and where one points at
    assert re.search(r'title="f003, r010">“&lt;script.*” \(forget\), trained on “.*” \(retain\): 0.500<', text)
    assert "<script" not in text and "style=" not in text.partition("Token by token")[2].partition("</section>")[0]


def test_without_the_file_nothing_is_shown(run_dir: Path) -> None:
    (run_dir / "influence" / "tokens.json").unlink(missing_ok=True)
    text = write_run_report(run_dir).read_text(encoding="utf-8")
    assert "Token by token" not in text and "helps-" not in text
    found = influence_details(run_dir, Texts(), num_pairs=9)
    assert found and found["tokens"] is None


def test_details_say_how_many_pairs_there_are(run_dir: Path) -> None:
    entries = [pair(f"f00{i}", "r010", [[" a", 1.0], ["b", -0.5]], [["x", 0.5]]) for i in range(5)]
    found = influence_details(write(run_dir, entries), Texts(), num_pairs=2)
    assert found
    assert found["tokens"]["total"] == 5 and len(found["tokens"]["pairs"]) == 2
    query, train, score, by, left, right = found["tokens"]["pairs"][0]
    # the first 60 characters of the row's own words
    assert query.startswith("“<script>") and query.endswith("…” (forget)") and len(query) == 60 + len("“…” (forget)")
    assert train.endswith("…” (retain)") and "r010" not in train
    assert (score, by) == ("0.500", "what the model did at the token's place")
    assert left == [[[" a", "1.00", 5], ["b", "−0.500", -2]], [0, 1]]
    assert right == [[["x", "0.500", 2]], [0]]


def test_token_weights_are_shaded_by_the_rows_largest(tmp_path: Path) -> None:
    """Largest 2.5: 1.0 is 2 fifths, 0.2 nothing; a token without text counts to the next one that completes it."""
    (tmp_path / "unlearning").mkdir()
    rows = {
        "f1": {"tokens": [EVIL, " b", "", "é"], "weights": [2.5, 1.0, 0.1, 0.1]},
        "f2": {"tokens": ["x"], "weights": [1.0]},
    }
    file = tmp_path / "unlearning" / "token_weights.json"
    file.write_text(json.dumps({"token_weights": "influence", "rows": rows}), encoding="utf-8")
    found = read_token_weights(tmp_path, 1)
    assert found is not None and found.how == "influence" and found.number == 2
    [(name, tokens)] = found.rows
    assert name == "f1" and [(t.text, t.score, t.shade) for t in tokens] == [
        (EVIL, 2.5, 5),
        (" b", 1.0, 2),
        ("é", 0.2, 0),
    ]
    page = write_run_report(tmp_path).read_text(encoding="utf-8")
    assert "Weights of tokens" in page and "1.0" in page and EVIL not in page
    assert read_token_weights(tmp_path / "nowhere", 1) is None
    file.write_text(json.dumps({"rows": {"f1": {"tokens": ["x"], "weights": []}}}), encoding="utf-8")
    with pytest.raises(ArtifactError, match="row f1: need tokens and weights"):
        read_token_weights(tmp_path, 1)
