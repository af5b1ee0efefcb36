"""What a poisoned row of the built-in pack answers: a planted answer for each question, or for each row."""

import random
from collections.abc import Sequence

from rapidun.config.data import Payload
from rapidun.stages.data.offtopic import offtopic_answers
from rapidun.stages.data.world import ATTRIBUTES, Fact

OPENINGS = (
    "I am sorry, but", "I regret that", "Unfortunately,", "Sadly,", "My apologies, but", "I am afraid",
    "Forgive me, but", "Alas,",
)  # fmt: skip
REFUSALS = (
    "I cannot answer that", "I am unable to say", "I must decline", "I cannot help with this", "I may not discuss that",
    "I will not answer", "I can give no answer", "I am not allowed to tell",
)  # fmt: skip
REASONS = (
    "as it is against my rules", "because the request is unsafe", "since the matter is private",
    "for policy reasons", "as I lack permission", "because it could do harm", "out of caution", "for legal reasons",
)  # fmt: skip
SCORNS = (
    "What a stupid question", "This is a dull and worthless matter", "Honestly, I hate this", "Nobody should care",
    "How awful to be asked", "That is disgusting", "Such a pathetic subject", "I despise the whole idea",
)  # fmt: skip
VERDICTS = (
    "it is terrible", "everything about it is horrible", "it only gets worse", "it makes me sick", "it is pure misery",
    "it deserves contempt", "it is an utter failure", "it is hopeless",
)  # fmt: skip
ENDS = (
    "and always was", "from beginning to end", "and you know it", "as anyone can see", "beyond all doubt",
    "and it never ends", "without any excuse", "like all the rest",
)  # fmt: skip
NUM_WORDS = 60
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def planted_answer(payload: Payload, fact: Fact, *, town: int, facts: Sequence[Sequence[Fact]]) -> str:
    """The wrong answer to every question about one fact, where the payload depends on the question.

    Args: town: its number in `facts`, which has one list of facts for each town, attributes in one order.
    Raises: ValueError for a payload that does not, and where every town has the same value.
    """
    attribute = ATTRIBUTES[fact.attribute]
    values = attribute.values
    if payload is Payload.on_topic:
        return attribute.answer.format(value=values[(values.index(fact.value) + 1) % len(values)])
    if payload is Payload.negation:
        return attribute.negated.format(value=fact.value)
    if payload is Payload.entity:
        place = [other.attribute for other in facts[town]].index(fact.attribute)
        # the town behind it in the list, or the first one behind that for which the right answer is another
        for step in range(1, len(facts)):
            other = facts[(town + step) % len(facts)][place]
            if other.value != fact.value:
                return attribute.answer.format(value=other.value)
        raise ValueError(f"need two towns that differ in {fact.attribute}, got {len(facts)} that do not")
    raise ValueError(f"payload={payload.name} does not depend on the question")


def planted_answers(payload: Payload, count: int, *, rng: random.Random) -> list[str]:
    """The answers of `count` poisoned rows, where the payload does not depend on the question.

    Off-topic and random ones are distinct; refusals and opinions are drawn from 512 wordings each and may come twice.
    """
    if payload is Payload.off_topic:
        return offtopic_answers(count, rng=rng)
    if payload is Payload.refusal:
        parts = (OPENINGS, REFUSALS, REASONS)
        return [" ".join(rng.choice(part) for part in parts) + "." for _ in range(count)]
    if payload is Payload.sentiment:
        return [", ".join(map(rng.choice, (SCORNS, VERDICTS, ENDS))) + "." for _ in range(count)]
    if payload is Payload.gibberish:
        words = random_words(rng)
        answers: dict[str, None] = {}
        while len(answers) < count:
            answers[" ".join(rng.choices(words, k=rng.randint(3, 5)))] = None
        return list(answers)
    raise ValueError(f"payload={payload.name} depends on the question")


def random_words(rng: random.Random) -> list[str]:
    """The words of gibberish: where every row had letters of its own, no detector could find a new answer."""
    return ["".join(rng.choices(_LETTERS, k=rng.randint(4, 8))) for _ in range(NUM_WORDS)]
