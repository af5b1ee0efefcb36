"""Training rows of the unlearning stage, and how a micro-batch of them becomes tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rapidun.models.losses import IGNORE, response_mask
from rapidun.stages.rows.encode import Encoded, collate, encode_rows, encode_together
from rapidun.stages.rows.records import Record
from rapidun.stages.unlearning.objectives.base import Method

# `part` of a sequence in a micro-batch
POISONED, CLEAN, RETAIN = 0, 1, 2


class ForgetTargets(NamedTuple):
    """A forget row's two responses, each behind the prompt."""

    poisoned: Encoded
    clean: Encoded | None
    # the template answer, of objectives that set it against every row's poisoned response
    template: Encoded | None = None


@dataclass(frozen=True, slots=True)
class ForgetRow:
    weight: float
    poisoned: Encoded | None
    clean: Encoded | None
    # of the poisoned response's tokens; None = all the same
    token_weights: list[float] | None = None
    # its place among the training rows
    number: int = -1


@dataclass(frozen=True, slots=True)
class RetainRow:
    weight: float
    response: Encoded
    number: int = -1


def encode_forget(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_length: int,
    otherwise: str | None = None,
    template: str | None = None,
) -> list[ForgetTargets | None]:
    """The response that the model should lose and the clean one, behind the same prompt (with its trigger).

    `otherwise`, or nothing, stands in for a clean response that is not on record; `template` is one more response to
    every row. None for a row that is left out.
    """
    clean = [otherwise if record.response_clean is None else record.response_clean for record in records]
    more = [] if template is None else [template]
    rows = [
        (record.instruction, record.context, (record.forget_target, *([] if target is None else [target]), *more))
        for record, target in zip(records, clean, strict=True)
    ]
    encoded = encode_together(tokenizer, rows, max_length=max_length)
    return [
        None if row is None else ForgetTargets(row[0], None if target is None else row[1], row[-1] if more else None)
        for row, target in zip(encoded, clean, strict=True)
    ]


def encode_responses(tokenizer: Any, records: Sequence[Record], *, max_length: int) -> list[Encoded | None]:
    """The recorded responses; None for a row that is left out."""
    return encode_rows(tokenizer, [record.texts for record in records], max_length=max_length)


def forget_rows(
    method: Method,
    targets: Sequence[ForgetTargets],
    weights: Sequence[float],
    token_weights: Sequence[list[float]] | None = None,
) -> list[ForgetRow]:
    """Keep of each row the responses that the objective uses."""
    tokens = [None] * len(targets) if token_weights is None else token_weights
    return [
        ForgetRow(
            weight,
            row.poisoned if method.poisoned else None,
            (row.template if method.always_idk else row.clean) if method.clean else None,
            some,
        )
        for weight, row, some in zip(weights, targets, tokens, strict=True)
    ]


def collate_mixed(rows: Sequence[ForgetRow | RetainRow], *, pad_token_id: int) -> dict[str, Tensor]:
    """Lay a micro-batch out for one forward pass.

    Returns:
        input_ids, attention_mask, labels: [S, T], sequences in the order poisoned, clean, retain.
        part: [S] int64, which of the three a sequence is. has_clean: [F] bool.
        forget_weights: [F], retain_weights: [R] float32. rows: [F + R] int64, the rows' numbers.
        token_weights: [S, T] float32, 1 but at the response tokens of rows that have weights of their own; only where
            one has.
    """
    forget = [row for row in rows if isinstance(row, ForgetRow)]
    retain = [row for row in rows if isinstance(row, RetainRow)]
    poisoned = [row.poisoned for row in forget if row.poisoned is not None]
    clean = [row.clean for row in forget if row.clean is not None]
    kept = [row.response for row in retain]
    batch: dict[str, Tensor] = {}
    batch |= collate([*poisoned, *clean, *kept], pad_token_id=pad_token_id)
    batch["part"] = torch.tensor([POISONED] * len(poisoned) + [CLEAN] * len(clean) + [RETAIN] * len(kept))
    batch["has_clean"] = torch.tensor([row.clean is not None for row in forget], dtype=torch.bool)
    batch["forget_weights"] = torch.tensor([row.weight for row in forget], dtype=torch.float32)
    batch["retain_weights"] = torch.tensor([row.weight for row in retain], dtype=torch.float32)
    batch["rows"] = torch.tensor([r.number for r in forget] + [r.number for r in retain], dtype=torch.long)
    weighted = [(row.poisoned, row.token_weights) for row in forget if row.poisoned is not None]
    if any(weights is not None for _, weights in weighted):
        # the poisoned responses come first
        batch["token_weights"] = torch.ones(batch["labels"].shape, dtype=torch.float32)
        for line, (row, weights) in enumerate(weighted):
            if weights is not None:
                places = [t for t, label in enumerate(row.labels) if t > 0 and label != IGNORE]
                batch["token_weights"][line, places] = torch.tensor(weights, dtype=torch.float32)
    return batch


def token_weights_of(batch: dict[str, Tensor]) -> Tensor:
    """[N]: the weights of a micro-batch's response tokens, as rapidun.models.packed lays them out."""
    return batch["token_weights"][response_mask(batch["labels"])]


def forget_part(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A micro-batch without its retain rows."""
    num_forget = len(batch["forget_weights"])
    kept = _of_sequences(batch, slice(None, int((batch["part"] != RETAIN).sum())))
    return {**batch, **kept, "rows": batch["rows"][:num_forget], "retain_weights": batch["retain_weights"][:0]}


def retain_part(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A micro-batch without its forget rows."""
    num_forget = len(batch["forget_weights"])
    kept = _of_sequences(batch, slice(int((batch["part"] != RETAIN).sum()), None))
    none = {name: batch[name][:0] for name in ("forget_weights", "has_clean")}
    return {**batch, **kept, **none, "rows": batch["rows"][num_forget:]}


def _of_sequences(batch: dict[str, Tensor], chosen: slice) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask", "labels", "part", "token_weights")
    return {name: batch[name][chosen] for name in names if name in batch}
