"""Each method against uniform and shuffled weights, seed by seed: better, worse, or cannot tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from rapidun.report.metrics import Kind, better_of, find_metric, format_number, heading_of, kind_of
from rapidun.report.statistics import holm, paired_t_test, sign_flip_test, t_interval
from rapidun.report.sweep.cells import Cell, natural

BASELINES = ("uniform", "shuffled")
# overrides that make a method; all others are settings that a method shares with its baseline
METHOD_KEYS = ("mapping", "influence")
# where a cell comes from when several sweeps are compared: no setting
SOURCE_KEY = "source"
ALPHA = 0.05


class Verdict(Enum):
    better = "better"
    worse = "worse"
    unclear = "cannot tell"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One method against one baseline on one metric; differences are method minus baseline."""

    method: str
    baseline: str
    metric: str
    n: int  # seeds: the independent repetitions
    num_pairs: int  # runs paired, over all settings that both share
    difference: float
    low: float | None  # 95 % interval of the mean difference over seeds, not corrected
    high: float | None
    p: float | None  # paired t test over seeds; sign flips where the differences have no spread
    p_flips: float | None
    p_adjusted: float | None  # Holm over all comparisons of the sweep
    num_comparisons: int = 0
    verdict: Verdict = Verdict.unclear
    # the two came to one result in every pair: there is nothing to test
    same: bool = False

    @property
    def sentence(self) -> str:
        """`mapping=rapidun against uniform, ASR on seen triggers: better (5 seeds); -3.2 points, 95 % interval ...`"""
        seeds = f"{self.n} {'seed' if self.n == 1 else 'seeds'}"
        if self.same:
            return f"{self.method} against {self.baseline}, {metric_words(self.metric)}: one result ({seeds})."
        text = f"{self.method} against {self.baseline}, {metric_words(self.metric)}: {self.verdict.value} ({seeds}); "
        if self.difference == 0 and (self.low, self.high) in ((None, None), (0.0, 0.0)):
            return text + ("no difference." if self.n == 1 else "no difference in any seed.")
        text += difference_text(self.difference, self.metric)
        if self.low is None or self.high is None:
            return text + ", and one seed shows no spread."
        low, high = (difference_text(bound, self.metric, unit=False) for bound in (self.low, self.high))
        text += f", 95 % interval {low} to {high}"
        if self.p_adjusted is not None:
            count = f"{self.num_comparisons} {'comparison' if self.num_comparisons == 1 else 'comparisons'}"
            text += f", {p_text(self.p_adjusted)} after Holm's correction for {count}"
        return text + "."


def compare_methods(cells: Sequence[Cell], *, metrics: Iterable[str]) -> list[Comparison]:
    """Compare every method with every baseline that ran with the same seeds and shared settings.

    A method is what the overrides of mapping and influence say. Its runs are paired with the baseline's runs of the
    same seed and the same other overrides; where a baseline ran with several overrides of its own, those equal to the
    method's count, else their mean. Against `shuffled` a weighting's own null (mapping.null=shuffled) comes first, and
    the null of another weighting never counts. The differences of one seed are averaged over the shared settings first,
    since runs of one seed are not independent: n is the number of seeds. The p values of all comparisons are corrected
    together (Holm); a verdict needs a corrected p below 0.05. One seed never decides.

    Returns: by method, baseline, metric; empty where there is nothing to pair.
    """
    done = [cell for cell in cells if cell.state == "done"]
    labels = _method_labels(done)
    methods: dict[str, list[Cell]] = {}
    for cell in done:
        methods.setdefault(labels[id(cell)], []).append(cell)
    metrics = [name for name in metrics if any(name in cell.metrics for cell in done)]
    found = []
    for baseline in BASELINES:
        partners: dict[tuple[str, ...], list[Cell]] = {}
        for cell in done:
            if method_of(cell) == baseline:
                partners.setdefault(_place(cell), []).append(cell)
        for method, members in methods.items():
            if method_of(members[0]) == baseline:
                continue
            for metric in metrics:
                comparison = _compare(method, baseline, metric, members, partners)
                if comparison is not None:
                    found.append(comparison)
    order = {method: place for place, method in enumerate(sorted(methods, key=lambda text: natural(text.split(" "))))}
    found.sort(key=lambda one: (order[one.method], BASELINES.index(one.baseline), metrics.index(one.metric)))
    return _corrected(found)


def method_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each method and baseline: on which metrics it is better, worse, or cannot be told."""
    by_pair: dict[tuple[str, str], list[Comparison]] = {}
    for one in comparisons:
        by_pair.setdefault((one.method, one.baseline), []).append(one)
    sentences = []
    for (method, baseline), found in by_pair.items():
        if all(one.same for one in found):
            sentences.append(f"{method} against {baseline}: one result, the same weights.")
            continue
        parts = []
        for verdict in Verdict:
            names = [_named(one) for one in found if one.verdict is verdict]
            if names:
                parts.append(f"{verdict.value} on {', '.join(names)}")
        n = min(one.n for one in found)
        sentences.append(f"{method} against {baseline} ({n} {'seed' if n == 1 else 'seeds'}): {'; '.join(parts)}.")
    return sentences


def _named(one: Comparison) -> str:
    """`ASR seen (−3.2 points)`: the metric under its heading, with the difference."""
    return f"{heading_of(one.metric)} ({difference_text(one.difference, one.metric)})"


def method_of(cell: Cell) -> str:
    """What made the cell's weights; of a null hypothesis (mapping.null) its name: `shuffled`, say."""
    return weighting_of(cell) if null_of(cell) == "none" else null_of(cell)


