"""keep=best: the trained weights of the evaluation that was best, beside the checkpoints in the work folder."""

import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, sha256_file, sync, write_tensors
from rapidun.config.training import Criterion
from rapidun.models.training.checkpoints import MARKER, all_checkpoints
from rapidun.models.training.journal import Journal
from rapidun.models.training.sharded import trained_weights

BEST = "best"
TIE = "val_loss_clean"
WEIGHTS = "trained.safetensors"


class BestKeeper:
    """Of the evaluations after a step the one with the best number; of equals that of lower val_loss_clean, then the
    earlier one. Which one it was is in the journal, so a run that is killed and goes on keeps the same.

    Args: is_writer: of several processes the one that writes.
    """

    def __init__(self, criterion: Criterion, *, journal: Journal, work: Path, is_writer: bool = True) -> None:
        self.criterion = criterion
        self.journal = journal
        self.work = work
        self.is_writer = is_writer

    @property
    def step(self) -> int | None:
        found = self.journal.kept.get(BEST)
        return None if found is None else int(found["step"])

    @property
    def value(self) -> float | None:
        found = self.journal.kept.get(BEST)
        return None if found is None else float(found["value"])

    def consider(self, step: int, measured: Mapping[str, float], model: nn.Module) -> None:
        """Keep the weights if no evaluation was better so far. Before the first step nothing was unlearned."""
        value = measured.get(self.criterion.name)
        if step == 0 or value is None or not math.isfinite(value):
            return
        tie = measured.get(TIE, 0.0)
        rank = [self.criterion.traits.better * value, -tie if math.isfinite(tie) else -sys.float_info.max]
        found = self.journal.kept.get(BEST)
        if found is not None and rank <= list(found["rank"]):
            return
        # sharded weights are put together by all processes
        weights = trained_weights(model)
        if self.is_writer:
            digest = self._write(step, weights)
            # a checkpoint that refers to these weights is worth nothing without them
            self.journal.beside = {str(self._path(step).relative_to(self.work)): digest}
        self.journal.kept[BEST] = {"step": step, "value": value, "rank": rank}
        self.prune()

    def prune(self) -> None:
        """Delete weights that neither this run nor one that goes on from a checkpoint refers to."""
        if not self.is_writer:
            return
        wanted = {self.step}
        for folder in all_checkpoints(self.work):
            try:
                wanted.add(read_json(folder / MARKER)["journal"]["kept"][BEST]["step"])
            except (ArtifactError, KeyError, TypeError):
                continue
        for folder in self.work.glob("best-*"):
            if folder.name not in {f"best-{step}" for step in wanted}:
                shutil.rmtree(folder, ignore_errors=True)

    def read(self) -> dict[str, Tensor]:
        """The kept weights, by name.

        Raises: ArtifactError where they are gone.
        """
        path = self._path(self.step)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(
                f"unlearning: need {path}, the weights of the best evaluation, got {error}. Delete the checkpoints "
                "beside it, and run again"
            ) from error

    def _path(self, step: int | None) -> Path:
        return self.work / f"best-{step}" / WEIGHTS

    def _write(self, step: int, weights: Mapping[str, Tensor]) -> str:
        """Returns: SHA-256 of the file."""
        path = self._path(step)
        write_tensors(path, {name: tensor.contiguous() for name, tensor in weights.items()})
        sync(path.parent)
        return sha256_file(path)
