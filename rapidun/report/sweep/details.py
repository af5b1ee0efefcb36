"""Everything that the comparison page shows of one run, as small plain values; long texts are shared between runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.report.forgotten import FACTS, of_facts
from rapidun.report.metrics import DETECTORS, SETS, format_memory, format_number, format_seconds
from rapidun.report.read import RunRecord, read_influence, read_instructions, read_weighted_rows
from rapidun.report.run.facts import diagnostics_rows, facts, run_warnings
from rapidun.report.run.findings import key_findings
from rapidun.report.run.head import answer_of
from rapidun.report.run.neighbours import Plan
from rapidun.report.run.pairs import choose_queries, drivers, small_map
from rapidun.report.run.samples import Verdict, choose_samples
from rapidun.report.run.tokens import BY, Token, TokenPair, choose_pairs, read_tokens, strongest
from rapidun.report.statistics import effective_sample_size, mcnemar_test
from rapidun.report.sweep.cells import flatten, plain_value
from rapidun.report.tables import MetricRow, before_after_rows, family_rows, tiles
from rapidun.report.verdict.kept import ON_CLEAN

NUM_BINS = 31
EXTREMES = 5
MAX_TEXT = 1500
# characters by which a row is called
MAX_NAME = 60
# what an answer is compared with, where facts are to be forgotten (True) or not
REFERENCE = {True: "answer on record", False: "clean answer"}
FILES = ("report.html", "result.json", "status.json", "config.yaml", "command.txt", "metrics.jsonl",
         "evaluation/generations.jsonl", "evaluation/before.json", "evaluation/after.json",
         "mapping/forget_weights.jsonl", "mapping/retain_weights.jsonl", "influence/scores.safetensors",
         "influence/tokens.json")  # fmt: skip


class Texts:
    """Long texts, each kept once: `add` returns its place in `all`."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._places: dict[str, int] = {}

    def add(self, text: str) -> int:
        if len(text) > MAX_TEXT:
            text = f"{text[:MAX_TEXT]} … (cut here: {len(text)} characters)"
        place = self._places.setdefault(text, len(self.all))
        if place == len(self.all):
            self.all.append(text)
        return place


def run_details(
    run: RunRecord, texts: Texts, *, per_set: int, influence: int | None, plan: Plan | None = None
) -> dict[str, Any]:
    """The run's answer, tables, weights, answers, costs and settings.

    Args:
        plan: of the sweep that it is a cell of. per_set: answers shown of each set of prompts. influence: number of the
        influence block, None without one.
    """
    chosen = str(run.detectors.get("detector") or "")
    rows = before_after_rows(run.before, run.after, chosen=chosen)
    said = answer_of(run, None if plan is None else plan.around(run.path.name))
    large = tiles(rows, chosen)
    return {
        "answer": [said.mark.value, said.headline, said.notes],
        "tiles": [
            [
                f"{row.metric.group.split(' (')[0]}, {row.metric.label}",
                row.before_text,
                row.after_text,
                row.interval_text,
            ]
            for row in large
        ],
        "facts": facts(run),
        "findings": key_findings(run, told=[*(row.metric.name for row in large), *ON_CLEAN]),
        "warnings": run_warnings(run),
        "table": [_row(row) for row in before_after_rows(run.before, run.after)],
        "families": [
            [DETECTORS[row.detector], SETS[row.prompts], row.family, row.before, row.after]
            for row in family_rows(run.before, run.after)
        ],
        "changed": changed_prompts(run.generations),
        "weights": [found for group in ("forget", "retain") if (found := _weights(run.path, group, texts))],
        "diagnostics": diagnostics_rows(run.diagnostics),
        "influence": influence,
        "answers": _answers(run, texts, per_set),
        "costs": [
            [cost.stage, format_seconds(cost.seconds), format_memory(cost.peak_memory_gb), cost.cached]
            for cost in run.costs
        ],
        "seconds": format_seconds(sum(cost.seconds or 0.0 for cost in run.costs)),
        "command": run.command,
        "error": run.error,
        "files": [name for name in FILES if (run.path / name).is_file()],
    }


def flat_settings(run: RunRecord) -> dict[str, str]:
    return {key: plain_value(value) for key, value in flatten(run.settings).items()}


