"""The mapping stage to the rest: a weight for each row, from influence computed here, made elsewhere, or none."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rapidun.base.errors import ConfigError, DataError
from rapidun.base.files import sha256_json
from rapidun.base.tracker import Tracker
from rapidun.config.extensions import filled_settings
from rapidun.config.mapping import MappingConfig
from rapidun.config.plain import plain
from rapidun.stages.checks import missing_files
from rapidun.stages.context import Context, Stage
from rapidun.stages.recipe import DATA, ROW_LOSSES, SCORES, WEIGHTS, Recipe, without


def _weights(ctx: Context, tracker: Tracker | None = None) -> Recipe:
    """Args: tracker: what the stage reports to; None = the context's."""
    # these bring numpy
    from rapidun.stages.mapping.inputs import MappingFiles
    from rapidun.stages.mapping.stage import run_mapping

    cfg, traits = ctx.cfg.mapping, ctx.cfg.mapping.method.traits
    given = cfg.scores.given
    also = {f"also.{place}": path for place, path in enumerate(cfg.scores.also)} if traits.settings else {}
    needs: list[Recipe] = []
    scores = ids = forget = retain = losses = None
    score_prints = row_prints = weight_prints = None
    if traits.scores and given:
        files = {name: _input_file(path, f"mapping.scores.{name}") for name, path in given.items()}
        if "path" in files and (files["path"].parent / "ids.json").is_file():
            files["ids"] = files["path"].parent / "ids.json"
        score_prints = {name: ctx.file_hash(file) for name, file in files.items()}
    elif traits.scores:
        influence = ctx.get(SCORES)
        scores, ids = ctx.path(influence) / "scores.safetensors", ctx.path(influence) / "ids.json"
        score_prints = {"influence": influence.fingerprint}
        needs.append(influence)
    elif traits.losses:
        found = ctx.get(ROW_LOSSES)
        losses = ctx.path(found) / "losses.jsonl"
        score_prints = {"losses": found.fingerprint}
        needs.append(found)
    for name, path in also.items():
        file = _input_file(path, f"mapping.scores.{name}")
        score_prints = {**(score_prints or {}), name: ctx.file_hash(file)}
        if (beside := file.with_name("ids.json")).is_file():
            score_prints[f"{name}.ids"] = ctx.file_hash(beside)
    if traits.files:
        paths = {"forget": cfg.forget.path, "retain": cfg.retain.path}
        weight_prints = {
            name: ctx.file_hash(_input_file(path, f"mapping.{name}")) for name, path in paths.items() if path
        }
    # influence made elsewhere has no ids of its own: a longer run takes them from the pack
    alone = traits.scores and bool(given) and ctx.cfg.stages == ["mapping"]
    if not alone:
        forget, retain = ctx.data.path / "forget.jsonl", ctx.data.path / "retain.jsonl"
        row_prints = {"forget": ctx.split("forget"), "retain": ctx.split("retain")}
        needs.append(ctx.get(DATA))
    seed = ctx.cfg.seed

    def build(out: Path, work: Path) -> dict[str, Any]:
        made_of = MappingFiles(out=out, scores=scores, ids=ids, forget=forget, retain=retain, losses=losses)
        return run_mapping(cfg, made_of, seed=seed, tracker=tracker or ctx.tracker)

    settings = settings_that_count(cfg)
    if also:
        settings["scores"]["combine"] = cfg.scores.combine.name
    inputs: dict[str, Any] = {
        "scores": score_prints,
        "rows": row_prints,
        "files": weight_prints,
        "settings": settings,
        "seed": seed if cfg.draws else None,
    }
    if cfg.added is not None:
        inputs["extension"] = [cfg.added.print]
    return Recipe("mapping", STAGE.key("mapping", inputs), "mapping", build, needs=tuple(needs))


def settings_that_count(cfg: MappingConfig) -> dict[str, Any]:
    """The settings that the weights depend on, beside the files that are read."""
    traits, unread = cfg.method.traits, set(cfg.unread)
    every = plain(cfg)
    if not traits.settings:
        settings = {name: every[name] for name in ("method", "null", *traits.own)}
        if cfg.added is not None:
            settings["extension"] = filled_settings(cfg.added.kind, cfg.added.name, cfg.extension)
    else:
        settings = without(every, "scores", *unread)
        settings["scores"] = {"kind": cfg.scores.kind.name}
    for group in {"forget", "retain"} & set(settings):
        settings[group] = without(settings[group], "path")
    return settings


def _check(ctx: Context) -> list[str]:
    cfg = ctx.cfg.mapping
    faults = []
    if cfg.method.traits.files:
        paths = {"mapping.forget": cfg.forget.path, "mapping.retain": cfg.retain.path}
        faults += missing_files({key: path for key, path in paths.items() if path}, "a weights file")
    if cfg.method.traits.scores:
        named = {f"mapping.scores.{name}": path for name, path in cfg.scores.files.items()}
        faults += missing_files(named, "an influence file")
    return faults


def _check_rows(ctx: Context) -> list[str]:
    """Read files made elsewhere at once where the mapping's turn comes after stages that take long."""
    cfg = ctx.cfg.mapping
    made_elsewhere = cfg.method.traits.files or (cfg.method.traits.scores and cfg.scores.given)
    if ctx.cfg.stages[0] == "mapping":
        return []
    if not made_elsewhere:
        return _unreadable(cfg.scores.also) if cfg.method.traits.scores else []
    recipe = _weights(ctx, Tracker())
    # the settings of the map change nothing of what is in the files
    read = sha256_json([cfg.method.name, *(recipe.inputs[name] for name in ("scores", "rows", "files"))])

    def look() -> list[str]:
        if ctx.store.find(recipe.key) is not None:
            return []
        try:
            with TemporaryDirectory() as folder:
                recipe.build(Path(folder), Path(folder))
        except ConfigError as error:
            return error.faults
        except DataError as error:
            return [str(error)]
        return []

    found: list[str] = ctx.memo.get(("mapping faults", read), look)
    return found


def _unreadable(paths: list[str]) -> list[str]:
    """What is wrong with influence files that are combined with one which is yet to be made."""
    # it brings numpy
    from rapidun.stages.mapping.scores import read_scores

    faults = []
    for path in paths:
        try:
            read_scores(Path(path).expanduser())
        except DataError as error:
            faults.append(str(error))
    return faults


def _input_file(path: str, key: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{key}: need a file, got {path}, which is not there. Change {key}=...")
    return file


STAGE = Stage(
    name="mapping",
    versions={"mapping": 2},
    makes=lambda ctx: [] if "mapping" in ctx.cfg.idle else [ctx.get(WEIGHTS)],
    check=_check,
    check_rows=_check_rows,
    provides={WEIGHTS: _weights},
    light=True,
    numbers=True,
)
