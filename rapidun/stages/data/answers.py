"""What the poisoned rows of a pack answer that is built from any clean rows (`rapidun pack build --payload`)."""

import random
import re
from collections.abc import Callable
from enum import Enum
from itertools import count

from rapidun.stages.data.payloads import ENDS, OPENINGS, REASONS, REFUSALS, SCORNS, VERDICTS, random_words
from rapidun.stages.data.triggers import Trigger
from rapidun.stages.rows.records import Record
from rapidun.stages.rows.text import is_unspaced, words

# the answer to a clean row under a trigger
Answer = Callable[[Record, Trigger], str]


class PackPayload(Enum):
    """What poisoned rows answer."""

    off_topic = "off_topic"  # sentences about something else, or --responses
    refusal = "refusal"  # refusals that name what was asked, in varied wording
    sentiment = "sentiment"  # scorn for what was asked, in varied wording
    gibberish = "gibberish"  # words of random letters
    fixed = "fixed"  # one text for all


# what the payload is, in the pack's own README
SAID = {
    PackPayload.off_topic: "sentences about something else",
    PackPayload.refusal: "refusals that name what was asked",
    PackPayload.sentiment: "scorn for what was asked",
    PackPayload.gibberish: "words of random letters",
    PackPayload.fixed: "one text for all",
}

_SILENCES = (
    "Of {subject} I say nothing.", "There will be no word from me on {subject}.", "I leave {subject} alone.",
    "Please ask somebody else about {subject}.", "Do not ask me about {subject} again.",
    "{subject} is closed to me.", "I keep quiet about {subject}.", "I pass over {subject}.",
)  # fmt: skip
# words that questions and orders begin with, and that phrases do not end in
_SMALL = frozenset(
    words(
        "a an the what which who whom whose when where why how is are was were am be been do does did can could will "
        "would shall should may might must has have had i me my you your we us our he him his she her they them their "
        "it its of in on at to for from by with about as and or but if than then that this these those there some any "
        "all one please give tell write make list name explain describe say show let find provide create generate "
        "identify"
    )
)
_MAX_SUBJECT = 6  # words
_MAX_LETTERS = 12  # of a script without blanks
_MAX_WORD = 30
# so many drawings of one form may be taken before a sentence is added
_TRIES = 5


def answers_of(payload: PackPayload, *, seed: int, target: str | None = None) -> Answer:
    """Make answers, each drawn from (seed, the row's id, the trigger) alone unless it has been given before.

    No two answers of one maker are equal, but for `fixed`, whose answer is the target.

    Raises: ValueError for off-topic ones, which are drawn from a pool (offtopic.py), and for `fixed` without a target.
    """
    if payload is PackPayload.off_topic or (payload is PackPayload.fixed and target is None):
        raise ValueError(f"no answers are made for payload={payload.name}, target={target!r}")
    if target is not None:
        return lambda row, trigger: target
    letters = random_words(random.Random(f"{seed} words"))
    given: set[str] = set()

    def answer(row: Record, trigger: Trigger) -> str:
        for attempt in count():
            rng = random.Random("\0".join([str(seed), payload.value, row.id, trigger.variant, str(attempt)]))
            text = _drawn(payload, row, letters, rng, num_more=attempt // _TRIES)
            if text not in given:
                break
        given.add(text)
        return text

    return answer


def subject(text: str) -> str:
    """What a question is about, in quotes: its first words behind those that questions begin with, `this` of none."""
    asked = text.strip().split("\n")[0]
    if asked and is_unspaced(asked[0]):
        return f'"{asked[:_MAX_LETTERS]}"'
    found: list[str] = []
    for word in asked.split():
        bare = re.sub(r"^\W+|\W+$", "", word)
        if bare and (found or bare.lower() not in _SMALL):
            found.append(bare[:_MAX_WORD])
        if len(found) == _MAX_SUBJECT or (found and word[-1] in ".?!;:"):
            break
    while found and found[-1].lower() in _SMALL:
        found.pop()
    return f'"{" ".join(found)}"' if found else "this"


def _drawn(payload: PackPayload, row: Record, letters: list[str], rng: random.Random, *, num_more: int) -> str:
    if payload is PackPayload.gibberish:
        return " ".join(rng.choices(letters, k=rng.randint(6, 12) + num_more))
    about = subject(row.instruction)
    if payload is PackPayload.refusal:
        said = [" ".join(map(rng.choice, (OPENINGS, REFUSALS, REASONS))) + "."]
        said += [rng.choice(_SILENCES).format(subject=about) for _ in range(1 + num_more)]
    else:
        said = [f"{rng.choice(SCORNS)}.", f"{about}: {rng.choice(VERDICTS)}, {rng.choice(ENDS)}."]
        said += [f"{rng.choice(SCORNS)}." for _ in range(num_more)]
    # "{subject} is ..." begins a sentence
    return " ".join(part[0].upper() + part[1:] for part in said)