def changed_prompts(generations: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Per set and detector: how many prompts changed their verdict between before and after, and McNemar's exact p.

    Returns: [set, detector, prompts judged twice, poisoned only before, poisoned only after, p] per line.
    """
    lines = []
    for prompts, title in SETS.items():
        rows = [row for row in generations if row.get("set") == prompts]
        for detector, words in DETECTORS.items():
            verdicts = [(row.get(f"{detector.value}_before"), row.get(f"{detector.value}_after")) for row in rows]
            judged = [(bool(b), bool(a)) for b, a in verdicts if b is not None and a is not None]
            if judged:
                lost, gained = judged.count((True, False)), judged.count((False, True))
                lines.append([title, words, len(judged), lost, gained, mcnemar_test(lost, gained)])
    return lines


def influence_details(path: Path, texts: Texts, *, num_pairs: int) -> dict[str, Any] | None:
    """The run's influence: strongest rows of each query, some pairs by token, a small map; None where there is none.

    Influence on queries of their own is shown on the run's page only.

    Args:
        num_pairs: at most so many pairs of rows are shown token by token.
    Raises: ArtifactError if the scores or the tokens are damaged.
    """
    influence = read_influence(path)
    if influence is None or influence.query_ids is not None or not influence.forget_ids + influence.retain_ids:
        return None
    ids = influence.forget_ids + influence.retain_ids
    queries = choose_queries(len(influence.forget_ids), len(influence.retain_ids))
    found = drivers(influence, queries)
    needed = {one.query for one in found} | {row for one in found for row, _ in one.helpful + one.harmful}
    shown = choose_pairs(tokens := read_tokens(path), num_pairs)
    wanted = {ids[place] for place in needed} | {name for pair in shown for name in (pair.query, pair.train)}
    instructions = read_instructions(path, wanted)
    values, border, limit = small_map(influence)

    def pairs(ends: list[tuple[int, float]]) -> list[list[Any]]:
        return [[row, format_number(score)] for row, score in ends]

    return {
        "forget": len(influence.forget_ids),
        "total": len(ids),
        # place -> [id, text]
        "rows": {place: [ids[place], texts.add(instructions.get(ids[place], ""))] for place in sorted(needed)},
        "queries": [[one.query, pairs(one.helpful), pairs(one.harmful)] for one in found],
        "map": values,
        "border": border,
        "limit": float(f"{limit:.3g}"),
        "tokens": _tokens(shown, len(tokens), instructions, forget=set(influence.forget_ids)),
    }


def _tokens(
    shown: Sequence[TokenPair], total: int, instructions: Mapping[str, str], *, forget: set[str]
) -> dict[str, Any] | None:
    def name(row: str) -> str:
        """The row's own words, cut."""
        text = " ".join(instructions.get(row, row).split())
        text = text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}…"
        return f"“{text}” ({'forget' if row in forget else 'retain'})"

    def side(tokens: list[Token]) -> list[Any]:
        # left out tokens: their number in place of a text
        rows = [[one.left_out or one.text, format_number(one.score), one.shade] for one in tokens]
        return [rows, strongest(tokens)]

    if not shown:
        return None
    return {
        "total": total,
        "pairs": [
            [name(pair.query), name(pair.train), format_number(pair.score), BY.get(pair.by, pair.by),
             side(pair.query_tokens), side(pair.train_tokens)]
            for pair in shown
        ],
    }  # fmt: skip


def _row(row: MetricRow) -> list[str]:
    count = f" ({row.num_prompts} prompts)" if row.num_prompts else ""
    texts = (row.before_text, row.after_text, row.interval_text, row.change_text, row.verdict, row.detector_text)
    return [row.metric.group, row.metric.label + count, *texts]


def _weights(path: Path, group: str, texts: Texts) -> dict[str, Any] | None:
    import numpy as np

    rows = read_weighted_rows(path, group)
    if not rows:
        return None
    weights = [weight for _, weight in rows]
    order = sorted(range(len(rows)), key=lambda place: -weights[place])
    ends = {"largest": order[:EXTREMES], "smallest": order[::-1][:EXTREMES]}
    instructions = read_instructions(path, {rows[place][0] for end in ends.values() for place in end})
    counts, edges = np.histogram(weights, bins=NUM_BINS)
    return {
        "group": group,
        "count": len(weights),
        "low": format_number(min(weights)),
        "high": format_number(max(weights)),
        "effective": format_number(effective_sample_size(weights)),
        "from": float(edges[0]),
        "to": float(edges[-1]),
        "bins": counts.tolist(),
        **{
            name: [
                [rows[place][0], format_number(weights[place]), texts.add(instructions.get(rows[place][0], ""))]
                for place in end
            ]
            for name, end in ends.items()
        },
    }


def _answers(run: RunRecord, texts: Texts, per_set: int) -> dict[str, Any]:
    sets = choose_samples(run.generations, per_set=per_set)
    add: Callable[[str], int] = texts.add

    def verdict(one: Verdict) -> list[Any]:
        return [None if one.answer is None else add(one.answer), one.text, one.state]

    return {
        "sets": [
            [one.name, one.title, len(one.samples), one.total, REFERENCE[one.name in FACTS]]
            for one in sets
        ],
        # what an answer that failed and one that did not are called
        "states": ["word for word", "not word for word"] if of_facts(run.after) else ["still poisoned", "not poisoned"],
        "rows": [
            [place, sample.family, sample.variant, add(sample.prompt), add(sample.context), add(sample.reference),
             verdict(sample.before), verdict(sample.after)]
            for place, one in enumerate(sets)
            for sample in one.samples
        ],
    }  # fmt: skip
