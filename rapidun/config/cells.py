"""From overrides to checked configurations: one run, or every cell of a sweep. OmegaConf ends here."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import ConfigError
from rapidun.base.files import sha256_json
from rapidun.config import paths
from rapidun.config.asked import Asked
from rapidun.config.compose import ComposedRow, Composer, compose_row, hydra_ready, refuse
from rapidun.config.globs import sift
from rapidun.config.grid import Axis, make_grid, read_parts
from rapidun.config.overrides import TUNER, Checked, check_overrides, parse
from rapidun.config.plain import plain
from rapidun.config.run import BOOKKEEPING, RunConfig
from rapidun.config.where import Where

# overrides that leave the cells of a sweep what they are: the same command with others of these goes on in its folder
_UNNAMED = re.compile(
    rf"({'|'.join(name for name in BOOKKEEPING if name != 'name')})(\..*)?|hydra/launcher|hydra\.(?!sweeper\.).*"
    r"|hydra\.sweeper\.(n_trials|batch_size)"
)

Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep: its overrides as Hydra takes them and its checked configuration."""

    overrides: list[str]
    cfg: RunConfig
    # the swept keys and this cell's values, as text, in the order of the command line
    axes: dict[str, str] = field(default_factory=dict)
    # see cell_hash
    hash: str = ""
    # of the axes those that are patterns: key -> `glob(*)`
    patterns: dict[str, str] = field(default_factory=dict)


class Composed(NamedTuple):
    """The cells of a sweep, and how many of the grid they are."""

    cells: list[Cell]
    # what was left out and why, one line each
    notes: list[str]
    # cells of the grid
    num_grid: int
    # what was typed and no cell reads, one line each
    warnings: tuple[str, ...] = ()


class SearchSpace(NamedTuple):
    """What a sweeper that picks its own values needs: the fixed overrides and the axes, intervals among them."""

    fixed: list[str]
    axes: list[Axis]


def compose_cells(
    overrides: Sequence[str], *, extra_dir: Path | None = None, on_progress: Progress | None = None
) -> list[Cell]:
    """The cells of compose_sweep."""
    return compose_sweep(overrides, extra_dir=extra_dir, on_progress=on_progress).cells


def compose_sweep(
    overrides: Sequence[str], *, extra_dir: Path | None = None, on_progress: Progress | None = None
) -> Composed:
    """Compose and check every cell of a sweep: the product of all swept overrides, in the order of Hydra's own sweeper.

    Axes in a group of sweep.zip advance together; cells for which sweep.where does not hold are left out before they
    are checked; of cells with the same settings (see cell_hash) the first one is kept.

    Args: on_progress: called with the number of cells done and that of the grid.
    Raises: ConfigError with every fault that was found in any cell.
    """
    groups = paths.config_groups(extra_dir)
    checked = _check_sweep(overrides, groups)
    with hydra_ready(extra_dir) as extra:
        parts, steady = _read_sweep(checked, extra, groups)
        zipped = steady.sweep.zip if steady is not None else []
        try:
            grid = make_grid(parts, zipped)
        except ConfigError as error:
            refuse([*checked.faults, *error.faults])
            raise
        composer = Composer(extra, groups)
        asked = Asked(launcher_of(overrides))
        patterns = {axis.key: axis.pattern for axis in grid.axes if axis.pattern}
        sieve = _Sieve(groups, check=checked.certain, asked=asked, patterns=patterns)
        num_grid = len(grid)
        for done, (row, axes) in enumerate(grid.rows(), start=1):
            made, fault = composer.cell(row)
            if made is None:
                sieve.refuse(axes, fault)
            else:
                sieve.add(row, axes, made)
                if made.cfg.sweep.zip != zipped:
                    sieve.faults["sweep.zip: need one for all cells, got several. Pass sweep.zip=..."] = None
            if on_progress is not None:
                on_progress(done, num_grid)
        sieve.finish()
    names = {cell.cfg.sweep.name for cell in sieve.cells} - {None}
    faults = [f"sweep.name: need a name without slashes, got {name!r}" for name in names if not _is_plain(str(name))]
    refuse([*checked.faults, *asked.faults, *sieve.faults, *faults])
    if not sieve.cells:
        shown = " and ".join(map(repr, sieve.expressions))
        raise ConfigError(
            f"sweep.where: need some cell to be left, got {shown}, true for none of {num_grid}. Change it"
        )
    return Composed(sieve.cells, sieve.notes(num_grid), num_grid, tuple(asked.warnings))


