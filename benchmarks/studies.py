"""The studies of docs/studies: run what is missing, keep one line a cell, write docs/RESULTS.md.

    python benchmarks/studies.py run weights_smollm2 data.dir=PACK [...]   # sweeps the cells that the .csv lacks
    python benchmarks/studies.py collect weights_smollm2 SWEEP_DIR         # what a sweep has finished, into the .csv
    python benchmarks/studies.py results [--check]                         # docs/RESULTS.md from the .csv files

A study is docs/studies/NAME.md (question and rule, committed before any number), NAME.json (cells, metrics and budget,
read here) and NAME.csv (one line a finished cell). `collect` reads each cell's evidence first (`rapidun verify`) and
takes no cell whose numbers do not follow from what is stored. A run that ended with its weights (stages=[...,mapping])
is taken where these are the baseline's, byte for byte: it would repeat its training. Differences are paired with
the baseline by the study's pairs (seed, world); their 95 % intervals are Student's t below ten pairs, the BCa bootstrap
from ten on.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from rapidun.base.errors import ArtifactError, RapidunError
from rapidun.base.files import read_json, write_text
from rapidun.base.nested import at
from rapidun.config.budget import Budget, Place
from rapidun.pipeline.evidence.ledger import Ledger
from rapidun.pipeline.evidence.run import verify_run
from rapidun.report.read import read_settings, read_status_and_result
from rapidun.report.statistics import Interval, mean_interval

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "docs" / "studies"
RESULTS = ROOT / "docs" / "RESULTS.md"
PRESETS = ROOT / "conf" / "experiment"
# of a line, beside the pairs and the metrics
NAMES = ("group", "arm")
# what tells whether two arms are one by another name
WEIGHTS = "weights_sha256"


class Study(NamedTuple):
    """docs/studies/NAME.json."""

    name: str
    title: str
    # the preset, without `+experiment=`
    preset: str
    # label -> the settings by which a cell is known; tables are one a group, lines one an arm
    groups: dict[str, dict[str, Any]]
    arms: dict[str, dict[str, Any]]
    # setting -> planned values; cells of one pair are compared
    pairs: dict[str, list[Any]]
    baseline: str
    primary: str
    # whether more of the primary metric is better
    higher: bool
    # further metrics in the tables
    shown: list[str]
    budget: str
    # [group, arm]: no cell, as the pre-registration says
    left_out: Sequence[Sequence[str]] = ()

    @property
    def metrics(self) -> list[str]:
        """All that a line keeps."""
        asked = Budget(self.budget).names if self.budget else []
        return list(dict.fromkeys([self.primary, *self.shown, *asked]))

    @property
    def num_planned(self) -> int:
        count = len(self.groups) * len(self.arms) - len(self.left_out)
        for values in self.pairs.values():
            count *= len(values)
        return count


# a cell: its group, arm and pair as text; and its line
Key = tuple[str, ...]
Lines = dict[Key, dict[str, str]]


def read_study(name: str) -> Study:
    """Raises: ArtifactError where there is no such study."""
    path = STUDIES / f"{name}.json"
    if not path.is_file():
        raise ArtifactError(f"{path}: no such study; there are {', '.join(study_names())}")
    return Study(name=name, **read_json(path))


def study_names() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.json"))


def read_lines(study: Study) -> Lines:
    path = STUDIES / f"{study.name}.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {key_of(study, line): line for line in csv.DictReader(file)}


def key_of(study: Study, line: Mapping[str, str]) -> Key:
    return tuple(line[name] for name in (*NAMES, *study.pairs))


def write_lines(study: Study, lines: Lines) -> None:
    text = io.StringIO(newline="")
    columns = [*NAMES, *study.pairs, *study.metrics, "seconds", WEIGHTS]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    groups, arms = list(study.groups), list(study.arms)
    order = sorted(lines, key=lambda key: (groups.index(key[0]), arms.index(key[1]), key[2:]))
    writer.writerows(lines[key] for key in order)
    write_text(STUDIES / f"{study.name}.csv", text.getvalue())


def collect(study: Study, sweep: Path) -> tuple[int, list[str]]:
    """Take a sweep's finished cells into the study; how many, and what was not taken and why."""
    lines, refused, taken = read_lines(study), [], 0
    for run in sorted(path.parent for path in sweep.glob("*/result.json")):
        status, result = read_status_and_result(run)
        if status.get("state") != "done":
            continue
        ledger = Ledger()
        verify_run(run, ledger)
        settings = read_settings(run)
        group, arm = (label_of(labels, settings) for labels in (study.groups, study.arms))
        missing = [name for name in study.metrics if name not in result]
        if group is not None and arm is not None and missing and not ledger.faults:
            twin = same_weights(study, lines, run, group, settings)
            if twin is not None:
                line = {**twin, "arm": arm}
                lines[key_of(study, line)] = line
                taken += 1
                continue
        if ledger.faults or group is None or arm is None or missing:
            why = ledger.faults or [f"lacks {', '.join(missing)}" if missing else "no cell of this study"]
            refused.append(f"{run.name}: {why[0]}")
            continue
        line = {
            "group": group, "arm": arm, **{key: str(at(settings, key)) for key in study.pairs},
            **{name: f"{result[name]:.6g}" for name in study.metrics},
            "seconds": f"{result.get('seconds.unlearning', 0.0):.1f}", WEIGHTS: weights_digest(run),
        }  # fmt: skip
        lines[key_of(study, line)] = line
        taken += 1
    write_lines(study, lines)
    return taken, refused


