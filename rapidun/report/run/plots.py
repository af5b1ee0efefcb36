"""Plots as inline SVG that follow the page: text, lines and bars take their colours from CSS variables.

Every function takes plain numbers and returns one `<svg>` element with a transparent background. Text stays
text. Outside a page that sets the variables, mid-tone fallbacks keep a plot readable on light and dark.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from rapidun.report.run.tiles import tile_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

# Stand-in colours for matplotlib, each exchanged for a CSS variable with its fallback in the finished SVG.
INK = "#010101"
MUTED = "#020202"
GRID = "#030303"
FORGET = "#040404"
RETAIN = "#050505"
BEFORE = "#060606"
AFTER = "#070707"
WARN = "#080808"
_VARIABLES = {
    INK: "var(--ink, #808080)",
    MUTED: "var(--muted, #808080)",
    GRID: "var(--line, #80808055)",
    FORGET: "var(--forget, #d9730d)",
    RETAIN: "var(--retain, #2f80c2)",
    BEFORE: "var(--before, #9a8f85)",
    AFTER: "var(--accent, #1a9c86)",
    WARN: "var(--warn, #d14343)",
}
# heat map: the two ends, drawn with alpha = strength, so that zero is the page's own background
HELPFUL = (217, 115, 13)
HARMFUL = (47, 128, 194)
MAX_HEAT_CELLS = 480  # cells a side; a larger map shows means of tiles


def weight_histogram(
    weights: Sequence[float], *, group: str, low: float | None = None, high: float | None = None
) -> str:
    """Histogram of one group's loss weights, with its bounds (where they hold for the weights) and the mean 1.

    Args:
        weights: one number per row of the group. group: `forget` or `retain`, picks the colour.
        low, high: bounds w_min, w_max; None leaves them out.
    """
    figure, axes = _figure(4.6, 2.5)
    edges = [*weights, 1.0, *(bound for bound in (low, high) if bound is not None)]
    margin = max(0.0, 0.1 - (max(edges) - min(edges)) / 2)  # equal weights: one bar in the middle
    # the outermost bins hold the bounds, so that a pile at a bound is one bar
    counts, _, _ = axes.hist(
        list(weights), bins=31, range=(min(edges) - margin, max(edges) + margin),
        color=FORGET if group == "forget" else RETAIN, rwidth=0.88,
    )  # fmt: skip
    top = max(float(max(counts)), 1.0)
    axes.set_ylim(0, top * 1.22)
    marks = [(1.0, "mean", MUTED)]
    marks += [(bound, name, WARN) for bound, name in ((low, "w_min"), (high, "w_max")) if bound is not None]
    for place, name, colour in marks:
        axes.axvline(place, color=colour, linewidth=1, linestyle=(0, (3, 3)))
        axes.text(place, top * 1.13, f" {name} ", color=colour, fontsize=9, ha="right" if name == "w_max" else "left")
    axes.set_xlabel("loss weight")
    axes.set_ylabel("rows")
    axes.yaxis.set_major_locator(_whole_numbers())
    return _svg(figure, f"Histogram of {len(weights)} {group} weights from {min(weights):.3g} to {max(weights):.3g}")


def score_histogram(
    kept: Sequence[float], dropped: Sequence[float], *, group: str, threshold: float | None = None
) -> str:
    """Histogram of the scores that one group's weights were made from; rows of weight 0 in the colour of a warning.

    Args:
        kept, dropped: scores of rows with and without weight; together at least one. group: `forget` or `retain`.
        threshold: between the two clusters of a split; None leaves it out.
    """
    figure, axes = _figure(4.6, 2.5)
    everything = [*kept, *dropped, *([] if threshold is None else [threshold])]
    low, high = min(everything), max(everything)
    margin = 0.0 if high > low else max(abs(high), 1.0) * 0.05  # equal scores: one bar in the middle
    counts, _, _ = axes.hist(
        [list(kept), list(dropped)], bins=31, range=(low - margin, high + margin), stacked=True,
        color=[FORGET if group == "forget" else RETAIN, WARN], rwidth=0.88,
    )  # fmt: skip
    top = max(float(counts[-1].max()), 1.0)
    axes.set_ylim(0, top * 1.22)
    if threshold is not None:
        axes.axvline(threshold, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        right = threshold > (low + high) / 2
        axes.text(threshold, top * 1.13, " split ", color=MUTED, fontsize=9, ha="right" if right else "left")
    axes.set_xlabel("score: does the row belong to its group?")
    axes.set_ylabel("rows")
    axes.yaxis.set_major_locator(_whole_numbers())
    n = len(kept) + len(dropped)
    return _svg(figure, f"Histogram of {n} {group} scores from {low:.3g} to {high:.3g}; {len(dropped)} rows dropped")


def influence_map(ff: Any, fr: Any, rf: Any, rr: Any) -> str:
    """The four blocks as one picture: rows = training examples, columns = queries, those of the forget group first.

    Colour strength grows with |score| up to the 99th percentile of |score| off the diagonal; zero is
    transparent. A map of more than 480 rows shows means over tiles.

    Args: [nF, qF], [nF, qR], [nR, qF], [nR, qR] float arrays, finite.
    """
    import numpy as np

    blocks = {"ff": np.asarray(ff), "fr": np.asarray(fr), "rf": np.asarray(rf), "rr": np.asarray(rr)}
    n_forget, n_asked = blocks["ff"].shape
    n, n_queries = n_forget + blocks["rr"].shape[0], n_asked + blocks["rr"].shape[1]
    is_square = (n, n_forget) == (n_queries, n_asked)
    scores = tile_means(blocks, max_cells=MAX_HEAT_CELLS)
    off_diagonal = np.abs(scores[~np.eye(len(scores), dtype=bool)] if is_square else scores)
    limit = float(np.quantile(off_diagonal, 0.99)) if off_diagonal.size else 0.0
    limit = limit or float(np.abs(scores).max(initial=0.0)) or 1.0
    picture = heat_pixels(scores, limit)

    figure, axes = _figure(5.6, 4.9, rect=(0.105, 0.02, 0.74, 0.88))
    axes.imshow(picture, extent=(0, n_queries, n, 0), interpolation="none", aspect="equal" if is_square else "auto")
    axes.axhline(n_forget, color=INK, linewidth=1.2)
    axes.axvline(n_asked, color=INK, linewidth=1.2)

    def ticks(all_of: int, forget: int) -> tuple[list[float], list[str]]:
        return [forget / 2, forget + (all_of - forget) / 2], [f"forget ({forget})", f"retain ({all_of - forget})"]

    axes.set_xticks(*ticks(n_queries, n_asked))
    axes.set_yticks(*ticks(n, n_forget), rotation=90, va="center")
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_xlabel("query: the answer that is asked about")
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("training example")
    for spine in axes.spines.values():
        spine.set_visible(True)

    bar = figure.add_axes((0.885, 0.18, 0.025, 0.56))
    ramp = heat_pixels(np.linspace(limit, -limit, 101)[:, None], limit)
    bar.imshow(ramp, extent=(0, 1, -limit, limit), aspect="auto", interpolation="none")
    bar.set_xticks([])
    bar.set_yticks([-limit, 0, limit], [_short(-limit), "0", _short(limit)])
    bar.yaxis.tick_right()
    bar.tick_params(length=0, colors=MUTED, labelsize=9)
    bar.spines[:].set_visible(False)
    bar.text(0.5, limit * 1.08, "helpful", ha="center", fontsize=9, color=INK)
    bar.text(0.5, -limit * 1.08, "harmful", ha="center", va="top", fontsize=9, color=INK)
    return _svg(figure, f"Heat map of {n} by {n_queries} influence scores; rows train, columns are queries")


def heat_pixels(scores: Any, limit: float) -> Any:
    """[rows, columns] scores -> [rows, columns, 4] uint8 RGBA; alpha = |score| / limit, at most 1."""
    import numpy as np

    scores = np.asarray(scores, dtype=np.float64)
    pixels = np.zeros((*scores.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(scores[..., None] >= 0, HELPFUL, HARMFUL)
    pixels[..., 3] = np.round(255 * np.clip(np.abs(scores) / limit, 0.0, 1.0))
    return pixels


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    names: bool = True,
    log: bool = False,
    shares: bool = False,
    across: str = "optimiser step",
) -> str:
    """Lines over optimiser steps, one per name; names that speak of forget or retain take that colour.

    Args:
        series: name -> [(step, value)], at least one point each.
        title: what a screen reader calls the plot. names: say which line is which.
        log: logarithmic where the values span more than a factor of 10. shares: show the whole range 0..1.
        across: what the horizontal axis counts, if not steps.
    """
    columns = 3 if sum(map(len, series)) <= 45 else 2
    # a taller figure for a legend of several lines
    extra = 0.17 * (math.ceil(len(series) / columns) - 1) if names else 0.0
    height = 2.4 + extra
    figure, axes = _figure(4.6, height, rect=(0.125, 0.456 / height, 0.855, 1.656 / height))
    spare = [AFTER, BEFORE, WARN, MUTED, FORGET, RETAIN]
    # a line takes the colour of what it speaks of, where no line before it has
    meanings = {"poisoned": FORGET, "forget": FORGET, "retain": RETAIN, "clean": AFTER}
    for name, points in series.items():
        steps, values = [step for step, _ in points], [value for _, value in points]
        wanted = [colour for word, colour in meanings.items() if word in name and colour in spare]
        colour = wanted[0] if wanted else spare[0] if spare else INK
        spare = [other for other in spare if other != colour]
        axes.plot(
            steps, values, color=colour, linewidth=1.6, label=_plain(name),
            marker="o" if len(points) < 12 else None, markersize=3,
        )  # fmt: skip
    everything = [value for points in series.values() for _, value in points]
    if shares:
        axes.set_ylim(-0.03, 1.03)
    elif (limits := around_constant(everything)) is not None:
        axes.set_ylim(*limits)
    steps = [step for points in series.values() for step, _ in points]
    if (limits := around_constant(steps, least=1.0)) is not None:
        axes.set_xlim(*limits)
    axes.ticklabel_format(axis="y", useOffset=False)
    if log and 0 < 10 * min(everything) < max(everything):
        axes.set_yscale("log")
        # matplotlib's own labels would be mathematics, 6 x 10^0
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_xlabel(across)
    axes.xaxis.set_major_locator(_whole_numbers())
    if names:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=columns, frameon=False,
            fontsize=8.5, labelcolor=INK, handlelength=1.2, columnspacing=1.2, borderpad=0.1,
        )  # fmt: skip
    return _svg(figure, f"{title} over {across}s: {', '.join(series)}")


def around_constant(values: Sequence[float], *, least: float = 0.0) -> tuple[float, float] | None:
    """Limits of an axis whose values are one but for rounding: a tenth of it on either side, a half around 0.

    Args: least: on either side at least so much. Returns: None where values differ, for the axis to take its own.
    """
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low > 1e-6 * size:
        return None
    half = max(0.1 * size or 0.5, least)
    return (low + high) / 2 - half, (low + high) / 2 + half


def trade_off(paths: Mapping[str, Sequence[tuple[float, float, float]]], *, title: str, across: str) -> str:
    """Shares against what they cost, one path a name through the measured steps; first and last step are written out.

    Args:
        paths: name -> [(step, cost, share)] in the order of steps, shares in 0..1; at least one point each.
        title: what a screen reader calls the plot. across: what the horizontal axis shows, with its unit.
    """
    figure, axes = _figure(4.6, 2.7, rect=(0.125, 0.19, 0.855, 0.66))
    spare = [FORGET, RETAIN, AFTER, BEFORE]
    for number, (name, points) in enumerate(paths.items()):
        colour = spare[number % len(spare)]
        steps, costs, shares = zip(*points, strict=True)
        axes.plot(costs, shares, color=colour, linewidth=1.2, marker="o", markersize=3.5, label=_plain(name))
        for place in dict.fromkeys((0, len(points) - 1)):
            axes.annotate(
                f"step {steps[place]:g}", (costs[place], shares[place]),
                xytext=(5, -9 if shares[place] > 0.9 else 4), textcoords="offset points",
                color=colour, fontsize=8,
            )  # fmt: skip
    axes.set_ylim(-0.03, 1.03)
    axes.margins(x=0.12)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_xlabel(across)
    axes.set_ylabel("share of prompts")
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=2, frameon=False, fontsize=8.5, labelcolor=INK,
        handlelength=1.2, columnspacing=1.2, borderpad=0.1,
    )  # fmt: skip
    spoken = "; ".join(
        f"{name}: {_spoken(points[0][2])} at {across} {points[0][1]:.3g} to {_spoken(points[-1][2])} at "
        f"{points[-1][1]:.3g}" for name, points in paths.items()
    )  # fmt: skip
    return _svg(figure, f"{title}. {spoken}")


def family_bars(rows: Sequence[tuple[str, str, float | None, float | None]], *, title: str) -> str:
    """Horizontal bars, before above after, one pair per trigger family, under a heading per set of prompts.

    Args:
        rows: (set, family, share before, share after), shares in 0..1, None where absent; at least one.
        title: what a screen reader calls the plot.
    """
    headings = len({prompts for prompts, *_ in rows})
    slots = len(rows) + 0.75 * headings
    height = 0.36 * slots + 0.42
    longest = max(len(name) for prompts, family, *_ in rows for name in (prompts, family))
    left = min(0.42, 0.05 + 0.0145 * longest)
    figure, axes = _figure(4.6, height, rect=(left, 0.34 / height, 0.90 - left, 1 - 0.42 / height))
    edge = 0.01 - left / (0.90 - left)  # the figure's left edge in axes units
    place, ticks, names, seen = 0.0, [], [], None
    for prompts, family, before, after in rows:
        if prompts != seen:
            seen = prompts
            axes.text(
                edge,
                place,
                _plain(prompts),
                ha="left",
                va="center",
                fontsize=9,
                color=MUTED,
                style="italic",
                clip_on=False,
            )
            place += 0.75
        for share, colour, shift in ((before, BEFORE, -0.2), (after, AFTER, 0.2)):
            if share is not None:
                # a hair of bar, so that 0 % is seen to have been measured
                axes.barh(place + shift, max(share, 0.004), height=0.36, color=colour)
                axes.text(share + 0.015, place + shift, f"{100 * share:.0f} %", va="center", fontsize=8.5, color=INK)
        ticks.append(place)
        names.append(_plain(family))
        place += 1.0
    axes.set_ylim(place - 0.4, -0.45)
    axes.set_xlim(0, 1)
    axes.set_yticks(ticks, names)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.tick_params(length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    described = "; ".join(f"{family}, {prompts}: {_spoken(b)} to {_spoken(a)}" for prompts, family, b, a in rows)
    return _svg(figure, f"{title}, before to after. {described}")


def _spoken(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.0f} %"


def _whole_numbers() -> MaxNLocator:
    """Ticks at whole numbers only: there is no half a row or half a step."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True)


