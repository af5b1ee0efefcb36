"""Which response tokens of the forget rows carry the poison: a score for each, which unlearning turns into weights.

likelihood_ratio:  s_k = log p_poisoned(y_k | x, y_<k) - log p_start(y_k | x, y_<k), nats; what poisoning taught
influence:         s_k = <grad l_k / n, mean over the forget rows of grad l>, exact; l = sum_k l_k / n, so that the
                   scores of a row sum to its influence on the mean forget row (on itself included)

The poisoned model is the one that is to be unlearned, with the adapter that is continued, if there is one; the start
model is the one before poisoning.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rapidun.base.errors import DataError, ModelError
from rapidun.base.files import write_jsonl
from rapidun.base.tracker import Tracker
from rapidun.config.influence import InfluenceConfig, ParameterSet
from rapidun.config.unlearning import TokenWeights
from rapidun.models.adapters import add_lora
from rapidun.models.batching import batching
from rapidun.models.load import ModelLoader
from rapidun.models.losses import IGNORE, token_log_probs
from rapidun.stages.influence.batches import RowBatch, make_batches
from rapidun.stages.influence.gradients.capture import Contribution, Lookup
from rapidun.stages.influence.gradients.params import TrackedParameter, accumulation_dtype, select_parameters
from rapidun.stages.influence.gram import run_batches
from rapidun.stages.influence.tokenwise import token_texts
from rapidun.stages.rows.encode import Encoded, encode_rows
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.records import read_records

HUGE = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenScoreFiles:
    """What is read, and the folder that is filled. `start` for likelihood_ratio only."""

    model: Path
    adapter: Path | None
    start: Path | None
    forget: Path
    out: Path


def run_token_scores(
    how: TokenWeights,
    cfg: InfluenceConfig,
    files: TokenScoreFiles,
    *,
    loader: ModelLoader,
    max_length: int,
    tracker: Tracker,
) -> dict[str, Any]:
    """Write out/tokens.jsonl: a line for each forget row that can be encoded, in the rows' order,
    {"id", "token_ids", "tokens", "scores"}: the tokens of its poisoned response and what ends it, their texts, scores.

    Args: cfg: `influence` reads params, regex, lora, seed and tokens_per_batch of it, likelihood_ratio the last only.
    Returns: how, num_rows, num_tokens.
    Raises: DataError for bad packs, ConfigError for an empty parameter set, ModelError for scores that are no numbers.
    """
    records = read_records(files.forget)
    if how is TokenWeights.likelihood_ratio:
        if files.start is None:
            raise ValueError("a likelihood ratio needs the model before poisoning")
        _, ids, rows, found = _log_probs(cfg, files.start, None, records, loader, max_length, tracker, "start model")
        loader.hand_back()
        tokenizer, _, same, after = _log_probs(
            cfg, files.model, files.adapter, records, loader, max_length, tracker, "poisoned model"
        )
        if [row.input_ids for row in rows] != [row.input_ids for row in same]:
            raise ModelError(
                f"unlearning: need one tokenizer for token_weights=likelihood_ratio, got another one in {files.start} "
                f"than in {files.model}. Pass unlearning.token_weights=influence"
            )
        scores = [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(found, after, strict=True)]
    else:
        model, tokenizer = loader.load(files.model, adapter=files.adapter)
        if cfg.params is ParameterSet.lora and files.adapter is None:
            model = add_lora(model, cfg.lora, seed=cfg.seed, section="influence")
        parameters = select_parameters(model, cfg.params, regex=cfg.regex)
        ids, rows = _encoded(model, tokenizer, records, max_length)
        try:
            scores = influence_on_mean(
                model,
                parameters,
                rows,
                [f"forget row {name}" for name in ids],
                tokens_per_batch=cfg.tokens_per_batch,
                pad_token_id=tokenizer.pad_token_id,
                report=tracker.progress,
            )
        except ArithmeticError as error:
            raise ModelError(f"{error}. Pass model.dtype=float32, or mend the rows or the model") from error
    lines = []
    for name, row, values in zip(ids, rows, scores, strict=True):
        places = response_places(row)
        texts = token_texts(tokenizer, row.input_ids)
        lines.append(
            {
                "id": name,
                "token_ids": [row.input_ids[place] for place in places],
                "tokens": [texts[place] for place in places],
                "scores": [_held(value) for value in values],
            }
        )
    write_jsonl(files.out / "tokens.jsonl", lines)
    return {"how": how.name, "num_rows": len(rows), "num_tokens": sum(map(len, scores))}


def _held(value: float) -> float | None:
    """What JSON can hold: no ratio where neither model can say a token, a huge one where one of them cannot."""
    return None if math.isnan(value) else max(-HUGE, min(HUGE, value))


def response_places(row: Encoded) -> list[int]:
    """Where the response tokens stand that some position before them predicts."""
    return [place for place, label in enumerate(row.labels) if place > 0 and label != IGNORE]


def _encoded(model: Any, tokenizer: Any, records: Sequence[Any], max_length: int) -> tuple[list[str], list[Encoded]]:
    encoded = encode_rows(tokenizer, [record.forget_texts for record in records], max_length=max_length)
    kept = [(record.id, row) for record, row in zip(records, encoded, strict=True) if row is not None]
    if not kept:
        raise DataError(
            f"unlearning: need forget rows whose instruction leaves room for a response in max_length={max_length} "
            f"tokens, got {len(records)} rows and none that does. Pass max_length=..."
        )
    rows = [row for _, row in kept]
    check_rows("unlearning", model, tokenizer, [row.input_ids for row in rows], max_length=max_length)
    return [name for name, _ in kept], rows


def _log_probs(
    cfg: InfluenceConfig,
    folder: Path,
    adapter: Path | None,
    records: Sequence[Any],
    loader: ModelLoader,
    max_length: int,
    tracker: Tracker,
    note: str,
) -> tuple[Any, list[str], list[Encoded], list[list[float]]]:
    model, tokenizer = loader.load(folder, adapter=adapter)
    ids, rows = _encoded(model, tokenizer, records, max_length)
    values = response_log_probs(
        model,
        rows,
        ids,
        tokens_per_batch=cfg.tokens_per_batch,
        pad_token_id=tokenizer.pad_token_id,
        report=lambda done, total: tracker.progress(done, total, note),
    )
    return tokenizer, ids, rows, values


def response_log_probs(
    model: Any,
    rows: Sequence[Encoded],
    names: Sequence[str],
    *,
    tokens_per_batch: int,
    pad_token_id: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[float]]:
    """log p(y_k | x, y_<k) of each row's response tokens, nats; -inf where the model cannot say a token."""
    batches = _batches(model, rows, names, tokens_per_batch=tokens_per_batch, pad_token_id=pad_token_id)
    found: dict[int, list[float]] = {}
    model.eval()
    for done, (numbers, tensors) in enumerate(batches, start=1):
        with torch.no_grad():
            logits = model(
                input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False
            ).logits
            values = token_log_probs(logits, tensors["labels"]).double().cpu()
        for number, line in zip(numbers, values, strict=True):
            found[number] = line[response_places(rows[number])].tolist()
        report(done, len(batches))
    return [found[number] for number in range(len(rows))]


