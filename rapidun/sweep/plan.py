"""Which artifacts the cells of a sweep need, which of them are there, and the jobs that make the others.

Every heavy artifact that several cells share is made by one job of its own; the cells that need it start when it is
there. What only one cell needs is made by that cell's job. Light stages (data, mapping) never get a job: data is made
while planning, a shared mapping right after the influence that it reads, or before anything is submitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.base.manifest import Artifact, DamagedArtifact
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.config.cells import Cell
from rapidun.config.globs import sift
from rapidun.config.plain import plain
from rapidun.config.sweep import ResourcesConfig
from rapidun.pipeline.check import run_faults
from rapidun.stages.context import Memo
from rapidun.stages.poison.recipe import settle_by_size
from rapidun.stages.recipe import Recipe
from rapidun.stages.recipes import LIGHT, Recipes


@dataclass
class Node:
    """An artifact of the sweep: its recipe, the cell whose settings make it, and who needs it."""

    recipe: Recipe
    cell: Cell
    found: Artifact | None
    # cells for which it has to be made (empty when it is there)
    users: list[Cell] = field(default_factory=list)


@dataclass(kw_only=True)
class PlannedJob:
    """One job: shared artifacts of one stage, or whole cells."""

    id: str
    wave: int
    # artifacts that it makes for others, as nodes; or the cells that it runs
    nodes: list[Node] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    # artifacts that those jobs make for it
    requires: list[str] = field(default_factory=list)
    resources: ResourcesConfig

    @property
    def stage(self) -> str | None:
        """The stage whose shared artifact this job makes; None for a job of cells."""
        return self.nodes[0].recipe.stage if self.nodes else None


@dataclass(kw_only=True)
class Plan:
    """What a sweep does: `nodes` by recipe id, in an order in which they can be made."""

    nodes: dict[str, Node]
    # cell hash -> ids of the artifacts that its run folder links
    artifacts: dict[str, dict[str, str]]
    jobs: list[PlannedJob]
    # shared light artifacts that can be made at once
    at_once: list[Node]

    def counts(self) -> dict[str, tuple[int, int]]:
        """stage -> (distinct artifacts, those that are there already)."""
        total: Counter[str] = Counter(node.recipe.stage for node in self.nodes.values())
        there: Counter[str] = Counter(node.recipe.stage for node in self.nodes.values() if node.found)
        return {stage: (number, there[stage]) for stage, number in total.items()}


class Planner:
    """Looks at the cells of a sweep one after the other; artifacts and file hashes are looked up once."""

    def __init__(self, store: Store, *, here: bool = True) -> None:
        """Args: here: jobs run on this machine."""
        self.store = store
        self.here = here
        self.memo = Memo()
        # lines for the log
        self.notes: dict[str, None] = {}
        # packs whose splits had to be made
        self.num_made = 0
        self.nodes: dict[str, Node] = {}
        self.artifacts: dict[str, dict[str, str]] = {}
        self._data: dict[str, Artifact] = {}

    def faults_of(self, cell: Cell) -> list[str]:
        """What is wrong with one cell: its settings and files, then what only the pack's rows tell."""
        faults = run_faults(cell.cfg, memo=self.memo, here=self.here)
        return faults or self._recipes(cell).faults_of_rows()

    def _recipes(self, cell: Cell) -> Recipes:
        settled = settle_by_size(cell.cfg, self.memo)
        if settled:
            self.notes[settled] = None
        return Recipes(
            cell.cfg, self.store, find_data=self._find_data, tracker=Tracker(), memo=self.memo, here=self.here
        )  # fmt: skip

    def add(self, cell: Cell) -> None:
        """Note what the cell's stages make.

        Raises: RapidunError for a pack, a model or an earlier stage that is not there.
        """
        recipes = self._recipes(cell)
        faults = recipes.faults_of_rows()
        if faults:
            raise ConfigError(faults)
        linked: dict[str, str] = {}
        for recipe in recipes.all():
            self._note(recipe, cell)
            linked[recipe.link] = recipe.id
        self.artifacts[cell.hash] = linked

    def _note(self, recipe: Recipe, cell: Cell) -> Node:
        node = self.nodes.get(recipe.id)
        if node is None:
            found = self._whole(recipe)
            if found is None:
                for need in recipe.needs:
                    self._note(need, cell)
                if not recipe.implicit and recipe.stage not in cell.cfg.stages:
                    raise ConfigError(
                        f"stages: need the result of {recipe.stage} for {cell.cfg.stages}, found none of these "
                        f"settings in {self.store.root}. Add {recipe.stage} to stages=[...], or change store_dir=..."
                    )
            node = self.nodes[recipe.id] = Node(recipe, cell, found)
        elif node.found is None:
            for need in node.recipe.needs:
                self._note(need, cell)
        if node.found is None and (not node.users or node.users[-1] is not cell):
            node.users.append(cell)
        return node

    def _whole(self, recipe: Recipe) -> Artifact | None:
        """Damaged counts as missing here; the run that makes it anew moves it away, and names the file."""
        try:
            return self.store.whole(recipe.key)
        except DamagedArtifact as damage:
            self._note_line(f"{damage}. It is made anew")
            return None

    def _note_line(self, line: str) -> None:
        self.notes[f"warning: {line}"] = None

    def _find_data(self, recipe: Recipe) -> Artifact:
        """Data is made while planning: what later artifacts are called depends on its splits."""
        if recipe.id not in self._data:
            self.store.set_aside_damaged(recipe.key, tell=self._note_line)
            self._data[recipe.id], was_there = self.store.make(recipe.key, recipe.build)
            self.num_made += not was_there
        return self._data[recipe.id]

    def plan(self, cells: Sequence[Cell], *, prefix: str = "") -> Plan:
        """The jobs that bring these cells (all of them added before) to their end.

        Args: prefix: begins the ids of the jobs, so that those of a second launch differ.
        """
        wanted = {cell.hash for cell in cells}
        missing = {
            id: node for id, node in self.nodes.items() if any(cell.hash in wanted for cell in node.users)
        }  # fmt: skip
        shared = {
            id: node for id, node in missing.items()
            if node.recipe.kind not in LIGHT and sum(cell.hash in wanted for cell in node.users) > 1
        }  # fmt: skip
        # a start model that is needed by one shared artifact alone is made on the way to it
        for id in [id for id, node in shared.items() if node.recipe.kind == "model"]:
            if sum(id in (need.id for need in node.recipe.needs) for node in missing.values()) == 1:
                del shared[id]
        at_once, jobs, maker = _stage_jobs(shared, missing, prefix)
        jobs += _cell_jobs(cells, self._needed_by(cells, shared), maker, prefix)
        return Plan(nodes=self.nodes, artifacts=self.artifacts, jobs=jobs, at_once=at_once)

    def _needed_by(self, cells: Iterable[Cell], shared: dict[str, Node]) -> dict[str, list[str]]:
        """cell hash -> the shared artifacts that it waits for."""
        needed: dict[str, list[str]] = {cell.hash: [] for cell in cells}
        for id, node in shared.items():
            for cell in node.users:
                if cell.hash in needed:
                    needed[cell.hash].append(id)
        return needed


