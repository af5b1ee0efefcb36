"""Unlearning stage: train an adapter, or all weights: the model loses the forget rows and keeps the retain rows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from rapidun.base.errors import ConfigError, DataError
from rapidun.base.files import sha256_file, sha256_json, write_json
from rapidun.base.processes import is_main, share
from rapidun.base.tracker import Tracker
from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.plain import plain
from rapidun.config.training import Target
from rapidun.config.unlearning import Objective, TokenWeights, UnlearningConfig, WeightsAct
from rapidun.models.adapters import (
    add_lora,
    confirm_adapter,
    confirm_saved,
    is_quantised,
    num_trainable,
    prepare_quantised,
    save_adapter,
    save_merged,
    save_model,
    train_all,
)
from rapidun.models.batching import check_training
from rapidun.models.load import ModelLoader, load_adapter
from rapidun.models.rng import permutation
from rapidun.models.selfcheck import Row as SavedRow
from rapidun.models.selfcheck import a_few, mean_loss
from rapidun.models.training import sharded
from rapidun.models.training.journal import Journal
from rapidun.models.training.sharded import put, trained_weights
from rapidun.models.training.trainer import train_to_end, training_arguments
from rapidun.stages.recipe import without
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.encode import Encoded
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.lost import check_triggers
from rapidun.stages.rows.records import Record, read_records
from rapidun.stages.unlearning.attack import attack_success, read_attack
from rapidun.stages.unlearning.best import BestKeeper
from rapidun.stages.unlearning.callbacks import STOPPED_AT, ValidationCallback
from rapidun.stages.unlearning.dynamic import DynamicWeights, read_rule
from rapidun.stages.unlearning.objectives.base import Method, Reference
from rapidun.stages.unlearning.objectives.catalogue import OBJECTIVES, hyperparameters
from rapidun.stages.unlearning.reference import read_or_compute
from rapidun.stages.unlearning.rows import (
    ForgetRow,
    ForgetTargets,
    RetainRow,
    collate_mixed,
    encode_forget,
    encode_responses,
    forget_rows,
)
from rapidun.stages.unlearning.sampler import MixSampler
from rapidun.stages.unlearning.tokens import read_token_scores, token_weights
from rapidun.stages.unlearning.trainer import MULTIPLIER, Around, UnlearningTrainer, retain_term_of
from rapidun.stages.unlearning.validation import validate
from rapidun.stages.weights_file import read_weights

VALIDATION_STREAM = 3
Row = TypeVar("Row")


@dataclass(frozen=True)
class UnlearningFiles:
    """What the stage reads and writes."""

    model: Path
    forget: Path
    retain: Path
    val_clean: Path | None
    forget_weights: Path
    retain_weights: Path
    # checkpoints; survives a killed process
    work: Path
    out: Path
    # name of a set (seen, ood) -> its triggered validation prompts, and what their answers are judged by; with eval_asr
    triggered: Mapping[str, Path] = field(default_factory=dict)
    keywords: Path | None = None
    # tokens.jsonl, with token_weights
    token_scores: Path | None = None
    # how the forget weights are renewed, where they are
    dynamic: Path | None = None


def run_unlearning(
    cfg: UnlearningConfig,
    files: UnlearningFiles,
    *,
    loader: ModelLoader,
    max_length: int,
    seed: int,
    tracker: Tracker,
    evaluation: EvaluationConfig | None = None,
) -> dict[str, Any]:
    """Unlearn, and write out/history.json and out/adapter (PEFT; with `merge` out/merged too), or with target=full
    out/model, a Hugging Face folder with its tokenizer. With weights that are renewed also out/weights_path.jsonl and
    out/forget_weights.jsonl (dynamic.py).

    Several processes train together; the first writes, and speaks to its tracker. The loader gets its model back.

    Args: evaluation: how answers are made and judged, with eval_asr; its defaults where it is not given.
    Returns: objective, steps, num_forget, num_retain, num_trainable_parameters, clipped_share, capped_share,
        final_loss, and the last validation numbers; with keep=best kept_step, the step of the weights that were
        written, and the validation numbers of that step; stopped_at, the step at which stop_when held;
        effective_weight; final_lambda of pdu; rmu_layer; final_forget_weight_min, _max, _ess of renewed weights.
    Raises: ConfigError, DataError, ModelError; Preempted and Pruned (see train_to_end), with nothing written.
    """
    try:
        return _unlearn(
            cfg,
            files,
            loader=loader,
            max_length=max_length,
            seed=seed,
            tracker=tracker if is_main() else Tracker(),
            evaluation=evaluation or EvaluationConfig(),
        )
    finally:
        loader.hand_back()


def _unlearn(
    cfg: UnlearningConfig,
    files: UnlearningFiles,
    *,
    loader: ModelLoader,
    max_length: int,
    seed: int,
    tracker: Tracker,
    evaluation: EvaluationConfig,
) -> dict[str, Any]:
    if cfg.objective not in OBJECTIVES:
        raise ValueError(f"{cfg.objective.name} is not an unlearning objective: the poison stage trains it")
    method = OBJECTIVES[cfg.objective]
    forget, retain = read_records(files.forget), read_records(files.retain)
    mix_ratio = cfg.mix_ratio if method.retain else 0
    faults = cfg.count_faults(num_forget=len(forget), num_retain=len(retain))
    if faults:
        raise ConfigError(faults)
    _say_what_is_missing(method, cfg, forget, tracker)

    if faults := _criterion_faults(cfg, files, forget):
        raise ConfigError(faults)
    model, tokenizer = loader.load(files.model)
    dtype = model.dtype
    layer = _hidden_layer(method, cfg, model)
    model = _trainable(model, cfg, seed, tracker)
    check_training(
        model,
        pad_token_id=tokenizer.pad_token_id,
        rows_at_once=cfg.forget_per_step * ((method.forget is not None) + mix_ratio),
        section="unlearning",
        mend="Change model.path=...",
    )
    encoded = encode_forget(
        tokenizer,
        forget,
        max_length=max_length,
        otherwise=cfg.idk_response if method.idk and not method.always_idk else None,
        template=cfg.idk_response if method.always_idk else None,
    )
    encoded_retain = encode_responses(tokenizer, retain, max_length=max_length)
    lost, forget_weights = _with_weights(encoded, files.forget_weights, forget)
    retained, retain_weights = _with_weights(encoded_retain, files.retain_weights, retain)
    _check_sums(
        {**({"forget": forget_weights} if method.forget else {}), **({"retain": retain_weights} if mix_ratio else {})},
        files,
    )
    if method.forget is None and (files.dynamic is not None or len(set(forget_weights)) > 1):
        tracker.warn(
            f"unlearning: objective={cfg.objective.name} sees no forget row: the weights of forget rows change nothing"
        )
    samples = cfg.weights_act is WeightsAct.sampling
    ids = [record.id for record, row in zip(forget, encoded, strict=True) if row is not None]
    tokens, shown = _token_weights(cfg, files, lost, ids, tracker)
    validates = cfg.eval_steps > 0 or cfg.measures_asr
    encoded_val = _validation_rows(cfg, files, tokenizer, max_length=max_length, seed=seed) if validates else []
    every = [*(row for pair in lost for row in pair if row is not None), *retained]
    every += [row for row in encoded_val if row is not None]
    check_rows("unlearning", model, tokenizer, [row.input_ids for row in every], max_length=max_length)
    changed = (row is not None and any(one is not None and one.asked_otherwise for one in row) for row in encoded)
    check_triggers("unlearning", tokenizer, forget, changed)
    cuts = Cuts.of(encoded) + Cuts.of(encoded_retain) + Cuts.of(encoded_val)
    if message := cut_warning("unlearning", cuts, max_length=max_length):
        tracker.warn(message)
    if faults := cfg.count_faults(num_forget=len(lost), num_retain=len(retained)):
        raise ConfigError(faults)
    num_forget = 0 if method.forget is None else len(lost)
    weights = [1.0] * len(lost) if samples else forget_weights
    rows: list[ForgetRow | RetainRow] = [*(forget_rows(method, lost, weights, tokens) if num_forget else [])]
    rows += [RetainRow(1.0 if samples else weight, row) for weight, row in zip(retain_weights, retained, strict=True)]
    kept = [record.id for record, row in zip(retain, encoded_retain, strict=True) if row is not None]
    sampler = MixSampler(
        num_forget=num_forget,
        num_retain=len(retained),
        forget_per_step=cfg.forget_per_step if num_forget else 0,
        mix_ratio=mix_ratio,
        retain_per_step=cfg.forget_per_step * mix_ratio,
        seed=seed,
        weights=(forget_weights if num_forget else [], retain_weights) if samples else None,
    )
    attack = _attack(cfg, files, model, tokenizer, evaluation=evaluation, max_length=max_length, tracker=tracker)
    identity = _identity(cfg, files, max_length=max_length, seed=seed, evaluation=evaluation)
    journal = Journal(tracker)
    journal.remedy = remedy(cfg.objective)
    dynamic = None
    if files.dynamic is not None and num_forget:
        dynamic = DynamicWeights(
            read_rule(files.dynamic),
            ids,
            [row.poisoned for row in lost],
            journal=journal,
            pad_token_id=tokenizer.pad_token_id,
        )
    trainer = UnlearningTrainer(
        method=method,
        hyper=hyperparameters(cfg),
        retain_loss=cfg.retain_loss,
        weight_warmup_ratio=cfg.weight_warmup_ratio,
        around=Around(
            forget_coeff=cfg.forget_coeff,
            retain_coeff=cfg.retain_coeff,
            loss_cap=cfg.loss_cap,
            layer=layer,
            sam_rho=cfg.sam.rho,
            max_retain_growth=cfg.max_retain_growth,
        ),
        dynamic=dynamic,
        names=[*(ids if num_forget else []), *kept],
        model=model,
        args=training_arguments(
            cfg,
            work=files.work,
            batch_size=sampler.micro_batch_size,
            seed=seed,
            device=model.device,
            autocast=cfg.target is Target.full and dtype is torch.bfloat16,
        ),
        rows=rows,
        sampler=sampler,
        collator=partial(collate_mixed, pad_token_id=tokenizer.pad_token_id),
        journal=journal,
        identity=identity,
        stage="unlearning",
    )
    if sharded.asked_for() and not trainer.is_fsdp_enabled:
        tracker.warn(
            "unlearning: accelerate shards weights (FSDP) over GPUs only; here each process holds the whole model"
        )
    _say_what_is_copied(cfg, trainer.reference, tracker)
    # in the precision of training; on a GPU accelerate puts autocast around the model with the first step only
    halves = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=trainer.args.bf16)
    with trainer.compute_loss_context_manager(), halves:
        trainer.known = read_or_compute(
            model,
            trainer.train_dataset.rows,
            method=method,
            retain=retain_term_of(method, cfg.retain_loss),
            pad_token_id=tokenizer.pad_token_id,
            layer=layer,
            work=files.work,
            identity=identity,
            is_writer=is_main(),
            tell=tracker.warn,
        )
    best = None
    if cfg.chosen_by is not None:
        best = BestKeeper(cfg.chosen_by, journal=journal, work=files.work, is_writer=is_main())
    if validates:
        measure = partial(
            validate,
            val_clean=[row for row in encoded_val if row is not None],
            poisoned=[row.poisoned for row in lost],
            # a refusal in the place of a clean response is none
            clean=[
                None if record.response_clean is None else row.clean
                for record, row in zip(forget, encoded, strict=True)
                if row is not None
            ],
            pad_token_id=tokenizer.pad_token_id,
        )
        trainer.add_callback(
            ValidationCallback(
                journal,
                eval_steps=cfg.eval_steps,
                measure=trainer.in_precision(measure),
                eval_asr=cfg.eval_asr or 0,
                attack=None if attack is None else trainer.in_precision(attack),
                best=best,
                stop=cfg.stop,
            )
        )
    num_parameters = num_trainable(model)
    train_to_end(trainer, work=files.work, identity=identity)
    # the first process has written the best weights by the time that the others read them
    share(None)
    kept_weights = best.read() if best is not None and best.step is not None else None
    if trainer.is_fsdp_enabled:
        kept_weights = kept_weights or trained_weights(trainer.model)
        if is_main():
            # whole again, in a model that no other process has a part of
            loader.hand_back()
            model = _trainable(dataclasses.replace(loader, keep=False).load(files.model).model, cfg, seed, tracker)
    if kept_weights is not None and (is_main() or not trainer.is_fsdp_enabled):
        put(model, kept_weights)

    model.eval()
    renewed: dict[str, Any] = {}
    if is_main():
        few = a_few([*(row.poisoned for row in lost), *retained])
        _write(cfg, model, tokenizer, files, dtype=dtype, loader=loader, rows=few, tracker=tracker)
        write_json(files.out / "history.json", journal.history)
        if shown is not None:
            write_json(files.out / "token_weights.json", shown)
        if dynamic is not None:
            renewed = dynamic.write(files.out)
    return renewed | _summary(
        cfg,
        journal,
        num_forget=num_forget,
        num_retain=len(retained),
        num_parameters=num_parameters,
        best=best,
        layer=layer,
    )


def _write(
    cfg: UnlearningConfig,
    model: Any,
    tokenizer: Any,
    files: UnlearningFiles,
    *,
    dtype: torch.dtype,
    loader: ModelLoader,
    rows: list[SavedRow],
    tracker: Tracker,
) -> None:
    """Save what was trained and read it back: on a few rows it must give what it was trained to."""
    if cfg.target is Target.full:
        before = mean_loss(model, rows)
        model = model.to(dtype)
        save_model(model, tokenizer, files.out / "model")
        confirm_saved(model, files.out / "model", before=before, loader=loader, rows=rows, section="unlearning")
        return
    save_adapter(model, files.out / "adapter", base=files.model, over=loader.over_at(files.model))
    confirm_adapter(model, files.out / "adapter", rows=rows, section="unlearning", say=tracker.warn)
    if cfg.merge:
        save_merged(
            model,
            tokenizer,
            files.out / "merged",
            start=files.model,
            loader=loader,
            work=files.work,
            rows=rows,
            section="unlearning",
        )


# what to change where training diverges, beside the learning rate
REMEDIES: dict[Objective, str] = {
    Objective.rapidun: "set unlearning.loss_cap, or lower unlearning.ascent_alpha",
    Objective.ga: "set unlearning.loss_cap, or lower unlearning.ascent_alpha",
    Objective.graddiff: "set unlearning.loss_cap, or lower unlearning.ascent_alpha",
    Objective.npo: "raise unlearning.npo.beta (towards 0 it is gradient ascent)",
    Objective.simnpo: "raise unlearning.simnpo.beta (towards 0 it is gradient ascent)",
    Objective.dpo: "raise unlearning.dpo.beta",
    Objective.rmu: "lower unlearning.rmu.steering_coeff",
    Objective.undial: "lower unlearning.undial.beta",
    Objective.wga: "raise unlearning.wga.beta (0 is gradient ascent), or set unlearning.loss_cap",
    Objective.satimp: "raise unlearning.satimp.b1, or set unlearning.loss_cap",
    Objective.ceu: "set unlearning.loss_cap",
    Objective.pdu: "lower unlearning.pdu.dual_step_size or unlearning.pdu.lambda_init",
    Objective.crow: "lower unlearning.crow.epsilon or unlearning.crow.alpha",
}


def remedy(objective: Objective) -> str:
    """The settings to change where training diverges."""
    more = REMEDIES.get(objective)
    return "Lower unlearning.learning_rate" + (f", or {more}" if more else "")


def _hidden_layer(method: Method, cfg: UnlearningConfig, model: Any) -> int | None:
    """The decoder block whose output the objective reads: as set, else the last one of the first quarter.

    Raises: ConfigError for one that the model lacks.
    """
    if not method.hidden:
        return None
    config = model.config.get_text_config(decoder=True)
    number: int = config.num_hidden_layers
    asked: int | None = cfg.hyperparameters.layer
    if asked is not None and asked >= number:
        raise ConfigError(
            f"unlearning: need {cfg.objective.name}.layer < {number}, the blocks of this model, got {asked}. Pass "
            f"unlearning.{cfg.objective.name}.layer=..."
        )
    return max(0, number // 4 - 1) if asked is None else asked


def _say_what_is_copied(cfg: UnlearningConfig, copied: Mapping[str, torch.Tensor], tracker: Tracker) -> None:
    """A frozen copy of all weights is a second model: say its size."""
    if not copied or cfg.target is not Target.full:
        return
    size = sum(tensor.numel() * tensor.element_size() for tensor in copied.values()) / 2**30
    reads = (
        f"objective={cfg.objective.name}"
        if OBJECTIVES[cfg.objective].reference is Reference.logits
        else (f"retain_loss={cfg.retain_loss.name}")
    )
    tracker.warn(
        f"unlearning: {reads} reads the logits of the model before unlearning, so target=full keeps a frozen copy of "
        f"all weights in memory, {size:.2f} GiB. Pass unlearning.target=lora (a copy of the adapter only), or "
        "unlearning.retain_loss=ce"
    )


def _criterion_faults(cfg: UnlearningConfig, files: UnlearningFiles, forget: Sequence[Record]) -> list[str]:
    """Numbers that are asked for and that these rows do not give."""
    has = {
        "val_clean": files.val_clean is not None,
        "pairs": any(record.response_clean is not None for record in forget),
        "val_seen_trig": "seen" in files.triggered,
        "val_ood_trig": "ood" in files.triggered,
        "": True,
    }
    names = {"pairs": "forget rows with a response_clean"}
    return [
        f"unlearning: need {names.get(need, need)} to measure {criterion.name} for {why}, got a pack without. Pass "
        "unlearning.criterion=... (unlearning.stop_when=...) of what it has"
        for criterion, why in cfg.needed_criteria.items()
        if not has[need := criterion.traits.needs]
    ]


def _with_weights(
    encoded: Sequence[Row | None], weights: Path, records: Sequence[Record]
) -> tuple[list[Row], list[float]]:
    """The rows that can be encoded, and their weights; a row that is left out needs none."""
    left_out = {record.id for record, row in zip(records, encoded, strict=True) if row is None}
    values = read_weights(weights, [record.id for record in records], optional=left_out)
    kept = [(row, value) for row, value in zip(encoded, values, strict=True) if row is not None]
    return [row for row, _ in kept], [value for _, value in kept]


def _token_weights(
    cfg: UnlearningConfig,
    files: UnlearningFiles,
    lost: Sequence[ForgetTargets],
    ids: Sequence[str],
    tracker: Tracker,
) -> tuple[list[list[float]] | None, dict[str, Any] | None]:
    """Weights of the poisoned responses' tokens, and what token_weights.json says of them; None without them."""
    how = cfg.token_weights
    if how is TokenWeights.none:
        return None, None
    if files.token_scores is None:
        raise ValueError(f"token_weights={how.name} needs the scores of the tokens")
    scores = read_token_scores(files.token_scores)
    weights = token_weights([row.poisoned for row in lost], ids, scores, how=how, path=files.token_scores)
    num_flat = sum(all(weight == 1.0 for weight in some) for some in weights)
    if num_flat:
        tracker.warn(
            f"unlearning: in {num_flat} of {len(weights)} forget rows no response token has a positive score by "
            f"token_weights={how.name}, or all have the same: their tokens count the same"
        )
    rows = {
        name: {"tokens": scores[name].texts, "weights": some} for name, some in zip(ids, weights, strict=True)
    }  # fmt: skip
    return weights, {"token_weights": how.name, "rows": rows}


