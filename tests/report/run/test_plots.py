"""Plots are well-formed SVG that takes its colours from the page."""

import base64
import io
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from rapidun.report.run import plots, tiles
from rapidun.report.run.tiles import tile_means

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def drawn() -> dict[str, str]:
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=shape) for shape in ((3, 3), (3, 5), (5, 3), (5, 5))]
    points = [(float(i), 1.0 + i) for i in range(20)]  # spans more than a factor of 10
    return {
        "weights": plots.weight_histogram([0.2, 0.7, 1.0, 3.0, 3.0], group="forget", low=0.2, high=3.0),
        "map": plots.influence_map(*blocks),
        "curves": plots.curves({"forget_loss": points, "retain_loss": points[::-1]}, title="Terms"),
        "log": plots.curves({"grad_norm": points}, title="Gradient norm", log=True),
        "bars": plots.family_bars([("seen triggers", "A_surface", 0.97, 0.0), ("unseen", "D", 0.1, None)], title="ASR"),
        "trade-off": plots.trade_off({"seen": [(0, 1.0, 0.9), (5, 2.0, 0.1)]}, title="Trade-off", across="nats"),
    }


@pytest.mark.parametrize("name", ["weights", "map", "curves", "log", "bars"])
def test_a_plot_is_one_svg_without_fixed_colours_or_fonts(name: str) -> None:
    svg = drawn()[name]
    root = ElementTree.fromstring(svg)  # well-formed
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= set(re.findall(r"var\(--\w+, (#[0-9a-f]{6})", svg))
    assert "font-family: '" not in svg
    assert "<style" not in svg and "<script" not in svg
    assert not re.search(r'(href|src)="(?!#|data:)', svg)


def test_plots_are_the_same_every_time_and_share_no_id() -> None:
    first, second = drawn(), drawn()
    assert first == second
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in first.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))
    for svg in first.values():
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
        assert {a or b for a, b in used} <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_names_are_text_whatever_they_hold() -> None:
    """Dollar signs are no mathematics, tags are no markup, and a missing glyph is no warning."""
    name = "<b>$x$ -->你"
    assert name in texts(plots.family_bars([("seen", name, 0.5, 0.5)], title="<i>"))
    assert name in texts(plots.curves({name: [(0, 1.0)], "b": [(0, 2.0)]}, title="t"))


def test_bars_say_their_values() -> None:
    shown = texts(drawn()["bars"])
    assert {"97 %", "0 %", "10 %", "A_surface", "seen triggers"} <= set(shown)


def test_a_logarithmic_axis_only_where_the_values_span_a_factor_of_ten() -> None:
    def labels(top: float) -> set[str]:
        return set(texts(plots.curves({"x": [(0, 1.0), (1, top)]}, title="t", names=False, log=True)))

    assert {"1", "10", "100"} <= labels(300.0)
    assert "2.5" in labels(3.0) or "2.50" in labels(3.0)


def test_shares_keep_their_whole_range() -> None:
    shown = texts(plots.curves({"x": [(0, 0.5), (1, 0.51)]}, title="t", shares=True))
    assert {"0.0", "1.0"} <= set(shown)


def test_bounds_are_drawn_where_given() -> None:
    assert {"w_min", "w_max", "mean"} <= set(texts(drawn()["weights"]))
    assert "w_min" not in texts(plots.weight_histogram([1.0] * 4, group="retain"))


def test_heat_pixels() -> None:
    """Zero is transparent, the limit is opaque, half of it is half opaque; beyond the limit nothing changes."""
    pixels = plots.heat_pixels([[0.0, 2.0, -1.0, 9.0]], 2.0)
    assert pixels.shape == (1, 4, 4)
    assert list(pixels[0, :, 3]) == [0, 255, 128, 255]
    assert tuple(pixels[0, 1, :3]) == plots.HELPFUL
    assert tuple(pixels[0, 2, :3]) == plots.HARMFUL