def _stage_jobs(
    shared: dict[str, Node], missing: dict[str, Node], prefix: str
) -> tuple[list[Node], list[PlannedJob], dict[str, PlannedJob]]:
    """One job for each shared heavy artifact, shared mappings behind the influence that they read."""
    jobs: list[PlannedJob] = []
    maker: dict[str, PlannedJob] = {}
    at_once: list[Node] = []
    for id, node in missing.items():  # needs come before what needs them
        above = [maker[need] for need in _nearest_made(node.recipe, maker, missing)]
        if id in shared:
            job = PlannedJob(
                id=f"{prefix}{node.recipe.kind}-{node.recipe.fingerprint[:8]}",
                wave=1 + max((job.wave for job in above), default=0),
                nodes=[node],
                needs=_without_ancestors(above, {job.id: job for job in jobs}),
                requires=[node.recipe.id for job in above for node in job.nodes],
                resources=node.cell.cfg.resources,
            )
            jobs.append(job)
            maker[id] = job
        elif node.recipe.kind == "mapping" and len(node.users) > 1:
            if len(above) == 1 and above[0].stage == "influence":
                above[0].nodes.append(node)
                maker[id] = above[0]
            elif not above:
                at_once.append(node)
    return at_once, jobs, maker


def _nearest_made(recipe: Recipe, maker: dict[str, PlannedJob], missing: dict[str, Node]) -> list[str]:
    """The artifacts that other jobs make and this recipe needs, itself or through what is made on the way to it."""
    found: list[str] = []
    for need in recipe.needs:
        if need.id in maker:
            found.append(need.id)
        elif need.id in missing:
            found += _nearest_made(need, maker, missing)
    return list(dict.fromkeys(found))


