"""What the reference model gives on the training rows, where a few numbers a row say all of it.

The reference is the model as it was handed over. Sums of log-probabilities (npo, dpo) and hidden states (rmu) are
computed once, before the first step, and kept in the work folder: no reference pass in a step, no second copy of the
model. A KL retain term and undial read V numbers a token (0.2 MB in float32 at a vocabulary of 49,152), which no cache
of a sensible size holds: for them the trainer keeps a frozen copy of what trains, and passes through it at each step.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rapidun.base.files import sha256_json, write_atomic
from rapidun.models.packed import Packed
from rapidun.models.training.forward import forward_packed
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.encode import Encoded, collate
from rapidun.stages.unlearning.objectives.base import Method, Reference, RetainTerm
from rapidun.stages.unlearning.rows import CLEAN, POISONED, RETAIN, ForgetRow, RetainRow

TOKENS_PER_BATCH = 2048
NAME = "reference.safetensors"


class Known(NamedTuple):
    """By the rows' numbers."""

    sums: Tensor  # [rows, 2] float64 nats: S_i^r of the poisoned and of the clean response; NaN where there is none
    hidden: Tensor  # [N, D]: the response tokens of the rows that have any here, row by row
    starts: Tensor  # [rows + 1] int64: row i has hidden[starts[i]:starts[i + 1]]

    def sums_of(self, numbers: Tensor, part: int) -> Tensor:
        """[B] nats."""
        return self.sums[numbers.cpu(), part].to(numbers.device)

    def hidden_of(self, numbers: Tensor, tokens: Packed) -> Packed:
        """The reference's hidden states at the rows' response tokens; its logits are not there ([N, 0])."""
        places = [torch.arange(int(self.starts[n]), int(self.starts[n + 1])) for n in numbers.tolist()]
        hidden = self.hidden[torch.cat(places)] if places else self.hidden[:0]
        hidden = hidden.to(tokens.targets.device)
        return Packed(hidden[:, :0], tokens.targets, tokens.rows, tokens.num_rows, hidden)


def sequences_needed(
    rows: Sequence[ForgetRow | RetainRow], method: Method, retain: RetainTerm | None
) -> list[tuple[int, int, Encoded]]:
    """(row number, part, sequence) of all that is computed once."""
    needed: list[tuple[int, int, Encoded]] = []
    for number, row in enumerate(rows):
        if isinstance(row, ForgetRow):
            if method.reference is Reference.sums:
                pairs = ((POISONED, row.poisoned), (CLEAN, row.clean))
                needed += [(number, part, sequence) for part, sequence in pairs if sequence is not None]
        elif retain is not None and retain.reference is Reference.hidden:
            needed.append((number, RETAIN, row.response))
    return needed


@torch.no_grad()
def compute(
    model: nn.Module,
    needed: Sequence[tuple[int, int, Encoded]],
    *,
    num_rows: int,
    pad_token_id: int,
    layer: int | None,
) -> Known:
    """One pass over the sequences, without dropout.

    Args: layer: of the hidden states; None where none are needed.
    """
    device = next(model.parameters()).device
    sums = torch.full((num_rows, 2), torch.nan, dtype=torch.float64)
    states: dict[int, Tensor] = {}
    training = model.training
    model.eval()
    lengths = [len(sequence.input_ids) for _, _, sequence in needed]
    for indices in token_budget_batches(lengths, max_tokens=TOKENS_PER_BATCH):
        padded = collate([needed[index][2] for index in indices], pad_token_id=pad_token_id)
        tokens = forward_packed(model, {name: t.to(device) for name, t in padded.items()}, hidden_layer=layer)
        values = tokens.sums(tokens.log_probs()).double().cpu()
        for place, index in enumerate(indices):
            number, part, _ = needed[index]
            if part == RETAIN:
                hidden = tokens.between(place, place + 1).hidden
                assert hidden is not None
                states[number] = hidden.cpu().clone()
            else:
                sums[number, part] = values[place]
    model.train(training)
    counts = [len(states[number]) if number in states else 0 for number in range(num_rows)]
    starts = torch.tensor([0, *counts]).cumsum(0)
    hidden = torch.cat([states[number] for number in sorted(states)]) if states else torch.zeros(0, 0)
    return Known(sums, hidden, starts)


def read_or_compute(
    model: nn.Module,
    rows: Sequence[ForgetRow | RetainRow],
    *,
    method: Method,
    retain: RetainTerm | None,
    pad_token_id: int,
    layer: int | None,
    work: Path,
    identity: str,
    is_writer: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Known | None:
    """What the rows need of the reference, from the work folder where a run of the same identity left it.

    Args: identity: of the model and of the settings; the sequences and the layer are added to it. tell: gets a line
        where the file was damaged.
    Returns: None where the objective reads nothing of this kind.
    """
    needed = sequences_needed(rows, method, retain)
    if not needed:
        return None
    of_rows = [(number, part, list(sequence.input_ids), list(sequence.labels)) for number, part, sequence in needed]
    identity = sha256_json({"identity": identity, "layer": layer, "rows": of_rows})
    path = work / NAME
    found = _read(path, identity)
    if found is None:
        hidden = any(part == RETAIN for _, part, _ in needed)
        if path.exists():
            tell(f"{path}: need what the reference gave on these rows, got a damaged file or that of others; made anew")
        found = compute(
            model, needed, num_rows=len(rows), pad_token_id=pad_token_id, layer=layer if hidden else None
        )  # fmt: skip
        if is_writer:
            _write(path, found, identity)
    return found


def _read(path: Path, identity: str) -> Known | None:
    try:
        with safe_open(path, framework="pt") as file:
            noted = (file.metadata() or {}).get("identity")
            found = Known(*(file.get_tensor(name) for name in Known._fields))
    except (OSError, SafetensorError):
        return None
    return found if noted == _noted(found, identity) else None


def _write(path: Path, known: Known, identity: str) -> None:
    tensors = {name: value.contiguous() for name, value in known._asdict().items()}
    noted = {"identity": _noted(known, identity)}
    write_atomic(path, lambda part: save_file(tensors, part, noted))


def _noted(known: Known, identity: str) -> str:
    """One entry: of several, safetensors writes now one first, now another."""
    return f"{identity}/{_digest(known)}"


def _digest(known: Known) -> str:
    """SHA-256 over the numbers of all three."""
    digest = hashlib.sha256()
    for tensor in known:
        # bfloat16 is no type of numpy's
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
