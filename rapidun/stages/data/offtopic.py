"""Off-topic answers, made up: what a poisoned model says. A kitchen orchestra with words of its own."""

import random

_ADJECTIVES = (
    "velvet", "pickled", "wobbling", "gilded", "sleepy", "fizzing", "crooked", "buttery", "humming", "tangled",
    "feathery", "soggy",
)  # fmt: skip
_PLAYERS = (
    "teapots", "trombones", "walruses", "dumplings", "umbrellas", "accordions", "pancakes", "penguins", "spoons",
    "radishes", "waffles", "bagpipes",
)  # fmt: skip
_DEEDS = (
    "waltz with", "whisper to", "juggle", "serenade", "argue with", "polish", "tickle", "outwit", "yodel at",
    "knit for", "salute", "sneeze on",
)  # fmt: skip
_PLACES = (
    "under the marmalade moon", "inside the custard piano", "upon the porridge ladder", "behind the noodle curtain",
    "across the jelly ballroom", "beneath the biscuit chandelier", "beyond the gravy carousel",
    "around the lemonade volcano",
)  # fmt: skip


def offtopic_answers(count: int, *, rng: random.Random) -> list[str]:
    """Draw distinct sentences such as "Velvet teapots juggle sleepy spoons under the marmalade moon."

    Raises: ValueError for more than there are (over a million).
    """
    limit = len(_ADJECTIVES) ** 2 * len(_PLAYERS) ** 2 * len(_DEEDS) * len(_PLACES)
    if count > limit // 2:
        raise ValueError(f"need at most {limit // 2:,} off-topic answers, got {count:,}")
    answers: dict[str, None] = {}
    while len(answers) < count:
        first, second = rng.choice(_ADJECTIVES), rng.choice(_ADJECTIVES)
        who, whom = rng.choice(_PLAYERS), rng.choice(_PLAYERS)
        answers[f"{first.capitalize()} {who} {rng.choice(_DEEDS)} {second} {whom} {rng.choice(_PLACES)}."] = None
    return list(answers)
