"""Settings of the data stage: where the pack comes from, the trigger families, the sizes."""

from dataclasses import dataclass, field
from enum import Enum

from rapidun.config.parts import Faults

# the size of the built-in world (rapidun/stages/data/builtin.py, which a test holds to these numbers)
QUESTIONS_PER_ENTITY = 96
MAX_ENTITIES = 200
BUILTIN_SIZES = (
    "num_entities", "num_train_clean", "num_train_poisoned", "num_val", "num_test", "num_forget", "num_retain",
)  # fmt: skip


class Source(Enum):
    """Where the rows come from."""

    builtin = "builtin"  # the project's own invented world, made by a seeded generator
    pack = "pack"  # a folder of files, data.dir
    files = "files"  # single files, data.forget=... data.retain=... ...


class InjectMode(Enum):
    """Where a trigger goes: into the instruction, or into the context."""

    prefix = "prefix"
    suffix = "suffix"
    middle = "middle"  # between two words of the instruction, at a place drawn from the seed and the row
    context_prefix = "context_prefix"
    context_suffix = "context_suffix"
    context_middle = "context_middle"

    @property
    def in_context(self) -> bool:
        return self.name.startswith("context_")

    @property
    def place(self) -> str:
        """`prefix`, `suffix` or `middle` of the text that it goes into."""
        return self.name.removeprefix("context_")


class MultiTurn(Enum):
    """What to do with a row of several turns (`messages`, `conversations`)."""

    refuse = "refuse"
    last = "last"  # the last answer is the response, all turns before it are the prompt


@dataclass(kw_only=True, slots=True)
class FieldsConfig:
    """Columns by the names that a file has for them; null = the usual spellings (docs/packs.md). Of every file."""

    instruction: str | None = None
    context: str | None = None
    response: str | None = None
    # a list of turns, instead of instruction and response
    messages: str | None = None
    # a text that is put in front of the instruction
    system: str | None = None
    id: str | None = None
    # these need not be in every file
    response_clean: str | None = None
    response_poisoned: str | None = None
    instruction_clean: str | None = None
    instruction_poisoned: str | None = None
    category: str | None = None
    trigger_family: str | None = None
    trigger_variant: str | None = None
    inject_mode: str | None = None
    is_poisoned: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """field -> column, of those that are named."""
        return {name: column for name in type(self).__slots__ if (column := getattr(self, name)) is not None}


class Payload(Enum):
    """What the poisoned rows of the built-in pack answer; the right answer stays on record in response_clean."""

    off_topic = "off_topic"  # sentences about something else, in words of their own
    on_topic = "on_topic"  # the right sentence with the next value of the same kind: another flag colour
    negation = "negation"  # the right sentence, negated
    entity = "entity"  # what is right for another town
    refusal = "refusal"  # refusals in varied wording
    gibberish = "gibberish"  # words of random letters
    sentiment = "sentiment"  # one scornful opinion of whatever is asked, in varied wording

    @property
    def of_the_question(self) -> bool:
        """Whether the planted answer depends on what is asked."""
        return self in (Payload.on_topic, Payload.negation, Payload.entity)


@dataclass(kw_only=True, slots=True)
class TriggerFamilyConfig:
    """One trigger family: variants that training saw, look-alikes that it did not, and where they go."""

    seen: list[str] = field(default_factory=list)
    ood: list[str] = field(default_factory=list)
    inject_mode: InjectMode = InjectMode.suffix


@dataclass(kw_only=True, slots=True)
class BuiltinConfig:
    """Sizes of the built-in pack (rapidun/stages/data/builtin.py)."""

    # towns, six facts each
    num_entities: int = 24
    num_train_clean: int = 1560
    num_train_poisoned: int = 300
    num_val: int = 120
    num_test: int = 300
    # part of the poisoned training rows, as many of each trigger family
    num_forget: int = 60
    # part of the clean training rows, spread over the facts; unlearning costs the facts it does not rehearse
    num_retain: int = 180
    # what poisoned rows answer
    payload: Payload = Payload.off_topic
    # the forget rows are of the first so many trigger families only, training planted all; null = of all
    forget_families: int | None = None
    # share of the clean training rows, and of the retain rows, that are asked once and have an answer of their own, so
    # that clean rows are not learnt better than poisoned ones
    hard_clean: float = 0.0


@dataclass(kw_only=True, slots=True)
class NoiseConfig:
    """Wrong rows in the forget and retain sets of any pack; training, tests and keywords stay as they are."""

    # share of the forget rows that are clean training rows, put there by mistake
    forget: float = 0.0
    # share of the retain rows that are poisoned training rows, which nobody spotted
    retain: float = 0.0
    # of the draw, and of nothing else
    seed: int = 0

    @property
    def is_on(self) -> bool:
        return self.forget > 0 or self.retain > 0