def weighting_of(cell: Cell) -> str:
    """The weighting, whatever its weights were exchanged for: as recorded, else as overridden."""
    values = cell.values
    return cell.method or values.get("mapping.method") or values.get("mapping", "")


def null_of(cell: Cell) -> str:
    return cell.null if cell.null != "none" else cell.values.get("mapping.null", "none")


def difference_text(difference: float, metric: str, *, unit: bool = True) -> str:
    """−3.2 points for shares, −0.031 for scores, three significant digits otherwise."""
    kind = kind_of(metric)
    if kind is Kind.share:
        text = f"{100 * difference:+.1f}" + (" points" if unit else "")
    elif kind is Kind.score:
        text = f"{difference:+.3f}"
    else:
        text = ("+" if difference > 0 else "") + format_number(difference)
    return text.replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def metric_words(name: str) -> str:
    metric = find_metric(name)
    return f"{metric.group}, {metric.label}" if metric else name


def _compare(
    method: str, baseline: str, metric: str, members: Sequence[Cell], partners: dict[tuple[str, ...], list[Cell]]
) -> Comparison | None:
    by_seed: dict[str, list[float]] = {}
    # pairs of results: seeds that change neither of the two are one repetition
    pairs: dict[str, list[tuple[str, ...]]] = {}
    for cell in members:
        others = [other for other in partners.get(_place(cell), []) if metric in other.metrics]
        own = _own_settings(cell)
        same = [other for other in others if _own_settings(other) == own] or others
        # a weighting's own null is its yardstick; the null of another one is none
        nulls = [other for other in same if null_of(other) != "none"]
        same = [n for n in nulls if weighting_of(n) == weighting_of(cell)] or [o for o in same if o not in nulls]
        if same and metric in cell.metrics:
            reference = sum(other.metrics[metric] for other in same) / len(same)
            by_seed.setdefault(cell.seed, []).append(cell.metrics[metric] - reference)
            pairs.setdefault(cell.seed, []).append((_result(cell), *map(_result, same)))
    if not by_seed:
        return None
    distinct = {tuple(sorted(found)): seed for seed, found in sorted(pairs.items(), reverse=True)}
    differences = [sum(values) / len(values) for values in (by_seed[seed] for seed in sorted(distinct.values()))]
    same_results = all(len(set(pair)) == 1 for found in pairs.values() for pair in found)
    interval = t_interval(differences)
    p_flips = sign_flip_test(differences) if len(differences) > 1 and not same_results else None
    p = None if same_results else paired_t_test(differences)
    return Comparison(
        method=method,
        baseline=baseline,
        metric=metric,
        n=len(differences),
        num_pairs=sum(map(len, by_seed.values())),
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        p=p_flips if p is None else p,
        p_flips=p_flips,
        p_adjusted=None,
        same=same_results,
    )


def _result(cell: Cell) -> str:
    """What names a cell's result; where that is unknown each is one of its own."""
    return f"run {id(cell)}" if cell.made is None else cell.made.result


def _corrected(found: Sequence[Comparison]) -> list[Comparison]:
    tested = [one for one in found if one.p is not None]
    adjusted = iter(holm([one.p for one in tested if one.p is not None]))
    corrected = []
    for one in found:
        if one.p is None:
            corrected.append(one)
            continue
        p = next(adjusted)
        better = better_of(one.metric)
        verdict = Verdict.unclear
        if p < ALPHA and better and one.difference:
            verdict = Verdict.better if one.difference * better > 0 else Verdict.worse
        corrected.append(replace(one, p_adjusted=p, num_comparisons=len(tested), verdict=verdict))
    return corrected


def _place(cell: Cell) -> tuple[str, ...]:
    """Seed and shared settings: what two runs must have in common to be paired."""
    return (cell.seed, *(f"{key}={value}" for key, value in cell.values.items() if not _of_method(key)))


def _own_settings(cell: Cell) -> dict[str, str]:
    """The settings of the method itself, without its name and its null."""
    named = ("mapping", "mapping.method", "mapping.null")
    return {key: value for key, value in cell.values.items() if _of_method(key) and key not in named}


def _of_method(key: str) -> bool:
    return key.split(".")[0] in METHOD_KEYS or key == SOURCE_KEY


def _of_label(key: str, cell: Cell) -> bool:
    """Nothing of mapping or influence changes uniform weights, so only the name of that method counts."""
    return key.split(".")[0] in METHOD_KEYS and (method_of(cell) != "uniform" or key in ("mapping", "mapping.method"))


def _method_labels(cells: Sequence[Cell]) -> dict[int, str]:
    """id of each cell -> its method in words: its overrides of mapping and influence that not all cells share."""
    own = {id(cell): [f"{key}={value}" for key, value in cell.values.items() if _of_label(key, cell)] for cell in cells}
    shared = set.intersection(*map(set, own.values())) if own else set()
    labels = {}
    for cell in cells:
        parts = [part for part in own[id(cell)] if part not in shared and part != "mapping.null=none"]
        # `mapping=a mapping.null=shuffled`, the weighting first
        parts.sort(key=lambda part: "." in part.partition("=")[0])
        # a method that no override names is the default one
        if not any(part.startswith(("mapping=", "mapping.method=")) for part in parts) and method_of(cell):
            parts.insert(0, f"mapping={method_of(cell)}")
        labels[id(cell)] = " ".join(parts) or "(defaults)"
    return labels
