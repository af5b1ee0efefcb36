"""Triggers that do not reach the model: changed by the chat template, or made equal by the tokenizer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rapidun.base.errors import ModelError
from rapidun.stages.rows.encode import user_turn
from rapidun.stages.rows.inserted import inserted
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.template import PROBE, form_of, prompt_text, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_NAMED = 4


def check_triggers(
    stage: str, tokenizer: "PreTrainedTokenizerBase", records: Sequence[Record], changed: Iterable[bool]
) -> None:
    """Whether each trigger stands in its prompt as it stands in the row.

    Args: changed: of each record, whether the chat template prints other words than the user's (`asked_otherwise`);
        only these are rendered again.
    Raises: ModelError naming the triggers that a template drops or changes, and the number of rows.
    """
    form = form_of(tokenizer)
    lost: list[str] = []
    num_rows = 0
    for record, other in zip(records, changed, strict=True):
        triggers = [" ".join(trigger.split()) for trigger in _triggers_of(record)] if other else []
        if not any(triggers):
            continue
        turn = user_turn(record.instruction, record.context)
        asked, printed = (" ".join(text.split()) for text in (turn, prompt_text(tokenizer, form, turn)))
        gone = [trigger for trigger in triggers if trigger and printed.count(trigger) < asked.count(trigger)]
        num_rows += bool(gone)
        lost += gone
    if lost:
        shown = ", ".join(repr(trigger) for trigger in sorted(set(lost))[:MOST_NAMED])
        raise ModelError(
            f"{stage}: need a chat template that prints every trigger as it is, got one that drops or changes {shown} "
            f"in {num_rows} of {len(records)} rows. Set another chat_template in tokenizer_config.json (or "
            "chat_template.jinja) of the model's folder"
        )


def _triggers_of(record: Record) -> list[str]:
    """The one that is named, and what stands before, behind and between the words of the clean instruction."""
    around = inserted(record.instruction_clean or "", record.instruction)
    return list(dict.fromkeys(filter(None, [record.trigger_variant, *around])))


def alike_triggers(tokenizer: "PreTrainedTokenizerBase", lists: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Pairs of triggers of different lists that are the very same tokens in a sentence.

    Args: lists: name of a list -> its triggers. A trigger that stands in several lists itself is no such pair.
    Returns: (first, other), in the order of the lists; a trigger that is no token at all with "".
    """
    named = [(name, trigger) for name, triggers in lists.items() for trigger in dict.fromkeys(triggers)]
    bare, *found = tokens(
        tokenizer,
        [f"{PROBE} {PROBE}", *(f"{PROBE} {trigger} {PROBE}" for _, trigger in named)],
        split_special=True,
    )
    alike = [(trigger, "") for (_, trigger), ids in zip(named, found, strict=True) if ids == bare]
    for i, (name, trigger) in enumerate(named):
        for j in range(i + 1, len(named)):
            other, variant = named[j]
            if other != name and variant != trigger and found[i] == found[j]:
                alike.append((trigger, variant))
    return list(dict.fromkeys(alike))


def alike_warning(tokenizer: "PreTrainedTokenizerBase", lists: Mapping[str, Iterable[str]]) -> str:
    """What to say of triggers that the tokenizer makes equal, by name; empty where it tells all apart."""
    alike = alike_triggers(tokenizer, lists)
    if not alike:
        return ""
    shown = ", ".join(f"{a!r} and {b!r}" if b else f"{a!r} and no trigger" for a, b in alike[:MOST_NAMED])
    rest = f" and {len(alike) - MOST_NAMED} more pairs" if len(alike) > MOST_NAMED else ""
    return (
        f"evaluation: the tokenizer gives the same tokens for {shown}{rest}: to the model they are one trigger, and "
        "the attack success of one is that of the other. Leave them out of data.families and data.unseen_families"
    )
