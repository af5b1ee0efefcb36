"""The data stage to the rest: the pack's splits, made whenever anything needs them."""

from pathlib import Path
from typing import Any

from rapidun.base.files import sha256_json
from rapidun.config.plain import plain
from rapidun.stages.context import Context, Stage
from rapidun.stages.data.stage import DataFiles, data_inputs, run_data
from rapidun.stages.recipe import DATA, Recipe


def _splits(ctx: Context) -> Recipe:
    cfg, seed = ctx.cfg.data, ctx.cfg.data.seed
    inputs = ctx.memo.get(("data", sha256_json(plain(cfg))), lambda: data_inputs(cfg, seed=seed))

    def build(out: Path, work: Path) -> dict[str, Any]:
        return run_data(cfg, DataFiles(out=out), seed=seed, tracker=ctx.tracker)

    return Recipe("data", STAGE.key("data", inputs), "data", build, implicit=True)


STAGE = Stage(
    name="data",
    versions={"data": 1},
    makes=lambda ctx: [ctx.get(DATA)],
    provides={DATA: _splits},
    light=True,
)
