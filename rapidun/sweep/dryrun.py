"""What a sweep would do, without doing it: cells, what is there already, jobs in waves, resources, script, hours."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import TYPE_CHECKING

from rapidun.base.store import Store
from rapidun.stages.recipes import KINDS
from rapidun.sweep.plan import PlannedJob

if TYPE_CHECKING:
    from rapidun.sweep.prepare import Sweep

SHOWN_CELLS = 12
SHOWN_JOBS = 6


def dry_run(sweep: Sweep) -> str:
    """The text of `sweep.dry_run=true`.

    Raises: nothing for what the launcher would refuse: it is part of the text.
    """
    jobs = sweep.plan.jobs
    given = sweep.jobs()
    parts = [*_cells(sweep), *_stages(sweep), *_waves(jobs), *_hours(sweep)]
    faults = sweep.launcher.check(given) if given else []
    parts += ["", "would be refused:", *(f"  {fault}" for fault in faults)] if faults else []
    script = sweep.launcher.script(given) if given and not faults else ""
    parts += ["", "script of the first submission:", script.rstrip()] if script else []
    parts += ["", "nothing was run: sweep.dry_run=true"]
    return "\n".join([*sweep.notes, *parts])


def _cells(sweep: Sweep) -> list[str]:
    found = sweep.found
    groups = (("to run", found.todo), ("done", found.done), ("under way", found.live), ("left failed", found.left))
    counts = ", ".join(f"{len(cells)} {word}" for word, cells in groups if cells)
    lines = [f"sweep {sweep.folder.path}: {len(sweep.cells)} cells: {counts}"]
    for cell in sweep.cells[:SHOWN_CELLS]:
        word = next(word for word, cells in groups if any(other is cell for other in cells))
        lines.append(f"  {cell.hash}  {word:<10} {' '.join(f'{k}={v}' for k, v in cell.axes.items())}")
    if len(sweep.cells) > SHOWN_CELLS:
        lines.append(f"  ... and {len(sweep.cells) - SHOWN_CELLS} more")
    return lines


def _stages(sweep: Sweep) -> list[str]:
    lines = ["", "results, each made once:"]
    for stage, (total, there) in sweep.plan.counts().items():
        lines.append(f"  {stage:<11} {total:>5} different, {there} there already, {total - there} to make")
    return lines


def _waves(jobs: Iterable[PlannedJob]) -> list[str]:
    waves: dict[int, list[PlannedJob]] = defaultdict(list)
    for job in jobs:
        waves[job.wave].append(job)
    lines = ["", "jobs:"] if waves else ["", "jobs: none, everything is there"]
    for wave, members in sorted(waves.items()):
        kinds = Counter(f"for {job.stage}" if job.stage else "of cells" for job in members)
        cells = sum(len(job.cells) for job in members)
        text = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        lines.append(f"  wave {wave}: {text}" + (f" ({cells} cells)" if cells else ""))
        for job in members[:SHOWN_JOBS]:
            after = f" after {', '.join(job.needs)}" if job.needs else ""
            lines.append(f"    {job.id}: {_resources(job)}{after}")
        if len(members) > SHOWN_JOBS:
            lines.append(f"    ... and {len(members) - SHOWN_JOBS} more")
    return lines


def _resources(job: PlannedJob) -> str:
    wanted = job.resources
    parts = [f"{wanted.num_processes} process{'es' if wanted.num_processes > 1 else ''}"]
    parts += [f"{wanted.num_threads} CPUs each"] if wanted.num_threads else []
    parts += [f"{wanted.num_gpus} GPU each"] if wanted.num_gpus else []
    parts += [f"{wanted.mem_gb:g} GB"] if wanted.mem_gb else []
    return ", ".join([*parts, f"at most {wanted.timeout_min} min"])


def _hours(sweep: Sweep) -> list[str]:
    """Time by the mean of what was measured: of this sweep's own results, else of the store's of that stage."""
    wanted = {cell.hash for cell in sweep.found.todo}
    missing = Counter(
        node.recipe.kind
        for node in sweep.plan.nodes.values()
        if node.found is None and any(cell.hash in wanted for cell in node.users)
    )
    if not missing:
        return []
    here: dict[str, list[float]] = defaultdict(list)
    for node in sweep.plan.nodes.values():
        if node.found is not None:
            here[node.recipe.kind].append(float(node.found.manifest["seconds"]))
    store = _store_seconds(sweep.planner.store) if any(not here[kind] for kind in missing) else {}
    total, unknown, sources = 0.0, [], []
    for kind, number in missing.items():
        known = here[kind] or store.get(kind, [])
        if not known:
            unknown.append(kind)
            continue
        total += number * fmean(known)
        sources.append(f"{kind} {fmean(known):.1f} s (mean of {len(known)}{'' if here[kind] else ' in the store'})")
    lines = ["", f"compute: {total / 3600:.2f} h by measured means: {', '.join(sources)}"] if sources else [""]
    if unknown:
        lines.append(f"  not measured yet: {', '.join(unknown)}")
    return lines


def _store_seconds(store: Store) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for artifact in store.artifacts(KINDS):
        found[artifact.stage].append(float(artifact.manifest["seconds"]))
    return found