def _without_ancestors(jobs: Sequence[PlannedJob], by_id: dict[str, PlannedJob]) -> list[str]:
    """Ids of these jobs, without those that another one waits for already."""
    above: set[str] = set()

    def climb(id: str) -> None:
        for need in by_id[id].needs:
            if need not in above:
                above.add(need)
                climb(need)

    ids = list(dict.fromkeys(job.id for job in jobs))
    for id in ids:
        climb(id)
    return [id for id in ids if id not in above]


def _cell_jobs(
    cells: Sequence[Cell], needed: dict[str, list[str]], maker: dict[str, PlannedJob], prefix: str
) -> list[PlannedJob]:
    """Jobs of one cell, or of `resources.cells_per_job` that wait for the same things and may use the same."""
    by_id = {job.id: job for job in maker.values()}
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        jobs = [maker[id] for id in needed[cell.hash] if id in maker]
        key = (*_without_ancestors(jobs, by_id), tuple(plain(cell.cfg.resources).items()))
        groups.setdefault(key, []).append(cell)
    made: list[PlannedJob] = []
    for group in groups.values():
        first = group[0]
        jobs = [maker[id] for id in needed[first.hash] if id in maker]
        size = first.cfg.resources.cells_per_job
        for start in range(0, len(group), size):
            part = group[start : start + size]
            made.append(
                PlannedJob(
                    id=f"{prefix}cells-{len(made) + 1:04d}",
                    wave=1 + max((job.wave for job in jobs), default=0),
                    cells=part,
                    needs=_without_ancestors(jobs, by_id),
                    requires=list(dict.fromkeys(id for cell in part for id in needed[cell.hash] if id in maker)),
                    resources=first.cfg.resources,
                )
            )
    return made


def without_misfits(planner: Planner, cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """The cells without those that a pattern (mapping=glob(*)) found and cannot run here, and what is said of them."""
    patterns = cells[0].patterns
    if not patterns:
        return list(cells), []
    found = sift([cell.axes for cell in cells], [planner.faults_of(cell) for cell in cells], patterns)
    return [cell for place, cell in enumerate(cells) if place not in found.left_out], found.notes


def plan_cells(
    planner: Planner, cells: Sequence[Cell], *, on_progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Check every cell, then add it; return what is wrong, each fault once."""
    faults: dict[str, None] = {}
    for cell in cells:
        faults.update(dict.fromkeys(run_faults(cell.cfg, memo=planner.memo, here=planner.here)))
    if faults:
        return list(faults)
    for done, cell in enumerate(cells, start=1):
        try:
            planner.add(cell)
        except RapidunError as error:
            faults.update(dict.fromkeys(error.faults if isinstance(error, ConfigError) else [str(error)]))
        if on_progress is not None:
            on_progress(done, len(cells))
    return list(faults)


def folder_of(node: Node, sweep_dir: Path) -> Path:
    """The run folder of a shared artifact."""
    return sweep_dir / "stages" / f"{node.recipe.kind}-{node.recipe.fingerprint}"