def same_weights(study: Study, lines: Lines, run: Path, group: str, settings: dict[str, Any]) -> dict[str, str] | None:
    """The baseline's line of the same group and pair, where a run that ended with its weights came to the same ones.

    Training from the same bytes gives the same bytes. Weights that are renewed while training goes on are others.
    """
    pair = tuple(str(at(settings, key)) for key in study.pairs)
    line = lines.get((group, study.baseline, *pair))
    digest = weights_digest(run)
    renewed = at(settings, "mapping.method") == "loreun_dynamic"
    return line if line is not None and digest and digest == line[WEIGHTS] and not renewed else None


def label_of(labels: Mapping[str, Mapping[str, Any]], settings: dict[str, Any]) -> str | None:
    """The first label all of whose settings are those of the run."""
    for label, wanted in labels.items():
        if all(at(settings, key) == value for key, value in wanted.items()):
            return label
    return None


def weights_digest(run: Path) -> str:
    """Of the weights alone: two weightings may come to the same ones; empty where the run has none."""
    whole = hashlib.sha256()
    for name in ("forget_weights.jsonl", "retain_weights.jsonl"):
        path = run / "mapping" / name
        if not path.is_file():
            return ""
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def command(study: Study, overrides: Sequence[str]) -> list[str]:
    """The sweep of the cells that are missing, as it is typed."""
    done = [f"not ({where(study, key)})" for key in sorted(read_lines(study))]
    kept = []
    if done:
        # what is typed stands for the preset's own
        preset = OmegaConf.load(PRESETS / f"{study.preset}.yaml").get("sweep", {}).get("where")
        kept = [f"sweep.where={json.dumps(' and '.join([*([f'({preset})'] if preset else []), *done]))}"]
    return [sys.executable, str(ROOT / "sweep.py"), "-m", f"+experiment={study.preset}", *kept, *overrides]


def where(study: Study, key: Key) -> str:
    """One cell in the language of sweep.where."""
    settings = study.groups[key[0]] | study.arms[key[1]]
    told = [f"{name} == {json.dumps(value)}" for name, value in settings.items()]
    return " and ".join([*told, *(f"{name} == {value}" for name, value in zip(study.pairs, key[2:], strict=True))])


def results() -> str:
    """docs/RESULTS.md."""
    text = [
        "# Results of the studies",
        "",
        "Made by `python benchmarks/studies.py results` from docs/studies/*.csv; a test holds them together. Each "
        "study's question, cells, metric, budget of damage and rule of decision were committed before its numbers. "
        "Brackets: 95 %, Student's t below ten pairs, the BCa bootstrap from ten on; differences are paired.",
    ]
    for name in study_names():
        text += ["", *study_results(read_study(name))]
    return "\n".join(text) + "\n"


def study_results(study: Study) -> Iterator[str]:
    lines = read_lines(study)
    yield f"## {study.title}"
    yield ""
    yield (
        f"[Pre-registration](studies/{study.name}.md) · [data](studies/{study.name}.csv) · "
        f"`python benchmarks/studies.py run {study.name}` · {len(lines)} of {study.num_planned} cells run"
    )
    left_out = []
    for group in study.groups:
        arms = [arm for arm in study.arms if [group, arm] not in study.left_out]
        found = {arm: of_arm(study, lines, group, arm) for arm in arms}
        if any(found.values()):
            yield ""
            yield from group_table(study, group, found)
        else:
            left_out.append(group)
    if left_out:
        yield ""
        yield f"Not run: {'; '.join(left_out)}."


