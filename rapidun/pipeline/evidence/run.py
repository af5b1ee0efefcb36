"""Whether a run's result follows from what is stored: its artifacts, its inputs as they are now, its own files."""

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError, RapidunError
from rapidun.base.files import sha256_file
from rapidun.base.grown import read_grown
from rapidun.base.manifest import Artifact, linked_folder
from rapidun.base.nested import differences, leaves
from rapidun.base.redact import HIDDEN
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.config import extensions
from rapidun.config.model import Dtype
from rapidun.config.plain import from_plain
from rapidun.config.run import RunConfig
from rapidun.pipeline.adapter import view_faults, view_note
from rapidun.pipeline.evidence.ledger import Ledger
from rapidun.pipeline.folder import NOT_COMPARED, known_stages
from rapidun.pipeline.result import final_metrics
from rapidun.pipeline.tracking.lines import KEYS
from rapidun.report.read import read_object
from rapidun.stages.recipe import Recipe
from rapidun.stages.recipes import STAGES, Recipes

# lines that say how result.json differs
SHOWN = 5
# files of the run folder that are part of the evidence as they are
OWN = ("settings.json", "result.json")


class _Unmemoed(Store):
    """Reads input files anew."""

    def file_hash(self, path: Path) -> str:
        return sha256_file(path)


def verify_run(path: Path, ledger: Ledger) -> None:
    """Check one run folder; what does not match goes to the ledger's faults."""
    ledger.num_runs += 1
    try:
        status, result, settings = (
            read_object(path / name) for name in ("status.json", "result.json", "settings.json")
        )
    except ArtifactError as error:
        ledger.fault(str(error))
        return
    if status.get("state") != "done":
        ledger.fault(f"{path}: need a run that is done, got one that is {status.get('state')}")
        return
    commit = status.get("git_commit")
    ledger.commits[str(commit)] = ledger.commits.get(str(commit), 0) + 1
    for name in OWN:
        if (path / name).is_file():
            ledger.file(f"{path.resolve().name}/{name}", path / name)
        else:
            ledger.fault(f"{path / name}: need this file, found none")
    before = len(ledger.faults)
    links = _links(path, status, ledger)
    if len(ledger.faults) > before:
        return  # what follows from damaged files says nothing
    _check_inputs(path, status, settings, links, ledger)
    _check_result(path, status, result, links, ledger)
    _check_published(path, links, ledger)
    _check_log(path, links, ledger)


def _links(path: Path, status: dict[str, Any], ledger: Ledger) -> dict[str, dict[str, Artifact]]:
    """Stage -> link name -> artifact, each read from its first byte to its last, with all that it was made from."""
    found: dict[str, dict[str, Artifact]] = {}
    stages = known_stages(status)
    if not stages or len(stages) < len(status["stages"]):
        ledger.fault(f"{path / 'status.json'}: need what each stage of the run made, got JSON of another shape")
    for stage, entry in stages.items():
        for link, id in entry["artifacts"].items():
            folder = linked_folder(path / link)
            if "/".join(folder.parts[-2:]) != id:
                ledger.fault(f"{path / link}: need a link to {id}, as status.json says, got one to {folder}")
            elif not folder.is_dir():
                ledger.fault(f"{path / link}: need the artifact {id}, found none at {folder}")
            else:
                artifact = ledger.artifact(folder)
                if artifact is not None:
                    ledger.faults += view_faults(path / link, folder, list(artifact.files))
                    if note := view_note(path / link):
                        ledger.notes[note] = None
                    found.setdefault(stage, {})[link] = artifact
                else:
                    ledger.fault(f"{path}: rests on {id}, which is damaged")
    return found


def _check_inputs(
    path: Path, status: dict[str, Any], settings: dict[str, Any], links: Mapping[str, Mapping[str, Artifact]],
    ledger: Ledger,
) -> None:  # fmt: skip
    """The fingerprints that settings and input files (packs, models, adapters) have now are those of the run."""
    noted = {link: artifact for found in links.values() for link, artifact in found.items()}
    if not noted:
        return
    store = _Unmemoed(next(iter(noted.values())).path.parents[1])

    def find_data(recipe: Recipe) -> Artifact:
        artifact = noted.get(recipe.link) or store.find(recipe.key)
        if artifact is None or artifact.id != recipe.id:
            raise _Differs(recipe, artifact)
        return artifact

    try:
        extensions.need(status.get("extensions"), what="run")
        cfg = _pinned(from_plain(settings), noted)
        with _in_directory(status.get("directory"), ledger):
            recipes = Recipes(cfg, store, find_data=find_data, tracker=Tracker())
            for stage in (name for name in STAGES if name in links):
                for recipe in recipes.of_stage(stage):
                    _compare(recipe, noted, must_be_there=True)
    except _Differs as differs:
        fault = str(differs)
    except (RapidunError, OSError) as error:
        fault = f"need the inputs of the run as they were, got: {error}"
    else:
        return
    hidden = [
        key for key, value in leaves(settings) if key.partition(".")[0] not in NOT_COMPARED and HIDDEN in str(value)
    ]
    if hidden:
        ledger.notes[
            f"{path}: settings.json hides {', '.join(hidden)}: that the run's artifacts follow from its settings and "
            "input files cannot be worked out again, that its results follow from its artifacts can"
        ] = None
        return
    ledger.fault(f"{path}: {fault}")


