"""The check on a sample of a pack's rows: loads the model that a run would, and encodes the rows as it would."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rapidun.base.errors import ConfigError, ModelError
from rapidun.base.slow import Slow
from rapidun.config.influence import InfluenceMethod, ParameterSet
from rapidun.config.run import RunConfig
from rapidun.models.adapters import add_lora
from rapidun.models.batching import batching
from rapidun.models.load import ModelLoader, local_folder
from rapidun.stages.influence.batches import make_batches
from rapidun.stages.influence.check.check import Checked, check_influence
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.stage import describe
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.fit import check_rows
from rapidun.stages.rows.records import Record
from rapidun.stages.start_adapter import start_of

MIN_ROWS = 4


def check_sample(
    cfg: RunConfig,
    rows: Sequence[tuple[Record, str]],
    *,
    adapter: Path | None,
    rounds: int,
    pack_rows: int,
    tell: Callable[[str], None],
) -> Checked:
    """Compare a run's influence setting with exact scores of some rows.

    Args: rows: records, each with its answer. rounds, pack_rows: as in `check_influence`. tell: gets a line before it
        takes long.
    Raises: ConfigError, ModelError.
    """
    model_cfg, influence = cfg.model, cfg.influence
    assert model_cfg.path is not None
    folder = local_folder(model_cfg.path, revision=model_cfg.revision)
    loader = ModelLoader(
        dtype=model_cfg.dtype.name,
        quantisation=model_cfg.quantisation.name,
        attention=model_cfg.attention.name,
        device=model_cfg.device.name,
        over=start_of(model_cfg, folder),
    )
    model, tokenizer = loader.load(folder, adapter=adapter)
    if influence.params is ParameterSet.lora and adapter is None:
        model = add_lora(model, influence.lora, seed=influence.seed, section="influence")
    parameters = select_parameters(model, influence.params, regex=influence.regex)
    texts = [(record.instruction, record.context, answer) for record, answer in rows]
    found = encode_rows(tokenizer, texts, max_length=cfg.max_length)
    if message := cut_warning("influence check", Cuts.of(found), max_length=cfg.max_length):
        tell(f"rapidun: {message}")
    texts = [text for text, row in zip(texts, found, strict=True) if row is not None]
    names = [f"row {record.id}" for (record, _), row in zip(rows, found, strict=True) if row is not None]
    encoded = [row for row in found if row is not None]
    if len(encoded) < MIN_ROWS:
        raise ConfigError(
            f"influence check: need {MIN_ROWS} rows whose instruction leaves room for a response in "
            f"max_length={cfg.max_length} tokens, got {len(encoded)} of {len(rows)}. Pass max_length=..."
        )
    check_rows("influence check", model, tokenizer, [row.input_ids for row in encoded], max_length=cfg.max_length)
    padded = batching(model, pad_token_id=tokenizer.pad_token_id).right
    batches = make_batches(
        encoded,
        names,
        tokens_per_batch=influence.tokens_per_batch,
        pad_token_id=tokenizer.pad_token_id,
        device=next(model.parameters()).device,
        max_rows=1 if influence.method is InfluenceMethod.rapidgrad or not padded else None,
    )
    tell(f"{len(encoded)} rows, {describe(parameters)}: exact, then {influence.method.name} and F0 by turns")
    try:
        return check_influence(
            influence,
            model,
            parameters,
            batches,
            texts=texts,
            row_names=names,
            num_truncated=sum(row.context_cut or row.response_cut for row in encoded),
            pack_rows=pack_rows,
            rounds=rounds,
            on_step=Slow("influence check", unit="passes", tell=tell),
        )
    except ArithmeticError as error:
        raise ModelError(f"{error}. Pass model.dtype=float32, or mend the rows or the model") from error
