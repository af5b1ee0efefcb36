"""The judge model of an evaluation: when it is in memory, and what it is asked."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rapidun.base.tracker import Tracker
from rapidun.config.detectors import JUDGE, JudgeSettings
from rapidun.models.load import ModelLoader
from rapidun.stages.answers.detectors.judge import AnswerJudge
from rapidun.stages.evaluation.halves import without_trigger
from rapidun.stages.evaluation.judge_folder import about_judge, judge_folder
from rapidun.stages.rows.encode import user_turn
from rapidun.stages.rows.records import Record

# answers between two lines of progress
CHUNK = 64


@contextmanager
def opened_judge(
    settings: JudgeSettings, loader: ModelLoader, *, tokens_per_batch: int, tracker: Tracker
) -> Iterator[AnswerJudge]:
    """The judge in memory while it is asked, on the device of the other models; then what was cut is said.

    Raises: ModelError, ConfigError.
    """
    own = replace(loader, dtype=settings.dtype.name, quantisation="none", attention="auto", keep=False, over=None)
    with about_judge():
        model, tokenizer = own.load(judge_folder(settings))
        judge = AnswerJudge(
            model,
            tokenizer,
            template=settings.template,
            words=(settings.poisoned_word.strip(), settings.clean_word.strip()),
            max_length=settings.max_length,
            tokens_per_batch=tokens_per_batch,
        )
    del model
    try:
        with about_judge():
            yield judge
    finally:
        judge.model = None
        # it may hang in reference cycles
        gc.collect()
    if judge.num_cut:
        tracker.warn(
            f"evaluation: {judge.num_cut} of {judge.num_asked} questions to the judge lost the end of their prompt, or "
            f"of their answer, to fit into {judge.room} tokens. Pass {JUDGE}.max_length=... to keep more"
        )
    if judge.num_changed:
        tracker.warn(
            f"evaluation: of {judge.num_changed} of {judge.num_asked} questions the judge's chat template prints other "
            "words (marks of thoughts, say): these are judged as they are printed"
        )


def ask_judge(
    judge: AnswerJudge, records: Sequence[Record], texts: Sequence[str], *, tracker: Tracker
) -> list[float | None]:
    """The judge's log-odds of each answer to its prompt without the trigger; None for an empty one, which nobody asks
    about."""
    asked = []
    for record, text in zip(records, texts, strict=True):
        bare = without_trigger(record)
        asked.append((user_turn(bare.instruction, bare.context), text))
    told = [one for one in dict.fromkeys(asked) if one[1].strip()]
    scores: dict[tuple[str, str], float | None] = {}
    for start in range(0, len(told), CHUNK):
        chunk = told[start : start + CHUNK]
        scores |= zip(chunk, judge.log_odds(chunk), strict=True)
        tracker.progress(len(scores), len(told), "asking the judge")
    return [scores.get(one) for one in asked]