def _compare(recipe: Recipe, noted: Mapping[str, Artifact], *, must_be_there: bool) -> None:
    """What an artifact is made from first: that is where a difference comes from."""
    for need in recipe.needs:
        _compare(need, noted, must_be_there=False)
    found = noted.get(recipe.link)
    if found.id != recipe.id if found is not None else must_be_there:
        raise _Differs(recipe, found)


class _Differs(Exception):
    """An artifact is not what the settings and inputs lead to now."""

    def __init__(self, recipe: Recipe, found: Artifact | None) -> None:
        if found is None:
            super().__init__(f"need {recipe.id} ({recipe.stage}), to which settings and inputs lead now, got none")
            return
        changed = []
        if found.manifest.get("version") != recipe.key.version:
            changed.append(f"version of the stage {found.manifest.get('version')} then, {recipe.key.version} now")
        now = json.loads(json.dumps(recipe.inputs))
        changed += [
            f"{key} {json.dumps(old)} then, {json.dumps(new)} now"
            for key, old, new in differences(found.manifest.get("inputs"), now)
        ]
        super().__init__(
            f"need {found.id} to follow from settings and inputs, got {recipe.id} from those of now "
            f"({'; '.join(changed[:3])})"
        )


def _pinned(cfg: RunConfig, noted: Mapping[str, Artifact]) -> RunConfig:
    """`auto` as it was on the machine of the run."""
    if cfg.model.dtype is Dtype.auto:
        for artifact in noted.values():
            inputs = artifact.manifest.get("inputs")
            if isinstance(inputs, dict) and inputs.get("dtype") in Dtype.__members__:
                cfg.model.dtype = Dtype[inputs["dtype"]]
    return cfg


@contextlib.contextmanager
def _in_directory(place: object, ledger: Ledger) -> Any:
    """Where the run was started: relative paths in its settings are meant from there."""
    if isinstance(place, str) and Path(place).is_dir():
        with contextlib.chdir(place):
            yield
        return
    ledger.notes[f"relative paths of the inputs are taken from here, not from {place}, where runs were started"] = None
    yield


def _check_result(
    path: Path, status: dict[str, Any], result: dict[str, Any], links: Mapping[str, Mapping[str, Artifact]],
    ledger: Ledger,
) -> None:  # fmt: skip
    """result.json says what the artifacts say, number by number."""
    stages = known_stages(status)
    wanted = final_metrics(
        [stage for stage in STAGES if stage in stages],
        name=str(result.get("name")),
        seed=result.get("seed", 0),
        links={stage: links.get(stage, {}) for stage in stages},
        costs=stages,
    )
    faults = [
        f"{path / 'result.json'}: need {key}={json.dumps(want)}, as the artifacts say, got {json.dumps(got)}"
        for key, want, got in differences({"": json.loads(json.dumps(wanted))}, {"": result})
    ]
    faults = [fault.replace(": need .", ": need ", 1) for fault in faults]
    ledger.faults += faults[:SHOWN]
    if len(faults) > SHOWN:
        ledger.fault(f"{path / 'result.json'}: {len(faults) - SHOWN} more numbers are others")


def _check_published(path: Path, links: Mapping[str, Mapping[str, Artifact]], ledger: Ledger) -> None:
    """The files that a stage puts into the run folder are those that it would put there now."""
    for stage, found in links.items():
        publish = STAGES[stage].publish
        if publish is None:
            continue
        with tempfile.TemporaryDirectory(prefix="rapidun-") as place:
            publish(Path(place), {link: artifact.path for link, artifact in found.items()})
            for file in sorted(Path(place).iterdir()):
                ours = path / stage / file.name
                if not ours.is_file():
                    ledger.fault(f"{ours}: need this file, found none")
                elif ours.read_bytes() != file.read_bytes():
                    ledger.fault(f"{ours}: need what follows from the artifacts, got other bytes")
                else:
                    ledger.file(f"{path.resolve().name}/{stage}/{file.name}", ours)


def _check_log(path: Path, links: Mapping[str, Mapping[str, Artifact]], ledger: Ledger) -> None:
    """metrics.jsonl holds the lines of the artifacts, stage by stage."""
    rows, damaged = read_grown(path / "metrics.jsonl", *KEYS)
    if damaged:
        ledger.fault(f"{path / 'metrics.jsonl'}: need whole lines, got {damaged} damaged ones")
    for stage, found in links.items():
        wanted = [line for artifact in found.values() for line in read_grown(artifact.path / "metrics.jsonl", *KEYS)[0]]
        # what an artifact of another stage logged while this one was under way stands under its own name
        names = {line["stage"] for line in wanted} or {stage}
        if [line for line in rows if line["stage"] in names] != wanted:
            ledger.fault(
                f"{path / 'metrics.jsonl'}: need what {stage} logged, as its artifacts have it, got other lines"
            )
