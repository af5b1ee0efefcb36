"""Forget weights that are renewed as training goes, from the rows' current losses (mapping=loreun_dynamic)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rapidun.base.errors import DataError
from rapidun.base.files import read_json, write_jsonl
from rapidun.models.packed import cross_entropy
from rapidun.models.training.distributed import total
from rapidun.models.training.forward import forward_packed
from rapidun.models.training.journal import Journal
from rapidun.stages.rows.bounded_weights import Floats, exp_bounded
from rapidun.stages.rows.encode import Encoded, collate
from rapidun.stages.weights_file import write_weights

# the table in the journal, which checkpoints hold
LOSSES = "forget_losses"
# of the weights after each step, in its line of the history
PATH = ("forget_weight_min", "forget_weight_max", "forget_weight_ess")


class DynamicRule(NamedTuple):
    """What mapping wrote into dynamic.json: losses by row id under the starting model, nats a response token; and of
    null=shuffled by row id the row whose weight it takes."""

    tau: float
    w_min: float
    w_max: float
    losses: dict[str, float]
    takes: dict[str, str] | None


def read_rule(path: Path) -> DynamicRule:
    found = read_json(path)
    return DynamicRule(found["tau"], found["w_min"], found["w_max"], found["losses"], found.get("takes"))


class DynamicWeights:
    """w_i = W(L with L_i = l_i)_i for a forget row i that a step visits.

    W(L) = clip(c exp(-L / tau), w_min, w_max), c > 0 such that its mean is 1.
    L [n] holds the last known loss of every forget row as it was when the step began: under the starting model until a
    row's first visit. l_i is the row's loss in this step's own forward pass, in training mode (dropout on), of the
    response that is to be lost. So a weight depends on the row and on what was before the step, not on the rows beside
    it: neither micro-batches, accumulation nor several processes change it. After the step L_i = l_i for the rows
    that were visited. A row's first loss in a step counts; where several processes visit one row, their mean.

    Where the objective has no pass over that response (its forget term reads the clean one only), a pass of its own,
    without gradient and in eval mode, gives l_i.

    null=shuffled: a row has the weight of another one, the same throughout: w_i = W(L)_j, j what i takes.

    The table is kept in the journal, and so in each checkpoint. Losses that are no finite number change nothing here.

    Args:
        ids, targets: of the n forget rows, in the order of their numbers; targets are the responses to be lost.
    Source: LoReUn (arXiv 2507.22499), the dynamic form. That it normalises over all forget rows' last known losses,
        where a batch of one row has nothing to be normalised over, and the bounds are ours.
    Raises: DataError for a row without a loss in the rule.
    """

    def __init__(
        self, rule: DynamicRule, ids: Sequence[str], targets: Sequence[Encoded], *, journal: Journal, pad_token_id: int
    ) -> None:
        known = rule.losses
        missing = [name for name in ids if name not in known]
        if missing:
            raise DataError(
                f"unlearning: need a starting loss for each of the {len(ids)} forget rows, got none for "
                f"{missing[0]!r}. Run the mapping stage again for these rows"
            )
        self.rule = rule
        self.ids = list(ids)
        self.targets = list(targets)
        self.journal = journal
        self.pad_token_id = pad_token_id
        self._start = [float(known[name]) for name in ids]
        self._takes = self._places()
        # by row, what this step found
        self._seen: dict[int, float] = {}

    def _places(self) -> list[int] | None:
        if self.rule.takes is None:
            return None
        places = {name: place for place, name in enumerate(self.ids)}
        # a row that was left out has no weight to give: who takes it keeps its own
        return [places.get(self.rule.takes[name], places[name]) for name in self.ids]

    @property
    def losses(self) -> list[float]:
        """The table L."""
        found: list[float] = self.journal.kept.setdefault(LOSSES, list(self._start))
        return found

    def table_weights(self) -> Floats:
        """What every row has by the table, [n]."""
        found = self._rule(self.losses)
        return found if self._takes is None else found[self._takes]

    def _rule(self, losses: Sequence[float]) -> Floats:
        z = -np.asarray(losses, dtype=np.float64)
        return exp_bounded(z, tau=self.rule.tau, low=self.rule.w_min, high=self.rule.w_max).weights

    def weights(self, rows: Tensor, losses: Tensor) -> Tensor:
        """The weights of the rows of a micro-batch.

        Args: rows: [F] their numbers. losses: [F] l_i, nats a response token; no gradient goes through them.
        Returns: [F] float32, on the device of the losses.
        """
        table, found = self.losses, []
        shuffled = None if self._takes is None else self.table_weights()
        for row, loss in zip(rows.tolist(), losses.detach().tolist(), strict=True):
            if math.isfinite(loss):
                self._seen.setdefault(row, loss)
            if shuffled is not None:
                found.append(float(shuffled[row]))
                continue
            now = self._seen.get(row, table[row])
            found.append(float(self._rule([*table[:row], now, *table[row + 1 :]])[row]))
        return torch.tensor(found, dtype=torch.float32, device=losses.device)

    @torch.no_grad()
    def measured(self, model: nn.Module, rows: Tensor) -> Tensor:
        """l_i of these rows by a pass of its own, [F]: in eval mode, so that no random number is drawn."""
        batch = collate([self.targets[row] for row in rows.tolist()], pad_token_id=self.pad_token_id)
        training = model.training
        model.eval()
        found = cross_entropy(forward_packed(model, {name: values.to(rows.device) for name, values in batch.items()}))
        model.train(training)
        return found

    def end_step(self, device: torch.device) -> dict[str, float]:
        """Put what the step found into the table, of all processes; returns the numbers of PATH."""
        num_rows = len(self.ids)
        own = [0.0] * (2 * num_rows)
        for row, loss in self._seen.items():
            own[row], own[num_rows + row] = loss, 1.0
        found = total(own, device)
        self._seen = {}
        table = self.losses
        for row, (loss, number) in enumerate(zip(found[:num_rows], found[num_rows:], strict=True)):
            if number:
                table[row] = loss / number
        weights = self.table_weights()
        ess = math.fsum(weights) ** 2 / math.fsum(weights * weights)
        return dict(zip(PATH, (float(weights.min()), float(weights.max()), ess), strict=True))

    def write(self, out: Path) -> dict[str, Any]:
        """Write weights_path.jsonl, a line for each step, and forget_weights.jsonl, the weights at the end, by row.

        Returns: what the stage's result says of them: the numbers of the last step.
        """
        lines = [
            {"step": one["step"], **{name: one[name] for name in PATH}}
            for one in self.journal.history
            if PATH[0] in one
        ]
        write_jsonl(out / "weights_path.jsonl", lines)
        write_weights(out / "forget_weights.jsonl", self.table_weights().tolist(), ids=self.ids)
        return {f"final_{name}": self.journal.last(name) for name in PATH}