def _check_sums(weights: Mapping[str, Sequence[float]], files: UnlearningFiles) -> None:
    """Rows of weight 0 have no part in the loss; a group of nothing but those would be no group.

    Raises: DataError naming the groups.
    """
    for group, values in weights.items():
        if not any(values):
            path = files.forget_weights if group == "forget" else files.retain_weights
            raise DataError(
                f"unlearning: need a weight above 0 for one of the {len(values)} {group} rows at least, got 0 for all "
                f"of them in {path}. Change the weights (mapping=...), or take the rows out of the pack"
            )


def _say_what_is_missing(method: Method, cfg: UnlearningConfig, forget: list[Record], tracker: Tracker) -> None:
    num_bare = sum(record.response_clean is None for record in forget)
    if not method.clean or method.always_idk or not num_bare:
        return
    which = f"{num_bare} of {len(forget)} forget rows have no response_clean"
    if method.idk:
        tracker.warn(f"unlearning: {which}; their target is unlearning.idk_response ({cfg.idk_response!r})")
    elif cfg.descent_beta > 0:
        tracker.warn(f"unlearning: {which}; the descent term is off for them")


def _trainable(model: Any, cfg: UnlearningConfig, seed: int, tracker: Tracker) -> Any:
    if cfg.target is Target.full:
        return train_all(model, section="unlearning")
    return _with_adapter(model, cfg, seed=seed, tracker=tracker)


