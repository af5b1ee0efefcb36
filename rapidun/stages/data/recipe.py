"""The data stage to the rest: the pack's splits, made whenever anything needs them."""

from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.files import sha256_json
from rapidun.config.data import Source
from rapidun.config.plain import plain
from rapidun.stages.checks import missing_files
from rapidun.stages.context import Context, Stage
from rapidun.stages.data.files import SPLITS, find_files, named_on_hub
from rapidun.stages.data.stage import DataFiles, data_inputs, run_data
from rapidun.stages.recipe import DATA, Recipe
from rapidun.stages.rows.formats.detect import is_there
from rapidun.stages.rows.formats.hub import is_hub
from rapidun.stages.rows.keywords import read_keywords


def _splits(ctx: Context) -> Recipe:
    cfg, seed = ctx.cfg.data, ctx.cfg.data.seed
    inputs = ctx.memo.get(("data", sha256_json(plain(cfg))), lambda: data_inputs(cfg, seed=seed))

    def build(out: Path, work: Path) -> dict[str, Any]:
        return run_data(cfg, DataFiles(out=out), seed=seed, tracker=ctx.tracker)

    return Recipe("data", STAGE.key("data", inputs), "data", build, implicit=True)


def _check(ctx: Context) -> list[str]:
    cfg = ctx.cfg.data

    def look() -> list[str]:
        named = {
            f"data.{split}": path
            for split in SPLITS
            if (path := getattr(cfg, split, None)) is not None and not is_hub(path) and not is_there(Path(path))
        }
        faults = missing_files(named, "a file of rows") if cfg.source is not Source.builtin else []
        try:
            # of what others will fetch from the hub this machine knows nothing
            if not faults and (ctx.fetch or not named_on_hub(cfg)):
                find_files(cfg)
        except DataError as error:
            faults.append(str(error))
        if cfg.keywords is not None:
            absent = missing_files({"data.keywords": cfg.keywords}, "a tab-separated keyword list")
            try:
                if not absent:
                    read_keywords(Path(cfg.keywords).expanduser())
            except DataError as error:
                absent = [str(error)]
            faults += absent
        return faults

    found: list[str] = ctx.memo.get(("data faults", sha256_json(plain(cfg))), look)
    return found


STAGE = Stage(
    name="data",
    versions={"data": 1},
    makes=lambda ctx: [ctx.get(DATA)],
    provides={DATA: _splits},
    check=_check,
    light=True,
)