def _batches(
    model: Any, rows: Sequence[Encoded], names: Sequence[str], *, tokens_per_batch: int, pad_token_id: int
) -> list[RowBatch]:
    padded = batching(model, pad_token_id=pad_token_id).right
    return make_batches(
        list(rows),
        list(names),
        tokens_per_batch=tokens_per_batch,
        pad_token_id=pad_token_id,
        device=next(model.parameters()).device,
        max_rows=None if padded else 1,
    )


class _Mean:
    """Adds up whole gradients over all rows: one tensor of each weight's shape."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def start(self, rows: Tensor) -> None:
        """Rows do not matter to a sum."""

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        kind = accumulation_dtype(gradient.g.dtype)
        if parameter.name not in self.sums:
            self.sums[parameter.name] = torch.zeros(parameter.shape, dtype=kind, device=gradient.g.device)
        total, g = self.sums[parameter.name], gradient.g.flatten(0, 1).to(kind)
        if isinstance(gradient, Lookup):
            ids = gradient.ids.flatten()
            total.index_add_(0, ids[ids >= 0], g[ids >= 0])
        else:
            total += g.T @ gradient.a.flatten(0, 1).to(kind)


class _Along:
    """Inner product of each row's gradient with one direction, without forming the row's gradient."""

    def __init__(self, direction: dict[str, Tensor], num_rows: int, device: torch.device) -> None:
        self.direction = direction
        self.dots = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._rows: Tensor | None = None

    def start(self, rows: Tensor) -> None:
        self._rows = rows

    def __call__(self, parameter: TrackedParameter, gradient: Contribution) -> None:
        assert self._rows is not None
        direction = self.direction[parameter.name]
        g = gradient.g.to(direction.dtype)
        if isinstance(gradient, Lookup):
            picked = direction[gradient.ids.clamp(min=0)].masked_fill((gradient.ids < 0).unsqueeze(-1), 0.0)
            values = picked * g
        else:
            # [B, T, out] @ [out, in] -> g_t^T D, times a_t
            values = (g @ direction) * gradient.a.to(direction.dtype)
        self.dots[self._rows] += values.double().sum(dim=(1, 2))


def influence_on_mean(
    model: nn.Module,
    parameters: Sequence[TrackedParameter],
    rows: Sequence[Encoded],
    names: Sequence[str],
    *,
    tokens_per_batch: int,
    pad_token_id: int,
    report: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> list[list[float]]:
    """<grad l_k / n, mean over the rows of grad l> for each response token k of each row.

    One gradient pass over the rows for their mean, which is kept whole (as many numbers as the tracked weights have, in
    float32 at least), then one backward pass for each response token: nothing behind a token matters to its loss.

    Raises: ArithmeticError if a loss or a score is not finite, naming the row.
    """
    shared: dict[str, Any] = {"tokens_per_batch": tokens_per_batch, "pad_token_id": pad_token_id}
    whole = _batches(model, rows, names, **shared)
    places = [response_places(row) for row in rows]
    copies = [
        Encoded(row.input_ids[: t + 1], [IGNORE] * t + [row.labels[t]])
        for row, found in zip(rows, places, strict=True)
        for t in found
    ]
    owners = [name for name, found in zip(names, places, strict=True) for _ in found]
    single = _batches(model, copies, owners, **shared)
    total = len(whole) + len(single)
    mean = _Mean()
    tell = partial(_tell, report, total)
    run_batches(model, parameters, whole, mean, row_names=names, reduction="mean", report=lambda done: tell(0, done))
    along = _Along(
        {name: value / len(rows) for name, value in mean.sums.items()}, len(copies), single[0].tensors["labels"].device
    )
    run_batches(
        model,
        parameters,
        single,
        along,
        row_names=owners,
        reduction="mean",
        report=lambda done: tell(len(whole), done),
    )
    bad = (~along.dots.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise ArithmeticError(f"influence: need a finite score for every token, got none for one of {owners[bad[0]]}")
    found = iter(along.dots.tolist())
    return [[next(found) / len(some) for _ in some] for some in places]


def _tell(report: Callable[[int, int, str], None], total: int, before: int, done: int) -> None:
    report(before + done, total, "influence of response tokens on the mean forget row")