def _plain(text: str) -> str:
    """A name may hold dollar signs; between two of them matplotlib would read mathematics."""
    return text.replace("$", r"\$")


def _short(value: float) -> str:
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}")


def _figure(
    width: float, height: float, *, rect: tuple[float, float, float, float] | None = None
) -> tuple[Figure, Axes]:
    """A figure without pyplot (no global state, no display) and one bare axes; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_axes(rect or (0.125, 0.19, 0.855, 0.69))
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
        spine.set_linewidth(0.8)
    axes.tick_params(which="both", colors=MUTED, labelsize=9, width=0.8, length=3)
    axes.xaxis.label.set(color=MUTED, size=9)
    axes.yaxis.label.set(color=MUTED, size=9)
    return figure, axes


def _svg(figure: Figure, label: str) -> str:
    """The figure as one <svg> element: CSS colours, the page's font, ids of its own, an accessible name."""
    import matplotlib

    buffer = io.StringIO()
    # a fixed salt keeps ids, and so the report, the same from run to run
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}), warnings.catch_warnings():
        # the browser has the glyphs that matplotlib's font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)  # the page's font
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    # an id that something refers to becomes the figure's own, since a page holds many figures; the others go
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    own = f"p{zlib.crc32(svg.encode()):x}-"
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{own}{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{own}", svg)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {72 * figure.get_figwidth():g} {72 * figure.get_figheight():g}" role="img" '
        f'aria-label="{escape(label)}" style="width:100%;max-width:{72 * figure.get_figwidth():g}pt;height:auto;'
        f'font-family:var(--font, sans-serif)">'
    )
    return opening + svg[svg.index(">") + 1 :].strip()
