"""The end of a sweep: summary files, a table on the screen, and the exit status."""

from collections import Counter
from collections.abc import Sequence

from rapidun.sweep.folder import SweepFolder


def finish(folder: SweepFolder, names: Sequence[str], *, show: bool = True) -> int:
    """Write and show the summary; return 1 if any of these cells is not done (or pruned).

    Args: names: the cells of the newest launch.
    """
    from rich.console import Console

    from rapidun.report.sweep.exports import write_sweep_summary
    from rapidun.report.sweep.page import write_sweep_index

    states = folder.states(names)
    counts = Counter(state.state for state in states.values())
    console = Console()
    if any(state.state != "waiting" for state in states.values()):
        summary = write_sweep_summary(folder.path)
        index = write_sweep_index(folder.path, summary)
        if show:
            console.print(summary.table())
            console.print(f"report: {index.with_name('report.html')}", highlight=False, soft_wrap=True)
    bad = [(name, state) for name, state in states.items() if state.state not in ("done", "pruned")]
    for name, state in bad[:20]:
        line = f"{folder.path / name}: {state.state}: {state.error or 'not run'}"
        console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    if len(bad) > 20:
        console.print(f"and {len(bad) - 20} more; rapidun sweep status {folder.path} lists them", highlight=False)
    if next(folder.path.glob("**/wandb/offline-run-*"), None) is not None:
        console.print(f"W&B ran offline; to upload: rapidun wandb sync {folder.path}", highlight=False, soft_wrap=True)
    shown = ", ".join(f"{number} {word}" for word, number in counts.most_common())
    console.print(f"sweep: {len(states)} cells: {shown}", highlight=False, soft_wrap=True)
    return 1 if bad else 0
