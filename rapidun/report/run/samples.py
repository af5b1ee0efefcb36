"""Sample answers for the report: which are shown, and prompts marked up so that a trigger can be seen."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rapidun.report.forgotten import FACTS, GONE
from rapidun.report.metrics import SETS

if TYPE_CHECKING:
    from markupsafe import Markup

PER_SET = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What both detectors say of one answer; None = not judged."""

    answer: str | None
    keyword: bool | None = None
    likelihood: bool | None = None
    # of a row of facts: its numbers; and whether its answer should be gone
    measures: dict[str, float] | None = None
    gone: bool = False

    @property
    def poisoned(self) -> bool:
        return bool(self.keyword) or bool(self.likelihood)

    @property
    def state(self) -> str:
        """`bad`, `fine` or ``: a poisoned answer is bad, and so is one that gives away word for word what should be
        gone; of rows that should stay, word for word is fine. What lies between is for the reader."""
        if self.measures is not None:
            word_for_word = self.measures.get("exact_match") == 1
            return ("bad" if self.gone else "fine") if word_for_word else ""
        return "bad" if self.poisoned else "fine" if self.text else ""

    @property
    def text(self) -> str:
        """`poisoned (keywords, likelihood)` or `not poisoned`; of rows of facts their ROUGE-L; empty without either."""
        if self.measures is not None:
            word_for_word = "word for word, " if self.measures.get("exact_match") == 1 else ""
            rouge = self.measures.get("rougeL")
            return "" if rouge is None else f"{word_for_word}ROUGE-L {rouge:.2f}"
        if self.keyword is None and self.likelihood is None:
            return ""
        by = [name for name, fired in (("keywords", self.keyword), ("likelihood", self.likelihood)) if fired]
        return f"poisoned ({', '.join(by)})" if by else "not poisoned"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    prompts: str
    family: str
    variant: str
    prompt: str
    context: str
    reference: str
    before: Verdict
    after: Verdict

    @property
    def of_facts(self) -> bool:
        return self.prompts in FACTS


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSet:
    """The shown samples of one set, and how many there were."""

    name: str
    title: str
    total: int
    samples: list[Sample]


def choose_samples(generations: Sequence[dict[str, Any]], *, per_set: int = PER_SET) -> list[SampleSet]:
    """At most `per_set` answers of each set: up to half are failures, the others evenly spaced over the file.

    A failure is an answer that a detector still calls poisoned after unlearning (where nothing was
    unlearned: before), or that gives away word for word what should be gone. The order is that of the file, so that
    the choice repeats.
    """
    by_set: dict[str, list[Sample]] = {}
    for row in generations:
        sample = _sample(row)
        by_set.setdefault(sample.prompts, []).append(sample)
    titles = {**FACTS, **SETS}
    known = [name for name in titles if name in by_set]
    chosen = []
    for name in [*known, *sorted(set(by_set) - set(known))]:
        rows = by_set[name]
        failed = [
            i
            for i, row in enumerate(rows)
            if (row.after if row.after.answer is not None else row.before).state == "bad"
        ]
        picked = set(_spaced(failed, (per_set + 1) // 2))
        rest = [i for i in range(len(rows)) if i not in picked]
        picked |= set(_spaced(rest, per_set - len(picked)))
        shown = [rows[i] for i in sorted(picked)]
        chosen.append(SampleSet(name=name, title=titles.get(name, name), total=len(rows), samples=shown))
    return chosen


def mark_prompt(text: str, trigger: str = "") -> Markup:
    """HTML of a prompt in which the trigger, unseen characters and look-alike letters can be seen.

    The text is escaped. The trigger at either end gets <mark>; control and format characters (zero-width
    joiner, direction overrides) are written as U+200D; inside a word with ASCII letters, letters of another
    script are marked with their name.
    """
    from markupsafe import Markup

    trigger = trigger.strip()
    if trigger and text.startswith(trigger):
        return Markup("<mark>{}</mark>{}").format(_visible(trigger), _visible(text[len(trigger) :]))
    if trigger and text.endswith(trigger):
        return Markup("{}<mark>{}</mark>").format(_visible(text[: -len(trigger)]), _visible(trigger))
    return _visible(text)


def _visible(text: str) -> Markup:
    from markupsafe import Markup, escape

    parts: list[Markup] = []
    word_is_ascii = _word_has_ascii(text)
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        code = f"U+{ord(character):04X}"
        name = unicodedata.name(character, code)
        if category in ("Cc", "Cf", "Co", "Cs") and character not in "\n\t":
            parts.append(Markup('<span class="cp" title="{}">{}</span>').format(name, code))
        elif word_is_ascii[place] and category[0] in "LN" and ord(character) > 127 and not name.startswith("LATIN"):
            parts.append(Markup('<span class="odd" title="{} {}">{}</span>').format(code, name, character))
        else:
            parts.append(escape(character))
    return Markup("").join(parts)


def _word_has_ascii(text: str) -> list[bool]:
    """For each character: does its word (between white space) hold an ASCII letter?"""
    flags: list[bool] = []
    start = 0
    for end in range(len(text) + 1):
        if end == len(text) or text[end].isspace():
            has = any(c.isascii() and c.isalpha() for c in text[start:end])
            flags += [has] * (end - start) + [False] * (end < len(text))
            start = end + 1
    return flags


def _spaced(items: Sequence[int], count: int) -> list[int]:
    """`count` items evenly spaced over the sequence, all of them where there are no more."""
    if count <= 0:
        return []
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _sample(row: dict[str, Any]) -> Sample:
    def text(key: str) -> str:
        value = row.get(key)
        return "" if value is None else str(value)

    def verdict(when: str) -> Verdict:
        answer = row.get(when)
        return Verdict(
            answer=None if answer is None else str(answer),
            keyword=row.get(f"keyword_{when}"),
            likelihood=row.get(f"likelihood_{when}"),
            measures=row.get(f"measures_{when}"),
            gone=row.get("set") in GONE,
        )

    return Sample(
        prompts=text("set"),
        family=text("family"),
        variant=text("variant"),
        prompt=text("prompt"),
        context=text("context"),
        reference=text("reference"),
        before=verdict("before"),
        after=verdict("after"),
    )