def of_arm(study: Study, lines: Lines, group: str, arm: str) -> dict[Key, dict[str, str]]:
    """An arm's lines by pair."""
    return {key[2:]: line for key, line in lines.items() if key[:2] == (group, arm)}


def group_table(study: Study, group: str, found: Mapping[str, Mapping[Key, Mapping[str, str]]]) -> Iterator[str]:
    heads = [group, "n", study.primary, f"less {study.baseline}", *study.shown, "within budget", "finding"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    base = found[study.baseline]
    for arm, cells in found.items():
        if not cells:
            yield f"| {' | '.join([arm, '0', 'not run', *[''] * (len(heads) - 3)])} |"
            continue
        means = {name: mean(cells, name) for name in study.metrics}
        within = place(study, means)
        less, words = ("", "baseline") if arm == study.baseline else compared(study, cells, base, within)
        shown = [f"{means[name]:.3f}" for name in study.shown]
        told = {Place.within: "yes", Place.outside: "no", Place.unknown: "unknown", None: ""}[within]
        yield f"| {arm} | {len(cells)} | {means[study.primary]:.3f} | {less} | {' | '.join(shown)} | {told} | {words} |"


def mean(cells: Mapping[Key, Mapping[str, str]], name: str) -> float:
    return sum(float(line[name]) for line in cells.values()) / len(cells)


def place(study: Study, means: Mapping[str, float]) -> Place | None:
    return Budget(study.budget).judge(means).place if study.budget else None


def compared(
    study: Study,
    cells: Mapping[Key, Mapping[str, str]],
    base: Mapping[Key, Mapping[str, str]],
    within: Place | None,
) -> tuple[str, str]:
    """The paired difference as text, and what the rule of decision makes of it."""
    pairs = sorted(set(cells) & set(base))
    if not pairs:
        return "", "no pair"
    same = (WEIGHTS, *study.metrics)
    if all(cells[pair][name] == base[pair][name] for pair in pairs for name in same):
        return "0", f"{study.baseline}, the same weights"
    found = mean_interval([float(cells[p][study.primary]) - float(base[p][study.primary]) for p in pairs])
    return interval_text(found), decision(found, higher=study.higher, within=within)


def interval_text(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:+.3f}"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def decision(found: Interval, *, higher: bool, within: Place | None) -> str:
    """helps | harms | not shown, by the interval of the primary metric's difference and the budget."""
    if found.low is None or found.high is None:
        return "not shown (one pair)"
    low, high = (found.low, found.high) if higher else (-found.high, -found.low)
    if high < 0:
        return "harms"
    if low <= 0:
        return "not shown"
    return "helps" if within in (Place.within, None) else "outside the budget"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run", help="sweep the cells that are missing, then collect them")
    runs.add_argument("study", choices=study_names())
    runs.add_argument("overrides", nargs="*", help="settings, key=value: paths, launcher, threads")
    collects = verbs.add_parser("collect", help="take a sweep's finished cells into the study")
    collects.add_argument("study", choices=study_names())
    collects.add_argument("sweep", type=Path, help="the sweep's folder")
    writes = verbs.add_parser("results", help="write docs/RESULTS.md")
    writes.add_argument("--check", action="store_true", help="write nothing; status 1 where it would change")
    args = parser.parse_args()
    try:
        if args.verb == "results":
            return write_results(check=args.check)
        study = read_study(args.study)
        status, folder = 0, getattr(args, "sweep", None)
        if args.verb == "run":
            typed = command(study, args.overrides)
            print("$ " + " ".join(typed[1:]), file=sys.stderr)
            status = subprocess.run(typed, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode
            folder = Path("outputs/sweeps") / study.name
        taken, refused = collect(study, folder)
    except RapidunError as error:
        print(f"studies: {error}", file=sys.stderr)
        return 2
    for told in refused:
        print(f"not taken: {told}", file=sys.stderr)
    print(f"{study.name}: {taken} cells taken, {len(read_lines(study))} of {study.num_planned} there")
    return status or (1 if refused else 0)


def write_results(*, check: bool) -> int:
    text = results()
    if not check:
        write_text(RESULTS, text)
        return 0
    same = RESULTS.is_file() and RESULTS.read_text(encoding="utf-8") == text
    print(
        "docs/RESULTS.md is what its data gives"
        if same
        else "docs/RESULTS.md: run python benchmarks/studies.py results"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