def compose_rows(
    rows: Iterable[Sequence[str]],
    *,
    extra_dir: Path | None = None,
    on_progress: Progress | None = None,
    asked: Asked | None = None,
) -> list[Cell]:
    """Compose and check cells whose overrides are given, none left out; `axes` stay empty.

    Args: asked: looks at each of them.
    Raises: ConfigError with every fault that was found in any cell.
    """
    groups = paths.config_groups(extra_dir)
    checked = [check_overrides(row, groups=groups, multirun=False) for row in rows]
    cells: list[Cell] = []
    faults = [fault for row in checked for fault in row.faults]
    with hydra_ready(extra_dir) as extra:
        composer = Composer(extra, groups)
        for done, row in enumerate(checked, start=1):
            made, fault = composer.cell(row.overrides)
            if made is None:
                faults.append(fault)
            else:
                faults += made.cfg.check() if row.certain else []
                if asked is not None and row.certain:
                    asked.look(row.overrides, made.cfg, made.choices)
                cells.append(Cell(row.overrides, made.cfg, {}, cell_hash(made.cfg)))
            if on_progress is not None:
                on_progress(done, len(checked))
    refuse(faults)
    return cells


def launcher_of(overrides: Sequence[str]) -> str:
    """The launcher that overrides choose."""
    return dict(text.lstrip("+").partition("=")[::2] for text in overrides).get("hydra/launcher", "basic")


def search_space(overrides: Sequence[str], *, extra_dir: Path | None = None) -> SearchSpace:
    """Read the swept overrides, those of an experiment file's hydra.sweeper.params included, without composing cells.

    Raises: ConfigError with every fault of the overrides.
    """
    groups = paths.config_groups(extra_dir)
    checked = _check_sweep(overrides, groups)
    with hydra_ready(extra_dir) as extra:
        parts, _ = _read_sweep(checked, extra, groups)
    refuse(checked.faults)
    return SearchSpace(
        [part for part in parts if isinstance(part, str)], [part for part in parts if isinstance(part, Axis)]
    )


def sweep_name(overrides: Sequence[str], *, name: str | None = None) -> str:
    """Name a sweep by its overrides, so that the same command finds its folder again: `<name>-<8 hex digits>`.

    The order of the overrides does not matter, nor do those that leave the cells what they are (sweep.*, resources,
    cluster, tracking, store_dir, the launcher, the number of trials).

    Args: name: what it begins with; None = the `name` or the experiment of the overrides, else `sweep`.
    """
    found: dict[str, str] = {}
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        found[key] = value
    kept = sorted(text for text in {text.lstrip("+") for text in overrides} if not _is_unnamed(text))
    experiment = Path(found.get("experiment", "").strip("\"'")).name.removesuffix(".yaml")
    word = name or found.get("name") or experiment or "sweep"
    word = re.sub(r"[^A-Za-z0-9._-]+", "_", word).strip("._-")[:60] or "sweep"
    return f"{word}-{sha256_json(kept)[:8]}"


def _is_unnamed(text: str) -> bool:
    return _UNNAMED.fullmatch(text.partition("=")[0]) is not None


def cell_hash(cfg: RunConfig) -> str:
    """Name a sweep cell by the settings that its numbers depend on: 10 hex digits."""
    return sha256_json(science(cfg))[:10]


def science(cfg: RunConfig) -> dict[str, Any]:
    """The settings that numbers depend on, as JSON values."""
    found = {key: value for key, value in plain(cfg).items() if key not in BOOKKEEPING}
    for section in ("mapping", "unlearning"):
        # it came later: cells that have nothing in it keep their names
        if not found[section]["extension"]:
            del found[section]["extension"]
    return found


