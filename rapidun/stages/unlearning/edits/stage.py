"""An edit from its files to its files: load, change, save, read back, report."""

from typing import Any

from rapidun.base.errors import ModelError
from rapidun.base.files import write_json
from rapidun.base.tracker import Tracker
from rapidun.config.unlearning import UnlearningConfig
from rapidun.models.adapters import confirm_adapter, confirm_saved, is_quantised, save_adapter, save_model
from rapidun.models.load import ModelLoader
from rapidun.models.selfcheck import a_few, mean_loss
from rapidun.stages.unlearning.edits.base import Edited, Given
from rapidun.stages.unlearning.edits.catalogue import EDITS
from rapidun.stages.unlearning.edits.gradients import mean_losses
from rapidun.stages.unlearning.edits.rows import EditFiles, read_edit_rows


def run_edit(
    cfg: UnlearningConfig, files: EditFiles, *, loader: ModelLoader, max_length: int, seed: int, tracker: Tracker
) -> dict[str, Any]:
    """Edit the model and write out/model (a Hugging Face folder) or out/adapter (PEFT), and out/edits.json.

    edits.json: what changed, in all, by layer and by weight (number of weights, changed_share, norm of the change, the
    same over the norm before); the mean losses of F (on what the model should lose) and R before and after; what the
    edit says of itself. Nothing is kept on the way: an edit that was stopped starts again, and ends with the same
    weights.

    Returns: objective, num_forget, num_retain, changed_share, change_norm, the losses, the edit's own numbers.
    Raises: ConfigError, DataError, ModelError; Preempted, with nothing written.
    """
    try:
        return _edit(cfg, files, loader=loader, max_length=max_length, seed=seed, tracker=tracker)
    finally:
        loader.hand_back()


def _edit(
    cfg: UnlearningConfig, files: EditFiles, *, loader: ModelLoader, max_length: int, seed: int, tracker: Tracker
) -> dict[str, Any]:
    model, tokenizer = loader.load(files.model)
    if is_quantised(model) and not cfg.adapts:
        raise ModelError(
            f"unlearning: need unquantised weights to change, got 8-bit or 4-bit ones for objective="
            f"{cfg.objective.name}. Pass model.quantisation=none (or model.path=... of the folder before it was "
            "quantised), or an objective that trains an adapter"
        )
    rows = read_edit_rows(model, tokenizer, files, max_length=max_length, tracker=tracker)
    groups = {"forget": rows.forget, "retain": rows.retain}
    losses = {f"{name}_loss_before": mean_losses(model, rows, group) for name, group in groups.items()}
    given = Given(
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        cfg=cfg,
        files=files,
        loader=loader,
        max_length=max_length,
        seed=seed,
        tracker=tracker,
    )
    edited = EDITS[cfg.objective](given)
    edited.model.eval()
    losses |= {f"{name}_loss_after": mean_losses(edited.model, rows, group) for name, group in groups.items()}
    numbers = {
        "num_forget": len(rows.forget),
        "num_retain": len(rows.retain),
        **edited.changes.summary(),
        **losses,
        **edited.numbers,
    }
    _write(edited, files, tokenizer, loader=loader, rows=a_few([row.encoded for row in (*rows.forget, *rows.retain)]))
    write_json(
        files.out / "edits.json",
        {"objective": cfg.objective.name, **numbers, **edited.notes, **edited.changes.report()},
    )
    return {"objective": cfg.objective.name, **numbers}


def _write(edited: Edited, files: EditFiles, tokenizer: Any, *, loader: ModelLoader, rows: list[Any]) -> None:
    """Save the edited model and read it back: on a few rows it must give what it gave."""
    if edited.adapter:
        over = loader.over_at(files.model)
        save_adapter(edited.model, files.out / "adapter", base=files.model, over=over)
        confirm_adapter(edited.model, files.out / "adapter", rows=rows, section="unlearning", say=loader.say)
        return
    before = mean_loss(edited.model, rows)
    save_model(edited.model, tokenizer, files.out / "model")
    confirm_saved(edited.model, files.out / "model", before=before, loader=loader, rows=rows, section="unlearning")