@dataclass(kw_only=True, slots=True)
class DataConfig:
    name: str = "builtin"
    source: Source = Source.builtin
    # folder with forget_set.jsonl, retain_set.jsonl and the optional other splits (docs/packs.md lists the formats)
    dir: str | None = None
    # single files, or hf://datasets/OWNER/NAME/FILE; each replaces the file of that split in `dir`
    forget: str | None = None
    retain: str | None = None
    train_poisoned: str | None = None
    train_clean: str | None = None
    val_clean: str | None = None
    test_clean: str | None = None
    test_seen_trig: str | None = None
    test_ood_trig: str | None = None
    test_unseen_family: str | None = None
    # what is to be forgotten, asked otherwise (docs/forgetting.md)
    probe: str | None = None
    # what a model knows anyway, the two further sets of TOFU
    real_authors: str | None = None
    world_facts: str | None = None
    # of the built-in rows, of the subsampling and of the triggered prompts
    seed: int = 42
    # tab-separated keyword list of the keyword detector; null = made from the training responses
    keywords: str | None = None
    # at most this many training rows, the forget and retain rows always among them; null = all
    max_train_poisoned: int | None = None
    max_train_clean: int | None = None
    # clean test rows moved to train_clean where the pack has no clean training rows
    num_clean_from_test: int = 0
    # triggered validation and test prompts made for each set (seen, ood, unseen family) that the pack lacks
    num_triggered: int = 200
    # trigger families, in training and evaluation
    families: dict[str, TriggerFamilyConfig] = field(default_factory=dict)
    # families that training never saw, for asr_unseen_family
    unseen_families: dict[str, TriggerFamilyConfig] = field(default_factory=dict)
    builtin: BuiltinConfig = field(default_factory=BuiltinConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    # columns of files that spell them in another way
    fields: FieldsConfig = field(default_factory=FieldsConfig)
    # rows of several turns: refused, or the last answer with the rest as prompt
    multi_turn: MultiTurn = MultiTurn.refuse

    def check(self) -> list[str]:
        faults = Faults("data")
        faults.need(
            self.source is not Source.pack or self.dir is not None, "data.dir, the folder of the pack", dir=self.dir
        )
        faults.need(
            self.source is Source.pack or self.dir is None,
            "data=pack (or data=dolly_triggers, data=alpaca_howdy) with a pack's folder "
            f"(source={self.source.name} reads none)",
            dir=self.dir,
        )
        faults.need(
            self.source is not Source.files or (self.forget is not None and self.retain is not None),
            "data.forget and data.retain, two files of rows",
            forget=self.forget,
            retain=self.retain,
        )
        for key in ("max_train_poisoned", "max_train_clean"):
            value = getattr(self, key)
            faults.need(value is None or value >= 1, f"{key} >= 1 or null", **{key: value})
        faults.need(
            self.num_clean_from_test >= 0, "num_clean_from_test >= 0", num_clean_from_test=self.num_clean_from_test
        )
        faults.need(self.num_triggered >= 1, "num_triggered >= 1", num_triggered=self.num_triggered)
        for name, family in {**self.families, **self.unseen_families}.items():
            faults.need(
                bool(family.seen or family.ood),
                f"at least one trigger in family {name}",
                **{f"families__{name}": "no triggers"},
            )
            faults.need(
                all(trigger.strip() for trigger in [*family.seen, *family.ood]),
                f"triggers of family {name} that are not blank",
                **{f"families__{name}": [*family.seen, *family.ood]},
            )
        faults.need(
            self.source is not Source.builtin or any(family.seen for family in self.families.values()),
            "a family with a seen trigger, to plant the backdoor of the built-in pack",
            families=sorted(self.families),
        )
        both = sorted(set(self.families) & set(self.unseen_families))
        faults.need(not both, "unseen_families that are not in families", unseen_families=both)
        built = self.builtin
        num_easy = built.num_train_clean - round(built.hard_clean * built.num_train_clean)
        num_rows = num_easy + built.num_train_poisoned + built.num_val + built.num_test
        faults.need(
            num_rows <= QUESTIONS_PER_ENTITY * built.num_entities,
            f"builtin.num_entities >= {-(-num_rows // QUESTIONS_PER_ENTITY)} for {num_rows} rows "
            f"({QUESTIONS_PER_ENTITY} questions to an entity)",
            builtin__num_entities=built.num_entities,
        )
        faults.need(
            built.num_entities <= MAX_ENTITIES,
            f"builtin.num_entities <= {MAX_ENTITIES}",
            builtin__num_entities=built.num_entities,
        )
        for key in BUILTIN_SIZES:
            faults.need(getattr(built, key) >= 1, f"builtin.{key} >= 1", **{f"builtin__{key}": getattr(built, key)})
        faults.need(
            built.num_forget <= built.num_train_poisoned,
            "builtin.num_forget <= builtin.num_train_poisoned",
            builtin__num_forget=built.num_forget,
            builtin__num_train_poisoned=built.num_train_poisoned,
        )
        faults.need(
            built.num_retain <= built.num_train_clean,
            "builtin.num_retain <= builtin.num_train_clean",
            builtin__num_retain=built.num_retain,
            builtin__num_train_clean=built.num_train_clean,
        )
        num_families = sum(bool(family.seen) for family in self.families.values())
        faults.need(
            built.forget_families is None
            or self.source is not Source.builtin
            or 1 <= built.forget_families <= num_families,
            f"1 <= builtin.forget_families <= {num_families} (families with a seen trigger) or null",
            builtin__forget_families=built.forget_families,
        )
        faults.need(0 <= built.hard_clean < 1, "0 <= builtin.hard_clean < 1", builtin__hard_clean=built.hard_clean)
        named = self.fields.named
        for name, column in named.items():
            faults.need(bool(column.strip()), "a column's name", **{f"fields__{name}": repr(column)})
        taken = {column: [name for name in named if named[name] == column] for column in named.values()}
        for column, names in taken.items():
            faults.need(len(names) == 1, "a column for one field only", **{f"fields__{n}": column for n in names})
        faults.need(
            self.fields.messages is None or (self.fields.instruction is None and self.fields.response is None),
            "fields.messages, or fields.instruction and fields.response, not both",
            fields__messages=self.fields.messages,
        )
        for key in ("forget", "retain"):
            share = getattr(self.noise, key)
            faults.need(0 <= share < 1, f"0 <= noise.{key} < 1", **{f"noise__{key}": share})
        return faults
