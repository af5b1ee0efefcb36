"""Each stage's artifact: found in the store, or made if its stage was asked for."""

from pathlib import Path
from typing import Any

from rapidun.base import processes
from rapidun.base.errors import ArtifactError
from rapidun.base.files import write_jsonl
from rapidun.base.grown import mend
from rapidun.base.machine import quiet_libraries, set_threads
from rapidun.base.manifest import Artifact, DamagedArtifact
from rapidun.base.store import Store
from rapidun.config.run import RunConfig
from rapidun.pipeline.tracking.lines import KEYS, read_lines, without_repeats
from rapidun.pipeline.tracking.run import RunTracker
from rapidun.stages.context import Memo
from rapidun.stages.recipe import Recipe
from rapidun.stages.recipes import LIGHT, STAGES, Recipes


class Artifacts:
    """The artifacts of one configuration, each obtained when it is first asked for.

    `made[stage]` says of each of a stage's artifacts whether it was made now; `links[stage]` names them for the run
    folder.
    """

    def __init__(self, cfg: RunConfig, tracker: RunTracker, *, memo: Memo | None = None, warm: bool = False) -> None:
        self.cfg = cfg
        self.tracker = tracker
        self.store = Store(Path(cfg.store_dir))
        self.recipes = Recipes(cfg, self.store, find_data=self.get, tracker=tracker, memo=memo, warm=warm)
        self.made: dict[str, list[bool]] = {}
        self.links: dict[str, dict[str, Artifact]] = {}
        self._got: dict[str, Artifact] = {}

    def run_stage(self, stage: str) -> None:
        """Obtain everything that one stage makes."""
        for recipe in self.recipes.of_stage(stage):
            self.get(recipe)

    def get(self, recipe: Recipe) -> Artifact:
        """The artifact of a recipe: from the store, or built where its stage was asked for (or it is implicit).

        What is found is compared with the hashes of when it was made; what differs is moved away and made anew.
        Raises: ArtifactError if it is in neither, naming the stage to add, or damaged and its stage was not asked for.
        """
        key = f"{recipe.id} {recipe.link}"
        if key in self._got:
            return self._got[key]
        found = self._find(recipe)
        if found is not None:
            artifact, was_there = found, True
        elif self._may_make(recipe):
            needs = [self.get(need) for need in recipe.needs]
            artifact, was_there = self._make(recipe, reads={need.id: need.digest for need in needs})
        else:
            missing = self._first_missing(recipe)
            raise ArtifactError(
                f"stages: need the result of {missing.stage} for {self.cfg.stages}, found none of these settings in "
                f"{self.store.root}. Add it: stages=[{missing.stage},...,{self.cfg.stages[0]}], or change store_dir=..."
            )
        self._got[key] = artifact
        self.made.setdefault(recipe.stage, []).append(not was_there)
        self.links.setdefault(recipe.stage, {})[recipe.link] = artifact
        # what was decided when it was made holds for this run as well
        for note in artifact.result.get("notes", []) if was_there else ():
            self.tracker.note(note)
        for warning in artifact.result.get("warnings", []):
            self.tracker.warn(warning)
        return artifact

    def note_run(self, run_dir: Path) -> None:
        """Let the store know of a run folder that links there."""
        unsaid = self.store.note_run(run_dir)
        if unsaid:
            self.tracker.warn(unsaid)

    def what_ran(self) -> str:
        """The stages that were run and where what they made is kept; empty where all was reused or none reached."""
        ran = [stage for stage in STAGES if any(self.made.get(stage, ()))]
        return f"{', '.join(ran)} {'was' if len(ran) == 1 else 'were'} run, kept in {self.store.root}" if ran else ""

    def _find(self, recipe: Recipe) -> Artifact | None:
        """What rank 0 finds holds for all processes of a run: another may look a moment later and see more."""
        found = self._look(recipe) if processes.is_main() else None
        is_there = processes.share(found is not None)
        return found or (self.store.find(recipe.key) if is_there else None)

    def _may_make(self, recipe: Recipe) -> bool:
        return recipe.implicit or recipe.stage in self.cfg.stages

    def _look(self, recipe: Recipe) -> Artifact | None:
        try:
            return self.store.whole(recipe.key)
        except DamagedArtifact as damage:
            if not self._may_make(recipe):
                raise ArtifactError(
                    f"{damage}. Add the stage that makes it anew: stages=[{recipe.stage},...,{self.cfg.stages[0]}]"
                ) from None
            self.store.set_aside_damaged(recipe.key, tell=self.tracker.warn)
            return self.store.find(recipe.key)

    def _first_missing(self, recipe: Recipe) -> Recipe:
        """The earliest stage without which this recipe cannot be made."""
        for need in recipe.needs:
            if not need.implicit and self.store.find(need.key) is None:
                return self._first_missing(need)
        return recipe

    def _make(self, recipe: Recipe, *, reads: dict[str, str]) -> tuple[Artifact, bool]:
        building = False

        def build(out: Path, work: Path) -> dict[str, Any]:
            nonlocal building
            building = True
            metrics = work / "metrics.jsonl"
            cut = mend(metrics, *KEYS) if processes.is_main() else ""
            if cut:
                self.tracker.warn(cut)
            self.tracker.stage_started(
                recipe.stage,
                recipe.kind,
                recipe.fingerprint,
                recipe.inputs,
                needs=[need.id for need in recipe.needs],
            )
            before = self.tracker.begin(recipe.stage, metrics)
            if recipe.kind not in LIGHT:  # those need no torch
                set_threads(self.cfg.resources.num_threads)
            quiet_libraries()
            try:
                result = recipe.build(out, work)
            finally:
                self.tracker.begin(*before)
                self.recipes.hand_back()
            if metrics.is_file():
                write_jsonl(out / "metrics.jsonl", without_repeats(read_lines(metrics)))
            return result

        try:
            artifact, was_there = self.store.make(
                recipe.key, build, together=recipe.together, reads=reads, on_wait=self.tracker.warn
            )
        except BaseException as error:
            if building:
                self.tracker.stage_failed(error)
            raise
        if building:
            self.tracker.stage_finished(recipe.stage, artifact.path, artifact.manifest)
        return artifact, was_there