def test_the_map_holds_the_blocks_in_their_places() -> None:
    """ff = 1, fr = -1, rf = 0, rr = 1 on 2 + 3 rows: the picture in the SVG has one colour per block."""
    from PIL import Image

    svg = plots.influence_map(np.ones((2, 2)), -np.ones((2, 3)), np.zeros((3, 2)), np.ones((3, 3)))
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(found))).convert("RGBA"))
        for found in re.findall(r"base64,([^\"]+)", svg)
    ]
    picture = next(p for p in pictures if p.shape[:2] == (5, 5))
    if tuple(picture[0, 0, :3]) != plots.HELPFUL or picture[4, 0, 3] != 0:
        picture = picture[::-1]  # the file may hold the rows from the bottom up
    assert tuple(picture[0, 0]) == (*plots.HELPFUL, 255)
    assert tuple(picture[1, 4]) == (*plots.HARMFUL, 255)
    assert picture[4, 0, 3] == 0
    assert tuple(picture[4, 4]) == (*plots.HELPFUL, 255)


def in_blocks(scores: Any, rows: int, columns: int) -> dict[str, Any]:
    return {
        "ff": scores[:rows, :columns], "fr": scores[:rows, columns:], "rf": scores[rows:, :columns],
        "rr": scores[rows:, columns:],
    }  # fmt: skip


def test_tiles_are_means_within_groups() -> None:
    """1,000 rows, 100 of them forget: 480 cells, 48 of them forget; constant blocks stay what they are."""
    scores = np.zeros((1000, 1000))
    scores[:100, :100] = 1.0
    small = tile_means(in_blocks(scores, 100, 100), max_cells=480)
    assert small.shape == (480, 480)
    assert np.all(small[:48, :48] == 1.0)
    assert small.sum() == 48 * 48
    assert np.array_equal(tile_means(in_blocks(scores[:10, :10], 3, 3), max_cells=480), scores[:10, :10])


@pytest.mark.parametrize("numbers", [1, 961 * 3, 1 << 22])
def test_tiles_equal_a_slow_mean_however_many_rows_are_in_memory(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr(tiles, "SLICE_NUMBERS", numbers)
    scores = np.random.default_rng(0).normal(size=(961, 961))
    small = tile_means(in_blocks(scores, 1, 1), max_cells=480)  # a group of one row keeps a cell
    assert small[0, 0] == scores[0, 0]
    starts = [1 + 960 * cell // 480 for cell in range(480)]
    assert small.shape == (481, 481)
    assert small[2, 3] == pytest.approx(scores[starts[1] : starts[2], starts[2] : starts[3]].mean())
    assert small.mean() == pytest.approx(scores.mean(), abs=2e-3)


def test_a_map_without_retain_rows_or_scores() -> None:
    empty = np.zeros((0, 0))
    svg = plots.influence_map(np.zeros((2, 2)), np.zeros((2, 0)), np.zeros((0, 2)), empty)
    assert "2 by 2" in svg


def test_a_map_of_queries_that_are_other_rows() -> None:
    svg = plots.influence_map(np.ones((2, 5)), np.ones((2, 1)), np.ones((3, 5)), np.ones((3, 1)))
    assert "5 by 6" in svg and all(words in svg for words in ("forget (5)", "retain (1)", "forget (2)", "retain (3)"))
    scores = np.random.default_rng(1).normal(size=(1000, 600))
    small = tile_means(in_blocks(scores, 100, 1), max_cells=480)
    assert small.shape == (480, 480) and small[0, 0] == pytest.approx(scores[:2, 0].mean())


def test_the_trade_off_is_a_path_through_the_steps() -> None:
    drawn = plots.trade_off(
        {"ASR, seen triggers": [(0, 1.0, 0.9), (10, 1.2, 0.4), (20, 2.0, 0.0)]}, title="Trade-off", across="nats"
    )  # fmt: skip
    assert "step 0" in drawn and "step 20" in drawn and "step 10" not in drawn
    assert "90 % at nats 1 to 0 % at 2" in drawn


def test_constants_and_single_points_get_axes_that_can_be_read() -> None:
    """A tenth on either side, whole steps, and no `+1.2345e-1` beside an axis of zeros."""
    assert plots.around_constant([2.0, 2.0]) == (1.8, 2.2)
    assert plots.around_constant([0.0]) == (-0.5, 0.5)
    assert plots.around_constant([3.0], least=1.0) == (2.0, 4.0)
    assert plots.around_constant([1.0, 1.1]) is None
    flat = plots.curves({"loss": [(step, 0.123456789) for step in range(20)]}, title="Loss")
    assert {"0.115", "0.120", "0.125"} <= set(texts(flat))
    alone = plots.curves({"loss": [(7, 3.0)]}, title="Loss")
    assert {"6", "7", "8"} <= set(texts(alone))
