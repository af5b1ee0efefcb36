"""The influence stage: one gradient pass over forget and retain rows, four blocks of scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapidun.adapters import add_lora
from rapidun.data.batches import token_budget_batches
from rapidun.data.encode import Encoded, collate, encode_rows
from rapidun.data.records import Record, read_records
from rapidun.errors import DataError, ModelError
from rapidun.files import write_json, write_tensors
from rapidun.influence.config import InfluenceConfig, InfluenceMethod, ParameterSet
from rapidun.influence.gram import RowBatch, exact_gram, sketch_gram
from rapidun.influence.params import num_numbers, select_parameters
from rapidun.influence.scores import gradient_norms, influence_scores, split_blocks
from rapidun.losses import response_mask
from rapidun.models import ModelLoader
from rapidun.tracking import Tracker


@dataclass(frozen=True, kw_only=True, slots=True)
class InfluenceFiles:
    """What the stage reads (a model folder, an adapter to put on it, two packs) and the folder it fills."""

    model: Path
    adapter: Path | None
    forget: Path
    retain: Path
    out: Path


def run_influence(
    cfg: InfluenceConfig,
    files: InfluenceFiles,
    *,
    loader: ModelLoader,
    max_length: int,
    seed: int,
    tracker: Tracker,
) -> dict[str, Any]:
    """Score every forget and retain row as training example for every forget and retain row as query.

    The gradient of a forget row is that of its poisoned response (what the model should lose), else of its
    response; of a retain row, that of its response. With params=lora and no adapter a fresh one is attached, seeded:
    its lora_B is zero, so the gradients of lora_A are zero and only lora_B speaks.

    Writes, forget rows before retain rows, rows = training examples, columns = queries:
        scores.safetensors: ff, fr, rf, rr float32 in cfg.score; gram [N, N] inner products, norms [N],
            losses [N], all float32.
        ids.json: {"forget": [...], "retain": [...]} in row order.
        parameters.json: the tracked weights, {name: [rows, columns]}.
    Returns: counts, what was tracked, the rows' mean losses (nats per token, for loss=mean).
    Raises: DataError for bad packs, ConfigError for an empty parameter set, ModelError if a gradient is not
        finite (names the rows).
    """
    forget, retain = read_records(files.forget), read_records(files.retain)
    model, tokenizer = loader.load(files.model, adapter=files.adapter)
    if cfg.params is ParameterSet.lora and files.adapter is None:
        model = add_lora(model, cfg.lora, seed=seed, section="influence")
    parameters = select_parameters(model, cfg.params, regex=cfg.regex)
    names = [f"forget row {r.id}" for r in forget] + [f"retain row {r.id}" for r in retain]
    encoded = _encode(tokenizer, forget, retain, max_length=max_length)
    batches = make_batches(
        encoded,
        names,
        tokens_per_batch=cfg.tokens_per_batch,
        pad_token_id=tokenizer.pad_token_id,
        device=next(model.parameters()).device,
    )
    try:
        if cfg.method is InfluenceMethod.exact:
            result = exact_gram(
                model,
                parameters,
                batches,
                row_names=names,
                reduction=cfg.loss.name,
                memory_bytes=cfg.memory_gb * 1e9,
                on_batch=tracker.progress,
            )
        else:
            result = sketch_gram(
                model,
                parameters,
                batches,
                row_names=names,
                reduction=cfg.loss.name,
                k=cfg.k,
                seed=seed,
                on_batch=tracker.progress,
            )
    except ArithmeticError as error:
        raise ModelError(f"{error}. Pass model.dtype=float32, or mend the rows or the model") from error
    num_zero = int((gradient_norms(result.gram) == 0).sum())
    if num_zero:
        tracker.warn(
            f"influence: the gradients of {num_zero} of {len(names)} rows are zero, their scores are 0. "
            "Choose another influence.params"
        )
    _write(files.out, result.gram, result.losses, cfg=cfg, forget=forget, retain=retain)
    write_json(files.out / "parameters.json", {p.name: list(p.shape) for p in parameters})
    num_parameters = num_numbers(parameters)
    return {
        "num_forget": len(forget),
        "num_retain": len(retain),
        "num_tokens": sum(len(row.input_ids) for row in encoded),
        "num_batches": len(batches),
        "num_modules": len(parameters),
        "num_parameters": num_parameters,
        "numbers_per_row": num_parameters if cfg.method is InfluenceMethod.exact else cfg.k,
        "method": cfg.method.name,
        "score": cfg.score.name,
        "params": cfg.params.name,
        "num_passes": result.num_passes,
        "num_zero_gradients": num_zero,
        "loss_forget": result.losses[: len(forget)].mean().item(),
        "loss_retain": result.losses[len(forget) :].mean().item(),
    }


def make_batches(
    encoded: list[Encoded], names: list[str], *, tokens_per_batch: int, pad_token_id: int, device: torch.device
) -> list[RowBatch]:
    """Padded batches of similar lengths.

    Raises: DataError for a row without a response token to predict.
    """
    batches = []
    for rows in token_budget_batches([len(row.input_ids) for row in encoded], max_tokens=tokens_per_batch):
        tensors = collate([encoded[row] for row in rows], pad_token_id=pad_token_id)
        for row, count in zip(rows, response_mask(tensors["labels"]).sum(dim=1).tolist(), strict=True):
            if count == 0:
                raise DataError(f"influence: need a response token behind another token, got none in {names[row]}")
        batches.append(RowBatch(rows, {key: value.to(device) for key, value in tensors.items()}))
    return batches


def _encode(tokenizer: Any, forget: list[Record], retain: list[Record], *, max_length: int) -> list[Encoded]:
    rows = [(r.instruction, r.context, r.forget_target) for r in forget]
    rows += [(r.instruction, r.context, r.response) for r in retain]
    return encode_rows(tokenizer, rows, max_length=max_length)


def _write(
    out: Path,
    gram: Tensor,
    losses: Tensor,
    *,
    cfg: InfluenceConfig,
    forget: list[Record],
    retain: list[Record],
) -> None:
    blocks = split_blocks(influence_scores(gram, score=cfg.score), num_forget=len(forget))
    tensors = {**blocks._asdict(), "gram": gram, "norms": gradient_norms(gram), "losses": losses}
    write_tensors(out / "scores.safetensors", {name: t.float().contiguous() for name, t in tensors.items()})
    write_json(out / "ids.json", {"forget": [r.id for r in forget], "retain": [r.id for r in retain]})
