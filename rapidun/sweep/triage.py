"""Sorts the cells of a sweep by what there is to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rapidun.config.cells import Cell
from rapidun.config.sweep import SweepConfig
from rapidun.sweep.folder import CellState, SweepFolder
from rapidun.sweep.plan import Planner


@dataclass(kw_only=True)
class Triage:
    """The cells of a sweep by what there is to do."""

    done: list[Cell] = field(default_factory=list)
    # in a job that waits or runs
    live: list[Cell] = field(default_factory=list)
    todo: list[Cell] = field(default_factory=list)
    # failed before, and not to be tried again
    left: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def triage(
    cells: Sequence[Cell],
    sweep: SweepFolder,
    planner: Planner,
    *,
    live: set[str],
    settings: SweepConfig,
    commit: str | None,
) -> Triage:
    """Sort the cells: a done cell whose inputs or stage versions have changed is run again, and said to be stale.

    Args: live: names of the run folders that jobs under way will write. commit: of the code that runs now.
    """
    found = Triage()
    stale: dict[str, int] = {}
    other_code: dict[str, int] = {}
    for cell in cells:
        state = sweep.states([cell.hash])[cell.hash]
        if cell.hash in live:
            found.live.append(cell)
        elif state.state in ("done", "pruned"):
            why = _stale(state, planner.artifacts[cell.hash])
            if why and state.state == "done":
                stale[why] = stale.get(why, 0) + 1
                found.todo.append(cell)
                continue
            if commit and state.git_commit and state.git_commit != commit:
                other_code[state.git_commit[:10]] = other_code.get(state.git_commit[:10], 0) + 1
            found.done.append(cell)
        elif state.state == "failed" and not settings.retry_failed:
            found.left.append(cell)
        else:
            found.todo.append(cell)
    found.notes += [f"{number} cells are stale and run again: {why} changed since" for why, number in stale.items()]
    found.notes += [
        f"{number} cells were made by other code (commit {theirs}, now {str(commit)[:10]}); their settings, inputs and "
        "stage versions are the same, so they are kept. Another sweep.name and store_dir make them anew"
        for theirs, number in other_code.items()
    ]
    if found.left:
        found.notes.append(f"{len(found.left)} cells failed before and are left alone (sweep.retry_failed=false)")
    return found


def _stale(state: CellState, planned: Mapping[str, str]) -> str:
    """The first artifact of a done cell that is another one now; empty when none is."""
    noted = state.artifacts or {}
    for link, id in planned.items():
        if noted.get(link) != id:
            return id.partition("/")[0]
    return ""
