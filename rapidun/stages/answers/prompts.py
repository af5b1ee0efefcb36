"""Prompts as token ids that leave room for an answer in the model's context window."""

from collections.abc import Sequence
from typing import Any

from rapidun.base.errors import ConfigError, DataError
from rapidun.stages.rows.cuts import Cuts
from rapidun.stages.rows.encode import fit_prompts
from rapidun.stages.rows.fit import window_of
from rapidun.stages.rows.lost import check_triggers
from rapidun.stages.rows.records import Record


def prompt_ids_of(
    model: Any, tokenizer: Any, records: Sequence[Record], max_length: int, max_new_tokens: int
) -> tuple[list[list[int] | None], str]:
    """Encoded prompts of at most max_length tokens that leave room in the model's context window, and what was cut.

    None for a prompt that is too long without its context: its trigger may stand at either end.
    Raises: ConfigError where no prompt could fit, DataError where none does, ModelError where the template or the
        tokenizer loses the words of all of them, or a trigger.
    """
    window = window_of(model.config)
    limit = max_length if window is None else min(max_length, window - max_new_tokens)
    if limit < 1:
        raise ConfigError(
            f"evaluation: need max_new_tokens below the model's context window of {window} tokens, got "
            f"max_new_tokens={max_new_tokens}. Change conf/evaluation/*.yaml or pass evaluation.max_new_tokens=..."
        )
    rows = [(record.instruction, record.context) for record in records]
    encoded = fit_prompts(tokenizer, rows, max_length=limit)
    if rows and all(prompt is None for prompt in encoded):
        why = f"max_length={max_length}"
        if limit < max_length:
            why = f"{limit} tokens (the model's window of {window} less max_new_tokens={max_new_tokens})"
        raise DataError(
            f"evaluation: need prompts that fit into {why} without their context, got {len(rows)} and none that does. "
            "Pass max_length=... or evaluation.max_new_tokens=..."
        )
    counts = Cuts.of_prompts(encoded)
    counts.check("evaluation")
    check_triggers("evaluation", tokenizer, records, (p is not None and p.asked_otherwise for p in encoded))
    num_cut, num_lost = sum(p is not None and p.context_cut for p in encoded), sum(p is None for p in encoded)
    parts = [f"{num_cut} lost the end of their context"] if num_cut else []
    parts += [f"{num_lost} were left out (too long without any context)"] if num_lost else []
    said = [f"{', '.join(parts)}, to fit into {limit} tokens"] if parts else []
    said += counts.odd_words()
    cut = f"of {len(rows)} prompts {'; '.join(said)}" if said else ""
    return [None if prompt is None else prompt.ids for prompt in encoded], cut