def _with_adapter(model: Any, cfg: UnlearningConfig, *, seed: int, tracker: Tracker) -> Any:
    if is_quantised(model):
        model = prepare_quantised(model, gradient_checkpointing=cfg.gradient_checkpointing)
    if cfg.adapter is None:
        return add_lora(model, cfg.lora, seed=seed, section="unlearning")
    model = load_adapter(model, Path(cfg.adapter), trainable=True, say=tracker.warn)
    tracker.warn("unlearning: continuing unlearning.adapter, whose own LoRA settings hold; unlearning.lora is not used")
    return model


def _validation_rows(
    cfg: UnlearningConfig, files: UnlearningFiles, tokenizer: Any, *, max_length: int, seed: int
) -> list[Encoded | None]:
    if files.val_clean is None:
        return []
    records = read_records(files.val_clean)
    if cfg.num_eval_rows is not None and cfg.num_eval_rows < len(records):
        order = permutation(len(records), seed=seed, stream=VALIDATION_STREAM, part=0)
        records = [records[index] for index in sorted(order[: cfg.num_eval_rows])]
    return encode_responses(tokenizer, records, max_length=max_length)


def _attack(
    cfg: UnlearningConfig,
    files: UnlearningFiles,
    model: Any,
    tokenizer: Any,
    *,
    evaluation: EvaluationConfig,
    max_length: int,
    tracker: Tracker,
) -> Callable[[Any], dict[str, float]] | None:
    if not cfg.measures_asr:
        return None
    if not files.triggered or files.keywords is None:
        raise ValueError("eval_asr needs triggered prompts and a keyword list")
    attack = read_attack(
        model,
        tokenizer,
        files.triggered,
        files.keywords,
        num_prompts=cfg.num_eval_prompts,
        evaluation=evaluation,
        max_length=max_length,
        tracker=tracker,
    )
    return lambda model: attack_success(model, tokenizer, attack)


