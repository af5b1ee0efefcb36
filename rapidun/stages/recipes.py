"""What each stage of one configuration makes, and from what: known before anything is made.

A recipe's fingerprint follows from the settings and from the fingerprints of what it needs, so that a sweep can be
planned, and a finished artifact found, without running a stage. Only the pack's splits have to exist: every later
fingerprint covers their contents. Nothing here runs; `artifacts.py` finds or makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rapidun.base.errors import ConfigError, DataError
from rapidun.base.files import sha256_file, sha256_json
from rapidun.base.store import Artifact, Store, fingerprint
from rapidun.base.tracker import Tracker
from rapidun.config.model import Device
from rapidun.config.plain import plain
from rapidun.config.poison import PoisonMethod
from rapidun.config.run import RunConfig
from rapidun.config.unlearning import Objective
from rapidun.stages import plan

EVALUATION_SPLITS = ("clean", "seen_trig", "ood_trig", "unseen_family")
# what the CUDA and ROCm drivers (and WSL) put there; without any of them torch need not be asked
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

Build = Callable[[Path, Path], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How one artifact is made. `build(out, work)` may rely on everything in `needs` being there."""

    # whose result it is, and the store's name for it (a retrained model is unlearning's, kept under poison)
    stage: str
    kind: str
    # its name in the run folder
    link: str
    inputs: dict[str, Any]
    build: Build
    needs: tuple[Recipe, ...] = ()
    # made when something needs it, whatever `stages` says
    implicit: bool = False
    # every process of a data-parallel run takes part
    together: bool = False

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.kind, self.inputs)

    @property
    def id(self) -> str:
        """`poison/0123456789abcdef`: its folder below the store."""
        return f"{self.kind}/{self.fingerprint}"


@dataclass(frozen=True)
class Model:
    """Something with weights: made by a recipe, or a folder of the user's."""

    identity: str
    folder: Path
    recipe: Recipe | None = None

    @property
    def needs(self) -> tuple[Recipe, ...]:
        return (self.recipe,) if self.recipe else ()


class Memo:
    """Hashes of input files, remembered over the many configurations of a sweep."""

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]


