"""Each stage's artifact: found in the store, or made if its stage was asked for."""

import logging
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from rapidun import plan
from rapidun.config import Device, RunConfig
from rapidun.errors import ArtifactError, ConfigError, DataError
from rapidun.files import read_jsonl, sha256_file, sha256_json, write_jsonl
from rapidun.poison.config import PoisonMethod
from rapidun.schema import plain
from rapidun.store import Artifact, Store, fingerprint
from rapidun.tracking import RunTracker, without_repeats
from rapidun.unlearning.config import Objective

EVALUATION_SPLITS = ("clean", "seen_trig", "ood_trig", "unseen_family")


class Artifacts:
    """The artifacts of one configuration, each obtained when it is first looked at.

    `made[stage]` says of each of a stage's artifacts whether it was made now; `links[stage]` names them for the run
    folder.
    """

    def __init__(self, cfg: RunConfig, tracker: RunTracker) -> None:
        self.cfg = cfg
        self.tracker = tracker
        self.store = Store(Path(cfg.store_dir))
        self.made: dict[str, list[bool]] = {}
        self.links: dict[str, dict[str, Artifact]] = {}

    def run_stage(self, stage: str) -> None:
        """Obtain everything that one stage makes."""
        if stage == "poison":
            _ = self.poisoned
            if self.cfg.poison.retrain:
                _ = self.retrained
        elif stage == "unlearning":
            _ = self.after_model
        elif stage == "evaluation":
            _ = self.before
            _ = self.after
        else:
            getattr(self, stage)

    def _obtain(
        self,
        stage: str,
        inputs: dict[str, Any],
        build: Callable[[Path, Path], dict[str, Any]],
        *,
        link: str,
        kind: str | None = None,
        implicit: bool = False,
    ) -> Artifact:
        """The artifact of `inputs`: from the store, or built where `stage` was asked for (or is `implicit`)."""

        def build_with_metrics(out: Path, work: Path) -> dict[str, Any]:
            metrics = work / "metrics.jsonl"
            before = self.tracker.begin(stage, metrics)
            _quiet_libraries()
            try:
                result = build(out, work)
            finally:
                self.tracker.begin(*before)
            if metrics.is_file():
                write_jsonl(out / "metrics.jsonl", without_repeats(read_jsonl(metrics)))
            return result

        kind = kind or stage
        asked = stage in self.cfg.stages
        if asked or implicit:
            artifact, found = self.store.make(kind, inputs, build_with_metrics)
        else:
            existing = self.store.find(kind, inputs)
            if existing is None:
                first = self.cfg.stages[0]
                raise ArtifactError(
                    f"stages: need the result of {stage} for {self.cfg.stages}, found none of these settings in "
                    f"{self.store.root}. Add it: stages=[{stage},...,{first}], or change store_dir=..."
                )
            artifact, found = existing, True
        self.made.setdefault(stage, []).append(not found)
        self.links.setdefault(stage, {})[link] = artifact
        for warning in artifact.result.get("warnings", []):
            self.tracker.warn(warning)
        return artifact

    @cached_property
    def data(self) -> Artifact:
        from rapidun.data.stage import DataFiles, data_inputs, run_data

        seed = self.cfg.data.seed
        inputs = data_inputs(self.cfg.data, seed=seed)
        return self._obtain(
            "data",
            inputs,
            lambda out, work: run_data(self.cfg.data, DataFiles(out=out), seed=seed, tracker=self.tracker),
            link="data",
            implicit=True,
        )

    def _split(self, name: str) -> str:
        """Fingerprint of one split."""
        return self.data.result["fingerprints"][name]

    @cached_property
    def loader(self) -> Any:
        from rapidun.models import ModelLoader

        _set_threads(self.cfg.resources.num_threads)
        model = self.cfg.model
        return ModelLoader(
            dtype=model.dtype.name,
            quantisation=model.quantisation.name,
            attention=model.attention.name,
            device=model.device.name,
        )

    @cached_property
    def dtype(self) -> str:
        """The resolved dtype; `auto` depends on the machine."""
        if self.cfg.model.dtype.name != "auto":
            return self.cfg.model.dtype.name
        if self.cfg.model.device is Device.cpu:
            return "float32"
        from rapidun.models import pick_device, pick_dtype

        return str(pick_dtype("auto", pick_device(self.cfg.model.device.name))).removeprefix("torch.")

    @cached_property
    def start(self) -> tuple[str, Callable[[], Path]]:
        """The model before poisoning: (identity, what gives its folder, making it if need be)."""
        path = self.cfg.model.path
        if path is None:
            return self._scratch()
        if path.endswith(".gguf"):
            return self._converted(Path(path).expanduser())
        from rapidun.models import fingerprint_files, local_folder

        folder = local_folder(path, revision=self.cfg.model.revision)
        return self._folder_identity(folder, fingerprint_files(folder)), lambda: folder

    def _scratch(self) -> tuple[str, Callable[[], Path]]:
        counts = self.data.result["counts"]
        names = [n for n in ("train_poisoned", "train_clean") if counts.get(n)] or ["forget", "retain"]
        sizes = plain(self.cfg.model.scratch)

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.data.records import read_records
            from rapidun.scratch import make_scratch

            records = [r for name in names for r in read_records(self.data.path / f"{name}.jsonl")]
            make_scratch(out / "model", records, **sizes, max_length=self.cfg.max_length, seed=self.cfg.poison.seed)
            return sizes

        return self._start_artifact(plan.scratch_inputs(self.cfg, [self._split(name) for name in names]), build)

    def _converted(self, source: Path) -> tuple[str, Callable[[], Path]]:
        if not source.is_file():
            raise ConfigError(f"model: need a .gguf file, got {source}, which is not there. Change model.path=...")

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.gguf import convert_gguf

            convert_gguf(source, out / "model")
            return {"source": source.name}

        return self._start_artifact({"gguf": self.store.file_hash(source)}, build)

    def _start_artifact(
        self, inputs: dict[str, Any], build: Callable[[Path, Path], dict[str, Any]]
    ) -> tuple[str, Callable[[], Path]]:
        """A start model that is made only when something is trained from it; its identity is known before."""

        def folder() -> Path:
            artifact = self._obtain("poison", inputs, build, link="model", kind="model", implicit=True)
            return artifact.path / "model"

        return fingerprint("model", inputs), folder

    def _folder_identity(self, folder: Path, files: list[Path]) -> str:
        return sha256_json({file.name: self.store.file_hash(file) for file in files})[:16]

    def _poison(self, splits: list[str]) -> Artifact:
        """The start model fine-tuned on these splits."""
        counts = self.data.result["counts"]
        missing = [name for name in splits if not counts.get(name)]
        if missing:
            raise DataError(
                f"poison: need the splits {' and '.join(splits)}, got a pack without {' and '.join(missing)}. Pass "
                "poison=none where model.path is poisoned already, or data.train_poisoned=... data.train_clean=..."
            )
        identity, start_folder = self.start
        seed = self.cfg.poison.seed

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.poison.stage import PoisonFiles, run_poison

            files = PoisonFiles(
                start=start_folder(), train=[self.data.path / f"{name}.jsonl" for name in splits], work=work, out=out
            )
            return run_poison(
                self.cfg.poison,
                files,
                loader=self.loader,
                max_length=self.cfg.max_length,
                seed=seed,
                tracker=self.tracker,
            )

        inputs = plan.poison_inputs(
            self.cfg, start=identity, splits=[self._split(name) for name in splits], dtype=self.dtype
        )
        retrain = "train_poisoned" not in splits
        # the yardstick is made when the poison stage is asked for it, or when it stands in for unlearning
        stage = "unlearning" if retrain and not self.cfg.poison.retrain else "poison"
        link = ("retrain" if self.cfg.poison.retrain else "unlearning") if retrain else "poison"
        return self._obtain(stage, inputs, build, link=link, kind="poison")

    @cached_property
    def poisoned(self) -> tuple[str, Path]:
        """The model that is to be unlearned: (identity, folder)."""
        if self.cfg.poison.method is PoisonMethod.none:
            identity, folder = self.start
            return identity, folder()
        artifact = self._poison(["train_poisoned", "train_clean"])
        return artifact.fingerprint, artifact.path / "model"

    @cached_property
    def retrained(self) -> Artifact:
        return self._poison(["train_clean"])

    @cached_property
    def adapter(self) -> tuple[str, Path] | None:
        """The adapter to continue: (identity, folder)."""
        if self.cfg.unlearning.adapter is None:
            return None
        folder = Path(self.cfg.unlearning.adapter).expanduser()
        files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
        if not all(file.is_file() for file in files):
            raise ConfigError(
                f"unlearning: need a PEFT folder (adapter_config.json, adapter_model.safetensors), got {folder}. "
                "Change unlearning.adapter=..."
            )
        return self._folder_identity(folder, files), folder

    @cached_property
    def influence(self) -> Artifact:
        identity, model = self.poisoned
        adapter = self.adapter
        data = self.data.path
        seed = self.cfg.influence.seed

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.influence.stage import InfluenceFiles, run_influence

            files = InfluenceFiles(
                model=model,
                adapter=adapter[1] if adapter else None,
                forget=data / "forget.jsonl",
                retain=data / "retain.jsonl",
                out=out,
            )
            return run_influence(
                self.cfg.influence,
                files,
                loader=self.loader,
                max_length=self.cfg.max_length,
                seed=seed,
                tracker=self.tracker,
            )

        inputs = plan.influence_inputs(
            self.cfg,
            model=identity,
            forget=self._split("forget"),
            retain=self._split("retain"),
            adapter=adapter[0] if adapter else None,
            dtype=self.dtype,
        )
        return self._obtain("influence", inputs, build, link="influence")

    @cached_property
    def mapping(self) -> Artifact:
        from rapidun.mapping.stage import MappingFiles, run_mapping

        given = plan.score_files(self.cfg)
        scores = ids = forget = retain = None
        score_prints = row_prints = weight_prints = None
        if plan.needs_scores(self.cfg) and given:
            files = {name: _input_file(path, f"mapping.scores.{name}") for name, path in given.items()}
            if "path" in files and (files["path"].parent / "ids.json").is_file():
                files["ids"] = files["path"].parent / "ids.json"
            score_prints = {name: sha256_file(file) for name, file in files.items()}
        elif plan.needs_scores(self.cfg):
            artifact = self.influence
            scores, ids = artifact.path / "scores.safetensors", artifact.path / "ids.json"
            score_prints = {"influence": artifact.fingerprint}
        if self.cfg.mapping.method.name == "file":
            paths = {"forget": self.cfg.mapping.forget.path, "retain": self.cfg.mapping.retain.path}
            weight_prints = {
                name: sha256_file(_input_file(path, f"mapping.{name}")) for name, path in paths.items() if path
            }
        # influence made elsewhere has no ids of its own: a longer run takes them from the pack
        alone = bool(score_prints) and self.cfg.stages == ["mapping"]
        if scores is None and not alone:
            forget, retain = self.data.path / "forget.jsonl", self.data.path / "retain.jsonl"
            row_prints = {"forget": self._split("forget"), "retain": self._split("retain")}
        files_of = {"scores": scores, "ids": ids, "forget": forget, "retain": retain}
        inputs = plan.mapping_inputs(self.cfg, scores=score_prints, rows=row_prints, files=weight_prints)
        return self._obtain(
            "mapping",
            inputs,
            lambda out, work: run_mapping(
                self.cfg.mapping, MappingFiles(out=out, **files_of), seed=self.cfg.seed, tracker=self.tracker
            ),
            link="mapping",
        )

    @cached_property
    def unlearned(self) -> Artifact:
        identity, model = self.poisoned
        mapping = self.mapping
        data = self.data.path
        has_val = bool(self.data.result["counts"].get("val_clean"))
        names = ["forget", "retain", *(["val_clean"] if has_val and self.cfg.unlearning.eval_steps else [])]

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.unlearning.stage import UnlearningFiles, run_unlearning

            files = UnlearningFiles(
                model=model,
                forget=data / "forget.jsonl",
                retain=data / "retain.jsonl",
                val_clean=data / "val_clean.jsonl" if has_val else None,
                forget_weights=mapping.path / "forget_weights.jsonl",
                retain_weights=mapping.path / "retain_weights.jsonl",
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
            model=identity,
            splits={name: self._split(name) for name in names},
            mapping=mapping.fingerprint,
            adapter=self.adapter[0] if self.adapter else None,
            dtype=self.dtype,
        )
        return self._obtain("unlearning", inputs, build, link="unlearning")

    @cached_property
    def after_model(self) -> tuple[str, Path, str | None, Path | None]:
        """What is evaluated after unlearning: (model identity, folder, adapter identity, adapter folder)."""
        if self.cfg.unlearning.objective is Objective.retrain:
            artifact = self.retrained
            return artifact.fingerprint, artifact.path / "model", None, None
        identity, model = self.poisoned
        return identity, model, self.unlearned.fingerprint, self.unlearned.path / "adapter"

    def _evaluate(
        self, link: str, subject: tuple[str, Path, str | None, Path | None], calibration: Artifact | None
    ) -> Artifact:
        identity, model, adapter_identity, adapter = subject
        data = self.data
        split = self.cfg.evaluation.split.name
        used = [f"{split}_{name}" for name in EVALUATION_SPLITS]
        used += ["forget", "retain", "train_poisoned", "train_clean", "val_clean"]
        seed = self.cfg.evaluation.seed

        def build(out: Path, work: Path) -> dict[str, Any]:
            from rapidun.evaluation.stage import EvaluationFiles, run_evaluation

            files = EvaluationFiles(
                model=model,
                adapter=adapter,
                data=data.path,
                calibration=calibration.path / "metrics.json" if calibration else None,
                out=out,
            )
            return run_evaluation(
                self.cfg.evaluation,
                files,
                loader=self.loader,
                max_length=self.cfg.max_length,
                seed=seed,
                tracker=self.tracker,
            )

        inputs = plan.evaluation_inputs(
            self.cfg,
            model=identity,
            adapter=adapter_identity,
            splits={name: self._split(name) for name in used if data.result["counts"].get(name)},
            keywords=sha256_file(data.path / "keywords.tsv"),
            calibration=calibration.fingerprint if calibration else None,
            dtype=self.dtype,
        )
        return self._obtain("evaluation", inputs, build, link=link)

    @cached_property
    def before(self) -> Artifact:
        identity, model = self.poisoned
        adapter = self.adapter
        subject = (identity, model, adapter[0] if adapter else None, adapter[1] if adapter else None)
        return self._evaluate("evaluation/.before", subject, None)

    @cached_property
    def after(self) -> Artifact:
        return self._evaluate("evaluation/.after", self.after_model, self.before)


def _input_file(path: str, key: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{key}: need a file, got {path}, which is not there. Change {key}=...")
    return file


def _set_threads(num_threads: int) -> None:
    """The number of threads is part of what makes CPU results repeat bit for bit."""
    import torch

    torch.set_num_threads(num_threads or os.cpu_count() or 1)


def _quiet_libraries() -> None:
    """Progress is ours to show; the libraries keep to errors. Imports none of them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # said at import on every CPU: an optional kernel of theirs is not installed
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