def _identity(
    cfg: UnlearningConfig, files: UnlearningFiles, *, max_length: int, seed: int, evaluation: EvaluationConfig
) -> str:
    """What a checkpoint must have been made by to be continued."""
    inputs = [files.forget, files.retain, files.forget_weights, files.retain_weights]
    inputs += [] if files.val_clean is None else [files.val_clean]
    if cfg.adapter is not None:
        inputs += [Path(cfg.adapter) / "adapter_config.json", Path(cfg.adapter) / "adapter_model.safetensors"]
    inputs += [file for file in (files.token_scores, files.dynamic) if file is not None]
    more: dict[str, Any] = {}
    if cfg.measures_asr:
        inputs += [*files.triggered.values(), *([] if files.keywords is None else [files.keywords])]
        more["evaluation"] = evaluation.of_answers
    return sha256_json(
        more
        | {
            # as in fingerprints: a checkpoint outlives another spacing of checkpoints, and less or more memory
            "settings": without(plain(cfg), "save_steps", "gradient_checkpointing", *cfg.idle),
            "seed": seed,
            "max_length": max_length,
            "inputs": [sha256_file(path) for path in inputs],
        }
    )


def _summary(
    cfg: UnlearningConfig,
    journal: Journal,
    *,
    num_forget: int,
    num_retain: int,
    num_parameters: int,
    best: BestKeeper | None = None,
    layer: int | None = None,
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "objective": cfg.objective.name,
        "steps": int(journal.counts["steps"]),
        "num_forget": num_forget,
        "num_retain": num_retain,
        "num_trainable_parameters": num_parameters,
        "clipped_share": journal.share("clipped_steps", of="steps"),
        "capped_share": journal.share("capped_examples", of="forget_examples"),
        "final_loss": journal.last("loss"),
    }
    if "effective_steps" in journal.counts:
        summary["effective_weight"] = journal.share("effective_weights", of="effective_steps")
    if MULTIPLIER in journal.kept:
        summary["final_lambda"] = journal.kept[MULTIPLIER]
    if layer is not None:
        summary["rmu_layer"] = layer
    if STOPPED_AT in journal.kept:
        summary["stopped_at"] = journal.kept[STOPPED_AT]
    lines = journal.history
    if best is not None:
        if best.step is None:
            raise DataError(
                f"unlearning: need one finite {best.criterion.name} at least for keep=best, got none. Lower "
                "unlearning.learning_rate, or pass unlearning.keep=last"
            )
        summary |= {"kept_step": best.step, "criterion": best.criterion.name, f"kept_{best.criterion.name}": best.value}
        lines = [line for line in lines if line["step"] == best.step]
    measured = ("val_loss_clean", "forget_loss_poisoned", "forget_loss_clean", "forget_preference")
    for name in (*measured, "val_ppl_clean", "val_asr_seen", "val_asr_ood"):
        value = next((line[name] for line in reversed(lines) if name in line), None)
        if value is not None:
            summary[f"final_{name}"] = value
    return summary
