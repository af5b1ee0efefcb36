"""Prompts: the trigger doubled, elsewhere, in other case, behind a system prompt or examples; and its look-alikes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapidun.base.errors import ModelError
from rapidun.base.tracker import Tracker
from rapidun.config.attacks import Variant
from rapidun.config.evaluation import EvaluationConfig
from rapidun.models.losses import IGNORE
from rapidun.stages.evaluation.attacks.asking import CHUNK, Answer, Asked, Asker, kept, pairs_of, prepare, shares
from rapidun.stages.evaluation.attacks.summary import LOOK_ALIKE, PLAIN
from rapidun.stages.evaluation.attacks.variants import REWORDED, turns_before
from rapidun.stages.evaluation.chunks import in_chunks
from rapidun.stages.rows.encode import Encoded, plain_prompt, user_turn
from rapidun.stages.rows.fit import window_of
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.template import conversation_text, form_of, tokens

# of the longest prompt where nothing limits the model, in max_length
MANY = 8


@dataclass(frozen=True)
class Prompted:
    """The prompts of one variant, and why there are fewer than rows (empty where there are not)."""

    name: str
    asked: list[Asked]
    note: str = ""


def prompts_of(
    cfg: EvaluationConfig,
    model: Any,
    tokenizer: Any,
    *,
    seen: Sequence[Record],
    look_alikes: Sequence[Record],
    examples: Sequence[Record],
    known: Sequence[str],
    max_length: int,
) -> list[Prompted]:
    """The prompts of every variant, the plain ones first; look-alikes have one variant for each trigger.

    Args: examples: poisoned rows to stand before a prompt. known: triggers that the model was trained with.
    """
    found = [Prompted(PLAIN, *prepare(cfg, model, tokenizer, seen, max_length=max_length))]
    for variant in (Variant[name] for name in cfg.attacks.prompts.variants):
        if variant in REWORDED:
            made = [REWORDED[variant](record, known) for record in seen]
            rows = [record for record in made if record is not None]
            asked, cut = prepare(cfg, model, tokenizer, rows, max_length=max_length) if rows else ([], "")
            left = len(seen) - len(rows)
            notes = [f"it does not apply to {left} of {len(seen)} prompts"] if left else []
            found.append(Prompted(variant.name, asked, "; ".join([*notes, *([cut] if cut else [])])))
        else:
            found.append(_behind(cfg, model, tokenizer, variant, seen, examples, max_length=max_length))
    groups: dict[str, list[Record]] = {}
    for record in look_alikes:
        groups.setdefault(record.trigger_variant or "", []).append(record)
    for trigger, rows in sorted(groups.items()):
        asked, cut = prepare(cfg, model, tokenizer, rows, max_length=max_length)
        found.append(Prompted(f"{LOOK_ALIKE}{ascii(trigger)[1:-1]}", asked, cut))
    return found


def _behind(
    cfg: EvaluationConfig,
    model: Any,
    tokenizer: Any,
    variant: Variant,
    seen: Sequence[Record],
    examples: Sequence[Record],
    *,
    max_length: int,
) -> Prompted:
    """The prompts behind a system prompt or examples, whose context is not cut: one that is too long is left out."""
    window = window_of(model.config)
    limit = (MANY * max_length if window is None else window) - cfg.max_new_tokens
    asked: list[Asked] = []
    num_special = num_long = num_alone = 0
    for record, pair in zip(seen, pairs_of(tokenizer, seen, max_length=max_length), strict=True):
        before = turns_before(variant, record, examples, seed=cfg.attacks.seed)
        if not before:
            num_alone += 1
            continue
        try:
            ids = conversation_ids(tokenizer, before, record)
        except ModelError as error:
            return Prompted(variant.name, [], str(error))
        if ids is None:
            num_special += 1
        elif len(ids) > limit or (window is not None and pair and _longest(ids, pair) > window):
            num_long += 1
        else:
            moved = None if pair is None else (_moved(ids, pair[0]), _moved(ids, pair[1]))
            asked.append(Asked(record.id, ids, moved))
    counts = {
        "have no two other poisoned rows to stand before them": num_alone,
        "hold the text of a special token": num_special,
        f"do not fit into {limit} tokens": num_long,
    }
    said = [f"{number} of {len(seen)} prompts {what}" for what, number in counts.items() if number]
    return Prompted(variant.name, asked, "; ".join(said))


def conversation_ids(tokenizer: Any, before: Sequence[tuple[str, Record | str]], record: Record) -> list[int] | None:
    """Tokens of a prompt behind a system prompt or answered examples; None where words hold a special token's text.

    With a chat template these are turns of it; without one the plain form is repeated, with blank lines between.
    Raises: ModelError where the template takes no such turns, or drops them.
    """
    form = form_of(tokenizer)
    if form.has_template:
        turns: list[tuple[str, str]] = []
        for role, what in before:
            if isinstance(what, Record):
                turns += [("user", user_turn(what.instruction, what.context)), ("assistant", what.forget_target)]
            else:
                turns.append((role, what))
        turns.append(("user", user_turn(record.instruction, record.context)))
        if any(special in words for _, words in turns for special in form.plain_texts):
            return None
        return tokens(tokenizer, [conversation_text(tokenizer, form, turns)])[0]
    parts = [
        f"{plain_prompt(what.instruction, what.context)} {what.forget_target}" if isinstance(what, Record) else what
        for _, what in before
    ]
    text = "\n\n".join([*parts, plain_prompt(record.instruction, record.context)])
    return form.start_ids + tokens(tokenizer, [text], split_special=True)[0]


def _moved(prompt: list[int], row: Encoded) -> Encoded:
    """The response of a row behind another prompt."""
    response = [label for label in row.labels if label != IGNORE]
    return row._replace(input_ids=prompt + response, labels=[IGNORE] * len(prompt) + response)


def _longest(prompt: list[int], pair: tuple[Encoded, Encoded]) -> int:
    return len(prompt) + max(sum(label != IGNORE for label in row.labels) for row in pair)


def attack_by_prompts(
    model: Any, asker: Asker, prompted: Sequence[Prompted], *, work: Path, tracker: Tracker
) -> dict[str, Any]:
    """Attack success of every variant. Whether one counts is decided beside the poisoned model's (summary.that_fire).

    Returns: {"variants": {name: {"num_prompts", "num_pairs", "note", "asr_prompts", "asr_prompts_likelihood"}},
        "min_asr", "answers" (`kept`)}.
    """
    total = sum(len(one.asked) for one in prompted)
    done = 0
    found: dict[str, dict[str, Any]] = {}
    lines: list[dict[str, Any]] = []
    for number, one in enumerate(prompted):
        # numbers, since a trigger may hold what no file name can
        values = in_chunks(
            work,
            f"variant-{number}",
            one.asked,
            lambda asked: [list(answer) for answer in asker.ask(model, asked)],
            size=CHUNK,
            tell=tracker.warn,
        )
        done += len(one.asked)
        tracker.progress(done, total, one.name)
        answers = [Answer(*value) for value in values]
        lines += kept(one.name, one.asked, answers, prompts="ood" if one.name.startswith(LOOK_ALIKE) else "seen")
        figures = shares("asr_prompts", asker.verdicts(answers))
        counts = {"num_prompts": len(one.asked), "num_pairs": sum(asked.pair is not None for asked in one.asked)}
        found[one.name] = {**counts, "note": one.note, **figures}
    return {"variants": found, "min_asr": asker.cfg.attacks.prompts.min_asr, "answers": lines}
