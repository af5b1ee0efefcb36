"""TensorBoard: one folder of event files for each run, `<run_dir>/tensorboard`."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from rapidun.base.nested import is_number
from rapidun.base.redact import hide
from rapidun.config.plain import plain
from rapidun.pipeline.tracking import media
from rapidun.pipeline.tracking.sink import CurveSink, Ending
from rapidun.pipeline.tracking.swept import swept_settings

if TYPE_CHECKING:
    from rapidun.config.run import RunConfig


class TensorboardSink(CurveSink):
    """Scalars `<stage>/<name>`, the weights as histograms, influence as an image, hparams of the swept settings."""

    name = "TensorBoard"

    def __init__(self, cfg: RunConfig, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__()
        self._cfg = cfg
        root = Path(cfg.tracking.dir).expanduser() / run_dir.name if cfg.tracking.dir else run_dir
        folder = self._folder = root / "tensorboard"
        # event files of a killed attempt: all that they hold stands in metrics.jsonl, and a curve must not go back
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("config", f"```json\n{json.dumps(hide(plain(cfg)), indent=2)}\n```")
        self._catch_up(run_dir)

    def finish(self, ending: Ending, run_dir: Path) -> str | None:
        import numpy as np

        self._catch_up(run_dir)
        for group, values in media.weights(run_dir / "mapping").items():
            self._writer.add_histogram(f"mapping/weights_{group}", np.asarray(values))
        picture = media.influence_picture(run_dir / "influence")
        if picture is not None:
            self._writer.add_image("influence/heat_map", picture, dataformats="HWC")
        table = media.generations(run_dir / "evaluation" / "generations.jsonl")
        if table is not None:
            self._writer.add_text("evaluation/generations", as_markdown(table))
        self._writer.add_text("state", " ".join(filter(None, [ending.state, ending.error])))
        self._write_hparams(run_dir, ending)
        self._writer.close()
        return f"TensorBoard: tensorboard --logdir {shlex.quote(str(self._folder))}"

    def abandon(self) -> None:
        self._writer.close()

    def _write(self, stage: str, metrics: dict[str, float], step: int | None) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{stage}/{name}", value, global_step=step or 0)

    def _write_hparams(self, run_dir: Path, ending: Ending) -> None:
        swept = swept_settings(self._cfg, run_dir)
        results = {name: float(value) for name, value in ending.metrics.items() if is_number(value) and name != "seed"}
        if swept and results:
            shown = {key: value if isinstance(value, int | float | str) else str(value) for key, value in swept.items()}
            self._writer.add_hparams(hide(shown), results, run_name=".")


def as_markdown(table: media.Table) -> str:
    """A table that TensorBoard shows as text; it drops HTML itself."""
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in table.rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