class _Sieve:
    """Collects the cells that are kept, the faults of all of them, and what was left out."""

    def __init__(
        self, groups: Mapping[str, Sequence[str]], *, check: bool, asked: Asked, patterns: Mapping[str, str]
    ) -> None:
        self.cells: list[Cell] = []
        self.faults: dict[str, None] = {}
        self.expressions: dict[str, Where | None] = {}
        self._groups = groups
        self._check = check
        self._asked = asked
        self._num_folded = 0
        self._num_filtered = 0
        self._hashes: set[str] = set()
        self._patterns = dict(patterns)
        # with patterns: every row with its axes and faults, until all are known
        self._rows: list[tuple[list[str], dict[str, str], ComposedRow | None, list[str]]] = []
        self._left_out: list[str] = []

    def refuse(self, axes: dict[str, str], fault: str) -> None:
        """A row that does not compose."""
        if self._patterns:
            self._rows.append(([], axes, None, [fault]))
        else:
            self.faults[fault] = None

    def finish(self) -> None:
        """Now that all rows are known: leave out what patterns found and cannot stand in the grid."""
        if not self._rows:
            return
        found = sift([axes for _, axes, _, _ in self._rows], [faults for *_, faults in self._rows], self._patterns)
        self.faults.update(dict.fromkeys(found.faults))
        self._left_out = found.notes
        for place, (row, axes, made, _) in enumerate(self._rows):
            if made is not None and place not in found.left_out:
                self._keep(row, axes, made)

    def add(self, row: list[str], axes: dict[str, str], made: ComposedRow) -> None:
        if not self._check:
            return
        try:
            kept = self._is_kept(made)
        except ConfigError as error:
            self.faults.update(dict.fromkeys(error.faults))
            self.expressions[str(made.cfg.sweep.where)] = None  # named once, not for each cell
            kept = True
        if not kept:
            self._num_filtered += 1
            return
        faults = made.cfg.check()
        if self._patterns:
            self._rows.append((row, axes, made, faults))
        else:
            self.faults.update(dict.fromkeys(faults))
            self._keep(row, axes, made)

    def _keep(self, row: list[str], axes: dict[str, str], made: ComposedRow) -> None:
        self._asked.look(row, made.cfg, made.choices)
        digest = cell_hash(made.cfg)
        if digest in self._hashes:
            self._num_folded += 1
            return
        self._hashes.add(digest)
        self.cells.append(Cell(row, made.cfg, axes, digest, self._patterns))

    def _is_kept(self, made: ComposedRow) -> bool:
        expression = made.cfg.sweep.where
        if expression is None:
            return True
        if expression not in self.expressions:
            self.expressions[expression] = Where(expression, groups=self._groups)
        where = self.expressions[expression]
        return where is None or where.holds(made.cfg, choices=made.choices)

    def notes(self, num_grid: int) -> list[str]:
        notes = list(self._left_out)
        if self._num_filtered:
            shown = " and ".join(self.expressions)
            notes.append(f"sweep.where keeps {num_grid - self._num_filtered} of {num_grid} cells: {shown}")
        if self._num_folded:
            notes.append(
                f"{_count(self._num_folded, 'cell')} with the same settings as an earlier one folded into it "
                f"(what does not change the numbers is not counted: {', '.join(BOOKKEEPING)})"
            )
        return notes


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _check_sweep(overrides: Sequence[str], groups: Mapping[str, Sequence[str]]) -> Checked:
    """Check the overrides of a sweep, and what only a sweep cannot take."""
    checked = check_overrides(overrides, groups=groups, multirun=True)
    if any(text.startswith("run_dir=") for text in checked.overrides):
        checked.faults.append("run_dir: each cell of a sweep has a folder of its own. Pass sweep.name=... instead")
    return checked


def _read_sweep(
    checked: Checked, extra: Sequence[Path], groups: Mapping[str, Sequence[str]]
) -> tuple[tuple[str | Axis, ...], RunConfig | None]:
    """All overrides, those of an experiment file's hydra.sweeper.params first, and what the fixed ones compose to."""
    steady, _ = compose_row([text for text in checked.overrides if not parse(text).is_sweep_override()], extra)
    params: list[str] = []
    if steady is not None:  # what is wrong is reported when the cells are composed
        found = check_overrides(
            [f"{key}={value}" for key, value in steady.params.items()],
            groups=groups,
            multirun=True,
            intervals=f"hydra/sweeper={steady.choices.get('hydra/sweeper')}" == TUNER,
        )
        params = found.overrides
        checked.faults.extend(f"hydra.sweeper.params: {fault}" for fault in found.faults)
    return read_parts([*params, *checked.overrides], groups=groups), steady.cfg if steady is not None else None


def _is_plain(name: str) -> bool:
    return bool(name.strip(" .")) and not any(c in name for c in "/\\\0")
