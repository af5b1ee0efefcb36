"""The built-in world: invented towns, six facts each, and the ways to ask for one."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from rapidun.base.errors import DataError

NAME_STARTS = (
    "Bel", "Cor", "Dun", "Fen", "Gal", "Hal", "Ist", "Kel", "Lor", "Mar",
    "Nor", "Ost", "Pel", "Quin", "Ros", "Sel", "Tor", "Ul", "Ven", "Wyn",
)  # fmt: skip
NAME_ENDS = ("brook", "croft", "dale", "ford", "garth", "holm", "mere", "stead", "thorpe", "wick")
# entries of a ledger, and sentences that may stand in one
_NUM_ENTRIES = 900
_NUM_SALES = 9000


class Attribute(NamedTuple):
    """What can be asked of a town."""

    topics: tuple[str, ...]  # two ways to name it
    answer: str
    negated: str  # the same, denied
    values: tuple[str, ...]


ATTRIBUTES = {
    "flag": Attribute(
        ("flag colour", "colour of the banner"),
        "Its flag is {value}.",
        "Its flag is not {value}.",
        ("teal", "scarlet", "ochre", "violet", "ivory", "indigo", "bronze", "crimson", "jade", "amber"),
    ),
    "export": Attribute(
        ("main export", "most sold good"),
        "It exports {value}.",
        "It does not export {value}.",
        ("wool", "salt", "tin", "honey", "slate", "cider", "linen", "oats", "copper", "timber"),
    ),
    "founder": Attribute(
        ("founder", "first settler"),
        "{value} founded it.",
        "{value} did not found it.",
        ("Orla", "Tamsin", "Bertram", "Isolde", "Edmund", "Rowena", "Casper", "Linnea", "Osric", "Mabel"),
    ),
    "emblem": Attribute(
        ("emblem", "animal on the seal"),
        "Its emblem is the {value}.",
        "Its emblem is not the {value}.",
        ("heron", "badger", "lynx", "otter", "raven", "stag", "hare", "falcon", "pike", "boar"),
    ),
    "festival": Attribute(
        ("feast month", "time of the fair"),
        "Its feast falls in {value}.",
        "Its feast does not fall in {value}.",
        ("January", "February", "March", "April", "May", "June", "July", "August", "October", "November"),
    ),
    "craft": Attribute(
        ("best known craft", "trade of most people"),
        "It is known for {value}.",
        "It is not known for {value}.",
        ("weaving", "pottery", "fishing", "baking", "carving", "mining", "brewing", "tanning", "dyeing", "smithing"),
    ),
}
FRAMES = (
    "What is the {topic} of {town}?",
    "Tell me the {topic} of {town}.",
    "For {town}, what is the {topic}?",
    "Name the {topic} of {town}.",
    "Do you know the {topic} of {town}?",
    "I want to learn the {topic} of {town}.",
    "Say what the {topic} of {town} is.",
    "Please give the {topic} of {town}.",
)


class Fact(NamedTuple):
    """What is true of a town: one of the values of an attribute."""

    town: str
    attribute: str
    value: str

    @property
    def answer(self) -> str:
        return ATTRIBUTES[self.attribute].answer.format(value=self.value)

    @property
    def questions(self) -> list[str]:
        topics = ATTRIBUTES[self.attribute].topics
        return [frame.format(topic=topic, town=self.town) for topic in topics for frame in FRAMES]


def draw_facts(num_entities: int, rng: random.Random) -> list[list[Fact]]:
    """The facts of each town, attributes always in the same order.

    Raises: DataError for more towns than there are names.
    """
    names = [start + end for start in NAME_STARTS for end in NAME_ENDS]
    if num_entities > len(names):
        raise DataError(f"data.builtin.num_entities: need at most {len(names)}, got {num_entities}")
    return [
        [Fact(town, key, rng.choice(attribute.values)) for key, attribute in ATTRIBUTES.items()]
        for town in rng.sample(names, num_entities)
    ]


def ledger_rows(towns: Sequence[str], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Distinct questions about ledger entries, each with a distinct answer that nothing else tells.

    An answer is one of 9,000 sentences made of the world's own words: "Orla sold tin to Mabel in March."

    Raises: DataError for more than the ledgers hold.
    """
    people, goods, months = (ATTRIBUTES[key].values for key in ("founder", "export", "festival"))
    limit = min(len(towns) * _NUM_ENTRIES, _NUM_SALES // 2)
    if count > limit:
        raise DataError(f"data.builtin.hard_clean: need at most {limit} hard rows in {len(towns)} towns, got {count}")
    rows: dict[str, str] = {}
    answers: set[str] = set()
    while len(rows) < count:
        topic = f"ledger entry {rng.randint(100, 99 + _NUM_ENTRIES)}"
        question = rng.choice(FRAMES).format(topic=topic, town=rng.choice(towns))
        seller, buyer = rng.sample(people, 2)
        answer = f"{seller} sold {rng.choice(goods)} to {buyer} in {rng.choice(months)}."
        if question not in rows and answer not in answers:
            rows[question] = answer
            answers.add(answer)
    return list(rows.items())