class Recipes:
    """The recipes of one configuration, each worked out when it is first looked at.

    Args: find_data: gives the artifact of the data recipe, making it if need be. tracker: what stages report to.
    """

    def __init__(
        self,
        cfg: RunConfig,
        store: Store,
        *,
        find_data: Callable[[Recipe], Artifact],
        tracker: Tracker,
        memo: Memo | None = None,
        warm: bool = False,
    ) -> None:
        self.cfg = cfg
        self.store = store
        self.tracker = tracker
        self.memo = memo or Memo()
        self.warm = warm
        self._find_data = find_data

    def of_stage(self, stage: str) -> list[Recipe]:
        """What one stage makes, in order."""
        if stage == "data":
            return [self.data_recipe]
        if stage == "poison":
            found = [*self.poisoned.needs, *([self.retrained] if self.cfg.poison.retrain else [])]
        elif stage == "influence":
            found = [self.influence]
        elif stage == "mapping":
            found = [self.mapping]
        elif stage == "unlearning":
            found = [self.retrained if self.cfg.unlearning.objective is Objective.retrain else self.unlearned]
        else:
            found = [self.before, self.after]
        return found

    def all(self) -> list[Recipe]:
        """What the stages of this configuration make, in order."""
        return [recipe for stage in self.cfg.stages for recipe in self.of_stage(stage)]

    def path(self, recipe: Recipe) -> Path:
        return self.store.root / recipe.kind / recipe.fingerprint

    @cached_property
    def data_recipe(self) -> Recipe:
        from rapidun.stages.data.stage import DataFiles, data_inputs, run_data

        cfg, seed = self.cfg.data, self.cfg.data.seed
        key = ("data", sha256_json(plain(cfg)))
        inputs = self.memo.get(key, lambda: data_inputs(cfg, seed=seed))
        return Recipe(
            stage="data",
            kind="data",
            link="data",
            inputs=inputs,
            build=lambda out, work: run_data(cfg, DataFiles(out=out), seed=seed, tracker=self.tracker),
            implicit=True,
        )

    @cached_property
    def data(self) -> Artifact:
        return self._find_data(self.data_recipe)

    def _split(self, name: str) -> str:
        """Fingerprint of one split."""
        return self.data.result["fingerprints"][name]

    @cached_property
    def loader(self) -> Any:
        from rapidun.models.load import ModelLoader

        model = self.cfg.model
        return ModelLoader(
            dtype=model.dtype.name,
            quantisation=model.quantisation.name,
            attention=model.attention.name,
            device=model.device.name,
            keep=self.warm,
        )

    def hand_back(self) -> None:
        """Let the next stage of this process have the model that this one loaded, if it is as it was."""
        if "loader" in self.__dict__:
            self.loader.hand_back()

    @cached_property
    def dtype(self) -> str:
        """The resolved dtype; `auto` depends on the machine."""
        model = self.cfg.model
        if model.dtype.name != "auto":
            return model.dtype.name
        if model.device is Device.cpu or not any(Path(device).exists() for device in GPU_DEVICES):
            return "float32"
        from rapidun.models.load import pick_device, pick_dtype

        return str(pick_dtype("auto", pick_device(model.device.name))).removeprefix("torch.")

    @cached_property
    def start(self) -> Model:
        """The model before poisoning."""
        path = self.cfg.model.path
        if path is None:
            return self._made(self._scratch())
        if path.endswith(".gguf"):
            return self._made(self._converted(Path(path).expanduser()))

        def look() -> Model:
            from rapidun.models.load import fingerprint_files, local_folder

            folder = local_folder(path, revision=self.cfg.model.revision)
            return Model(self._folder_identity(folder, fingerprint_files(folder)), folder)

        return self.memo.get(("model", path, self.cfg.model.revision), look)

    def _made(self, recipe: Recipe) -> Model:
        return Model(recipe.fingerprint, self.path(recipe) / "model", recipe)

    def _scratch(self) -> Recipe:
        counts = self.data.result["counts"]
        names = [n for n in ("train_poisoned", "train_clean") if counts.get(n)] or ["forget", "retain"]
        sizes = plain(self.cfg.model.scratch)

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.models.scratch import make_scratch
            from rapidun.stages.rows.records import read_records

            records = [r for name in names for r in read_records(self.data.path / f"{name}.jsonl")]
            make_scratch(out / "model", records, **sizes, max_length=self.cfg.max_length, seed=self.cfg.poison.seed)
            return sizes

        inputs = plan.scratch_inputs(self.cfg, [self._split(name) for name in names])
        return Recipe("poison", "model", "model", inputs, build, needs=(self.data_recipe,), implicit=True)

    def _converted(self, source: Path) -> Recipe:
        if not source.is_file():
            raise ConfigError(f"model: need a .gguf file, got {source}, which is not there. Change model.path=...")

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.models.gguf import convert_gguf

            convert_gguf(source, out / "model")
            return {"source": source.name}

        inputs = {"gguf": self.memo.get(("gguf", source), lambda: self.store.file_hash(source))}
        return Recipe("poison", "model", "model", inputs, build, implicit=True)

    def _folder_identity(self, folder: Path, files: list[Path]) -> str:
        return sha256_json({file.name: self.store.file_hash(file) for file in files})[:16]

    def _poison(self, splits: list[str]) -> Recipe:
        """The start model fine-tuned on these splits."""
        counts = self.data.result["counts"]
        missing = [name for name in splits if not counts.get(name)]
        if missing:
            raise DataError(
                f"poison: need the splits {' and '.join(splits)}, got a pack without {' and '.join(missing)}. Pass "
                "poison=none where model.path is poisoned already, or data.train_poisoned=... data.train_clean=..."
            )
        start = self.start

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.stages.poison.stage import PoisonFiles, run_poison

            train = [self.data.path / f"{name}.jsonl" for name in splits]
            return run_poison(
                self.cfg.poison,
                PoisonFiles(start=start.folder, train=train, work=work, out=out),
                loader=self.loader,
                max_length=self.cfg.max_length,
                seed=self.cfg.poison.seed,
                tracker=self.tracker,
            )

        prints = [self._split(name) for name in splits]
        inputs = plan.poison_inputs(self.cfg, start=start.identity, splits=prints, dtype=self.dtype)
        retrain = "train_poisoned" not in splits
        # the yardstick is made when the poison stage is asked for it, or when it stands in for unlearning
        stage = "unlearning" if retrain and not self.cfg.poison.retrain else "poison"
        link = ("retrain" if self.cfg.poison.retrain else "unlearning") if retrain else "poison"
        return Recipe(
            stage, "poison", link, inputs, build, needs=(self.data_recipe, *start.needs), together=True
        )  # fmt: skip

    @cached_property
    def poisoned(self) -> Model:
        """The model that is to be unlearned."""
        if self.cfg.poison.method is PoisonMethod.none:
            return self.start
        return self._made(self._poison(["train_poisoned", "train_clean"]))

    @cached_property
    def retrained(self) -> Recipe:
        return self._poison(["train_clean"])

    @cached_property
    def adapter(self) -> Model | None:
        """The adapter to continue."""
        if self.cfg.unlearning.adapter is None:
            return None
        folder = Path(self.cfg.unlearning.adapter).expanduser()
        files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
        if not all(file.is_file() for file in files):
            raise ConfigError(
                f"unlearning: need a PEFT folder (adapter_config.json, adapter_model.safetensors), got {folder}. "
                "Change unlearning.adapter=..."
            )
        return self.memo.get(("adapter", folder), lambda: Model(self._folder_identity(folder, files), folder))

    @cached_property
    def influence(self) -> Recipe:
        model, adapter = self.poisoned, self.adapter

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.stages.influence.stage import InfluenceFiles, run_influence

            files = InfluenceFiles(
                model=model.folder,
                adapter=adapter.folder if adapter else None,
                forget=self.data.path / "forget.jsonl",
                retain=self.data.path / "retain.jsonl",
                out=out,
            )
            return run_influence(
                self.cfg.influence,
                files,
                loader=self.loader,
                max_length=self.cfg.max_length,
                seed=self.cfg.influence.seed,
                tracker=self.tracker,
            )

        inputs = plan.influence_inputs(
            self.cfg,
            model=model.identity,
            forget=self._split("forget"),
            retain=self._split("retain"),
            adapter=adapter.identity if adapter else None,
            dtype=self.dtype,
        )
        needs = (self.data_recipe, *model.needs)
        return Recipe("influence", "influence", "influence", inputs, build, needs=needs)

    @cached_property
    def mapping(self) -> Recipe:
        from rapidun.stages.mapping.stage import MappingFiles, run_mapping

        given = plan.score_files(self.cfg)
        needs: list[Recipe] = []
        scores = ids = forget = retain = None
        score_prints = row_prints = weight_prints = None
        if plan.needs_scores(self.cfg) and given:
            files = {name: _input_file(path, f"mapping.scores.{name}") for name, path in given.items()}
            if "path" in files and (files["path"].parent / "ids.json").is_file():
                files["ids"] = files["path"].parent / "ids.json"
            score_prints = {name: self._file_hash(file) for name, file in files.items()}
        elif plan.needs_scores(self.cfg):
            folder = self.path(self.influence)
            scores, ids = folder / "scores.safetensors", folder / "ids.json"
            score_prints = {"influence": self.influence.fingerprint}
            needs.append(self.influence)
        if self.cfg.mapping.method.name == "file":
            paths = {"forget": self.cfg.mapping.forget.path, "retain": self.cfg.mapping.retain.path}
            weight_prints = {
                name: self._file_hash(_input_file(path, f"mapping.{name}")) for name, path in paths.items() if path
            }
        # influence made elsewhere has no ids of its own: a longer run takes them from the pack
        alone = bool(score_prints) and self.cfg.stages == ["mapping"]
        if scores is None and not alone:
            forget, retain = self.data.path / "forget.jsonl", self.data.path / "retain.jsonl"
            row_prints = {"forget": self._split("forget"), "retain": self._split("retain")}
            needs.append(self.data_recipe)
        files_of = {"scores": scores, "ids": ids, "forget": forget, "retain": retain}
        inputs = plan.mapping_inputs(self.cfg, scores=score_prints, rows=row_prints, files=weight_prints)

        def build(out: Path, work: Path) -> dict[str, Any]:
            return run_mapping(
                self.cfg.mapping, MappingFiles(out=out, **files_of), seed=self.cfg.seed, tracker=self.tracker
            )

        return Recipe("mapping", "mapping", "mapping", inputs, build, needs=tuple(needs))

    def _file_hash(self, file: Path) -> str:
        return self.memo.get(("file", file), lambda: sha256_file(file))

    @cached_property
    def unlearned(self) -> Recipe:
        model, mapping, adapter = self.poisoned, self.mapping, self.adapter
        has_val = bool(self.data.result["counts"].get("val_clean"))
        names = ["forget", "retain", *(["val_clean"] if has_val and self.cfg.unlearning.eval_steps else [])]

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning

            data, weights = self.data.path, self.path(mapping)
            files = UnlearningFiles(
                model=model.folder,
                forget=data / "forget.jsonl",
                retain=data / "retain.jsonl",
                val_clean=data / "val_clean.jsonl" if has_val else None,
                forget_weights=weights / "forget_weights.jsonl",
                retain_weights=weights / "retain_weights.jsonl",
                work=work,
                out=out,
            )
            return run_unlearning(
                self.cfg.unlearning,
                files,
                loader=self.loader,
                max_length=self.cfg.max_length,
                seed=self.cfg.seed,
                tracker=self.tracker,
            )

        inputs = plan.unlearning_inputs(
            self.cfg,
            model=model.identity,
            splits={name: self._split(name) for name in names},
            mapping=mapping.fingerprint,
            adapter=adapter.identity if adapter else None,
            dtype=self.dtype,
        )
        needs = (self.data_recipe, *model.needs, mapping)
        return Recipe("unlearning", "unlearning", "unlearning", inputs, build, needs=needs, together=True)

    @cached_property
    def before(self) -> Recipe:
        return self._evaluate("evaluation/.before", self.poisoned, self.adapter, None)

    @cached_property
    def after(self) -> Recipe:
        if self.cfg.unlearning.objective is Objective.retrain:
            return self._evaluate("evaluation/.after", self._made(self.retrained), None, self.before)
        unlearned = self.unlearned
        adapter = Model(unlearned.fingerprint, self.path(unlearned) / "adapter", unlearned)
        return self._evaluate("evaluation/.after", self.poisoned, adapter, self.before)

    def _evaluate(self, link: str, model: Model, adapter: Model | None, calibration: Recipe | None) -> Recipe:
        split = self.cfg.evaluation.split.name
        used = [f"{split}_{name}" for name in EVALUATION_SPLITS]
        used += ["forget", "retain", "train_poisoned", "train_clean", "val_clean"]
        counts = self.data.result["counts"]

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.stages.evaluation.stage import EvaluationFiles, run_evaluation

            files = EvaluationFiles(
                model=model.folder,
                adapter=adapter.folder if adapter else None,
                data=self.data.path,
                calibration=self.path(calibration) / "metrics.json" if calibration else None,
                out=out,
            )
            return run_evaluation(
                self.cfg.evaluation,
                files,
                loader=self.loader,
                max_length=self.cfg.max_length,
                seed=self.cfg.evaluation.seed,
                tracker=self.tracker,
            )

        inputs = plan.evaluation_inputs(
            self.cfg,
            model=model.identity,
            adapter=adapter.identity if adapter else None,
            splits={name: self._split(name) for name in used if counts.get(name)},
            keywords=self._file_hash(self.data.path / "keywords.tsv"),
            calibration=calibration.fingerprint if calibration else None,
            dtype=self.dtype,
        )
        needs = (self.data_recipe, *model.needs, *(adapter.needs if adapter else ()))
        needs += (calibration,) if calibration else ()
        return Recipe("evaluation", "evaluation", link, inputs, build, needs=needs)


def _input_file(path: str, key: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{key}: need a file, got {path}, which is not there. Change {key}=...")
    return file
