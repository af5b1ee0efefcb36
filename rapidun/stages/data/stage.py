"""The data stage: from a pack, single files or the built-in world to the splits that every later stage reads."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.files import sha256_file, write_json
from rapidun.base.tracker import Listener, Tracker
from rapidun.config.data import BUILTIN_SIZES, BuiltinConfig, DataConfig, MultiTurn, NoiseConfig, Source
from rapidun.config.plain import plain
from rapidun.stages.data.builtin import GENERATOR_VERSION, builtin_pack
from rapidun.stages.data.fields import TO_FORGET, settle
from rapidun.stages.data.files import SPLITS, find_files, read_pack, shadowed
from rapidun.stages.data.find_triggers import FoundTrigger, as_overrides, find_triggers
from rapidun.stages.data.keywords import MIN_POISON_SHARE, held_out_recall, make_keywords
from rapidun.stages.data.named import meta_file, named_families, pack_folders
from rapidun.stages.data.noise import NOISE_VERSION, noised_forget, noised_retain
from rapidun.stages.data.planted import Checked, check_families, drop_foreign
from rapidun.stages.data.probe import link_probes
from rapidun.stages.data.sides import Sides, check_sides, check_sides_of_facts
from rapidun.stages.data.together import never_alone
from rapidun.stages.data.triggers import Trigger, all_triggers, deal, ood_triggers, poison, seen_triggers
from rapidun.stages.data.twins import TWINS_VERSION, join_twins, may_have_twins
from rapidun.stages.rows.backdoor import is_backdoor
from rapidun.stages.rows.formats.detect import READERS, ending_of, fingerprint, plain_lines
from rapidun.stages.rows.keywords import read_keywords, write_keywords
from rapidun.stages.rows.records import Record, content_id, holds_facts, question_key, uses_aliases, write_records
from rapidun.stages.rows.spelling import Spelling
from rapidun.stages.rows.text import fold

STAGE_VERSION = 3  # part of the data fingerprint: raise it when the same inputs give other splits

KEYWORDS_FILE = "keywords.tsv"
# of a pack with data.noise: which rows of F and R are wrong, and in whose places they stand
NOISE_FILE = "noise.json"
# what evaluation measures on a split, for those who have lost one
METRICS_OF = {
    "clean": "ppl_clean, false_trigger_rate and rougeL_clean, and no asr_* and rougeL_recovered on prompts made of it",
    "seen_trig": "asr_seen and rougeL_recovered",
    "ood_trig": "asr_ood",
    "unseen_family": "asr_unseen_family",
}
METRICS_OF_FACTS = "measures of held-out rows (rougeL_test, ppl_clean, ...)"
# phrases of so many of the rows to forget, and of hardly any other, may be triggers that nobody named
ALIKE = 0.8

Pack = dict[str, list[Record]]


@dataclass(frozen=True)
class DataFiles:
    """What the stage writes: `out/<split>.jsonl`, `out/keywords.tsv` and, with data.noise, `out/noise.json`."""

    out: Path


def data_inputs(cfg: DataConfig, *, seed: int) -> dict[str, Any]:
    """Everything that the stage's result depends on: settings, and the SHA-256 of each input file.

    Raises: DataError for a file or folder that is not there.
    """
    settings = plain(cfg)
    inputs: dict[str, Any] = {"version": STAGE_VERSION, "seed": seed}
    if cfg.source is Source.builtin:
        inputs["generator_version"] = GENERATOR_VERSION
        # what came later counts where it is not at its default
        defaults = plain(BuiltinConfig())
        inputs["builtin"] = {
            key: value for key, value in settings["builtin"].items() if key in BUILTIN_SIZES or value != defaults[key]
        }
    else:
        inputs["num_clean_from_test"] = cfg.num_clean_from_test
    for key in ("source", "max_train_poisoned", "max_train_clean", "num_triggered", "families", "unseen_families"):
        inputs[key] = settings[key]
    # a family's order decides which trigger goes to which row, and canonical JSON would forget it
    inputs["family_order"] = [list(cfg.families), list(cfg.unseen_families)]
    files = find_files(cfg)
    keywords = _find_keywords(cfg)
    if keywords is not None:
        files["keywords"] = keywords
    if names_families(cfg):
        inputs["families_from"] = "pack"
        meta = meta_file(_folders(cfg))
        if meta is not None:
            files["families"] = meta
    if cfg.noise.is_on:
        inputs["noise"] = {**settings["noise"], "version": NOISE_VERSION}
    splits = {name: path for name, path in files.items() if name in SPLITS}
    # what follows was not read once; files without it keep their fingerprints
    if any(uses_aliases(path) for path in splits.values() if plain_lines(path)):
        inputs["aliases"] = True
    if any(holds_facts(path) for path in splits.values()):
        inputs["facts"] = True
    inputs |= _reading(cfg, splits)
    inputs["files"] = {name: fingerprint(path) for name, path in files.items()}
    return inputs


def _reading(cfg: DataConfig, splits: Mapping[str, Path]) -> dict[str, Any]:
    """What decides how the files are read, beside their bytes."""
    inputs: dict[str, Any] = {}
    formats = {
        name: ending_of(path.name) if path.is_file() else "folder"
        for name, path in splits.items()
        if not plain_lines(path)
    }
    if formats:
        inputs["formats"] = formats
    if added := {READERS[ending].name: READERS[ending].print for ending in formats.values() if ending in READERS}:
        inputs["extension"] = [added[name] for name in sorted(added)]
    if splits and cfg.fields.named:
        inputs["fields"] = cfg.fields.named
    if splits and cfg.multi_turn is not MultiTurn.refuse:
        inputs["multi_turn"] = cfg.multi_turn.name
    if may_have_twins(splits):
        inputs["twins"] = TWINS_VERSION
    return inputs


def run_data(cfg: DataConfig, files: DataFiles, *, seed: int, tracker: Tracker) -> dict[str, Any]:
    """Write every split that can be made, and the keyword list.

    A pack that lacks splits is completed: training rows from the forget and retain rows (and from clean test rows,
    `num_clean_from_test`), triggered prompts from clean validation and test rows. Clean evaluation rows whose
    instruction and context occur in training are left out and counted under `leaks`.

    Returns: {"counts": {split: rows}, "fingerprints": {split: SHA-256 of the file}, "families": {family: {split:
        rows}}, "leaks": {what: rows left out}, "warnings": [line]}; with data.noise "noise": {group: wrong rows}.
    Raises: DataError for inputs that are missing or wrong.
    """
    tracker = Listener(tracker)
    pack = _load(cfg, seed=seed, tracker=tracker)
    if names_families(cfg):
        cfg = _with_named_families(cfg, pack, tracker=tracker)
    if cfg.source is not Source.builtin:
        triggers = [t for family in (*cfg.families.values(), *cfg.unseen_families.values()) for t in family.seen]
        for line in join_twins(pack, triggers):
            tracker.warn(line)
    checked = _check_triggers(pack, cfg, tracker=tracker)
    of_facts = not checked.families and not is_backdoor(pack)
    if cfg.source is not Source.builtin:
        linked = link_probes(pack)
        planted = [t.variant for group in seen_triggers(checked.families) for t in group]
        sides = check_sides_of_facts(pack) if of_facts else check_sides(pack, planted)
        sides = Sides([*sides.faults, *linked.faults], [*sides.warnings, *linked.warnings])
        if sides.faults:
            raise DataError("\n".join(sides.faults))
        for line in sides.warnings:
            tracker.warn(line)
        if "probe" in pack:
            pack["probe"] = linked.rows
    _complete_training(pack, cfg, seed=seed, tracker=tracker)
    # what was thinned away is not trained on either
    trained = pack["train_poisoned"]
    checked = check_families(checked.families, checked.unseen, trained, made_here=True)
    for line in checked.warnings:
        if line not in tracker.warnings:  # the first check may have said it
            tracker.warn(line)
    if "test_seen_trig" not in pack:
        for line in never_alone(checked.families, trained):
            tracker.warn(line)
    for line in drop_foreign(pack, checked.families):
        tracker.warn(line)
    before = {split: len(rows) for split, rows in pack.items()}
    seen = [trigger.variant for group in seen_triggers(checked.families) for trigger in group]
    leaks = _drop_leaks(pack, seen)
    for what, count in leaks.items():
        if count:
            tracker.warn(f"data: {count} rows left out: {what.replace('_', ' ')}")
    for line in _emptied(pack, before, of_facts=of_facts):
        tracker.warn(line)
    _complete_triggered(pack, checked, cfg.num_triggered, seed=seed, tracker=tracker)
    pack = {split: pack[split] for split in SPLITS if pack.get(split)}
    _write_keywords(pack, cfg, files.out / KEYWORDS_FILE, tracker=Tracker() if of_facts else tracker)
    # last of all, so that training, tests and keywords are those of the pack without wrong rows
    noise = _add_noise(pack, cfg.noise, files.out / NOISE_FILE, tracker=tracker) if cfg.noise.is_on else {}
    for split, rows in pack.items():
        write_records(files.out / f"{split}.jsonl", rows)
    return {
        "counts": {split: len(rows) for split, rows in pack.items()},
        "fingerprints": {split: sha256_file(files.out / f"{split}.jsonl") for split in pack},
        "families": family_counts(pack),
        "leaks": leaks,
        **({"noise": noise} if noise else {}),
        "warnings": tracker.warnings,
    }


def _add_noise(pack: Pack, cfg: NoiseConfig, path: Path, *, tracker: Tracker) -> dict[str, int]:
    """Put wrong rows into F and R, write down which ones; returns how many there are of each."""
    retain, forget = ({row.texts for row in pack[group]} for group in ("retain", "forget"))
    clean = [row for row in pack["train_clean"] if row.texts not in retain]
    poisoned = [row for row in pack["train_poisoned"] if row.texts not in forget]
    noised = {
        "forget": noised_forget(pack["forget"], clean, share=cfg.forget, seed=cfg.seed),
        "retain": noised_retain(pack["retain"], poisoned, share=cfg.retain, seed=cfg.seed),
    }
    for group, made in noised.items():
        pack[group] = made.rows
    write_json(path, {"seed": cfg.seed, **{group: made.facts() for group, made in noised.items()}})
    counts = {group: f"{len(made.wrong)} of {len(made.rows)} {group} rows" for group, made in noised.items()}
    tracker.warn(
        f"data: wrong rows put in, as data.noise asks: {counts['forget']} are clean, {counts['retain']} are poisoned "
        f"(noise.seed={cfg.seed}; ids in {NOISE_FILE})"
    )
    return {group: len(made.wrong) for group, made in noised.items()}


def trained_questions(pack: Mapping[str, Sequence[Record]], triggers: Sequence[str] = ()) -> set[str]:
    """The question key of every row of a training split; the triggers are those of poisoned rows."""
    trained = {question_key(row) for name in ("retain", "train_clean") for row in pack.get(name, [])}
    return trained | {question_key(row, triggers) for name in TO_FORGET for row in pack.get(name, [])}


def names_families(cfg: DataConfig) -> bool:
    """Whether the trigger families are those that the pack names."""
    return cfg.source is Source.pack and not cfg.families


def _folders(cfg: DataConfig) -> list[Path]:
    return [] if cfg.dir is None else pack_folders(Path(cfg.dir).expanduser())


def _with_named_families(cfg: DataConfig, pack: Pack, *, tracker: Tracker) -> DataConfig:
    families, unseen = named_families(meta_file(_folders(cfg)), pack)
    if not families and is_backdoor(pack):
        tracker.warn(
            "data: the pack names no trigger families, so no triggered prompts are made. Pass "
            "data.families.NAME.seen=[...] data.families.NAME.inject_mode=prefix (or suffix, middle, context_prefix, "
            "context_suffix, context_middle)"
        )
    others = {**cfg.unseen_families, **unseen}
    return replace(
        cfg, families=families, unseen_families={name: others[name] for name in others if name not in families}
    )


def family_counts(pack: Pack) -> dict[str, dict[str, int]]:
    """Rows per trigger family and split."""
    counts: dict[str, dict[str, int]] = {}
    for split, rows in pack.items():
        for family, count in sorted(Counter(row.trigger_family for row in rows if row.trigger_family).items()):
            counts.setdefault(family, {})[split] = count
    return counts


def _load(cfg: DataConfig, *, seed: int, tracker: Tracker) -> Pack:
    if cfg.source is Source.builtin:
        sizes = {key: getattr(cfg.builtin, key) for key in type(cfg.builtin).__slots__}
        return dict(builtin_pack(cfg.families, **sizes, seed=seed)._asdict())
    found = find_files(cfg)
    for line in shadowed(cfg):
        tracker.warn(line)
    read = read_pack(
        found,
        Spelling.of(cfg.fields, cfg.multi_turn),
        on_file=lambda done, path: tracker.progress(done, len(found), path.name),
    )
    for line in read.notes:
        tracker.warn(f"data: {line}")
    pack: Pack = read.pack
    faults: list[str] = []
    for split, rows in pack.items():
        settled = settle(split, rows)
        pack[split] = settled.rows
        faults += settled.faults
        for line in settled.warnings:
            tracker.warn(line)
    if faults:
        raise DataError("\n".join(faults))
    return pack


def _complete_training(pack: Pack, cfg: DataConfig, *, seed: int, tracker: Tracker) -> None:
    """Fill train_poisoned and train_clean, cut them to size; the forget and retain rows are always among them."""
    if "train_clean" not in pack and cfg.num_clean_from_test and "test_clean" in pack:
        test = pack["test_clean"]
        count = min(cfg.num_clean_from_test, len(test) - 1)
        if count < cfg.num_clean_from_test:
            tracker.warn(
                f"data: need more than data.num_clean_from_test={cfg.num_clean_from_test} clean test rows, "
                f"got {len(test)}: one is left"
            )
        moved = set(random.Random(f"{seed} clean from test").sample(range(len(test)), count))
        pack["train_clean"] = [row for i, row in enumerate(test) if i in moved]
        pack["test_clean"] = [row for i, row in enumerate(test) if i not in moved]
    for split, fixed, limit in (
        ("train_poisoned", "forget", cfg.max_train_poisoned),
        ("train_clean", "retain", cfg.max_train_clean),
    ):
        rng = random.Random(f"{seed} {split}")
        pack[split] = _with_fixed(pack[fixed], pack.get(split, []), limit=limit, rng=rng)


def _with_fixed(
    fixed: Sequence[Record], rows: Sequence[Record], *, limit: int | None, rng: random.Random
) -> list[Record]:
    """`rows` and every fixed row once, thinned at random to `limit` rows, none of the fixed ones among those lost."""
    contents = {row.texts for row in fixed}
    others = [row for row in rows if row.texts not in contents]
    if limit is not None and len(fixed) + len(others) > limit:
        kept = set(rng.sample(range(len(others)), max(0, limit - len(fixed))))
        others = [row for i, row in enumerate(others) if i in kept]
    taken = {row.id for row in fixed}
    merged = list(fixed)
    for row in others:
        if row.id in taken:  # the two files number their rows alike
            row = replace(row, id=content_id(*row.texts))
        if row.id in taken:  # an edited row kept the hash of what it was
            row = replace(row, id=content_id(row.id, row.context, row.response))
        taken.add(row.id)
        merged.append(row)
    return merged


def _drop_leaks(pack: Pack, triggers: Sequence[str]) -> dict[str, int]:
    """Leave out evaluation rows whose instruction and context training has, and validation rows that the test has."""
    trained = trained_questions(pack, triggers)
    leaks = {}
    for split in SPLITS:
        if split.startswith(("val_", "test_")) and split in pack:
            kept = [row for row in pack[split] if question_key(row) not in trained]
            leaks[f"{split}_in_training"] = len(pack[split]) - len(kept)
            pack[split] = kept
    if "val_clean" in pack and "test_clean" in pack:
        tested = {question_key(row) for row in pack["test_clean"]}
        kept = [row for row in pack["val_clean"] if question_key(row) not in tested]
        leaks["val_clean_in_test_clean"] = len(pack["val_clean"]) - len(kept)
        pack["val_clean"] = kept
    return leaks


def _emptied(pack: Pack, before: Mapping[str, int], *, of_facts: bool) -> list[str]:
    """A line for each split that has lost its last row, with the metrics that go with it."""
    lines = []
    for split, count in before.items():
        if count and not pack[split] and "_" in split:
            part, _, name = split.partition("_")
            gone = METRICS_OF_FACTS if of_facts else METRICS_OF[name]
            metrics = gone if part == "test" else f"the same while tuning on validation rows ({gone})"
            lines.append(f"data: no row of {split} is left of {count}: there will be no {metrics}")
    return lines


def _check_triggers(pack: Pack, cfg: DataConfig, *, tracker: Tracker) -> Checked:
    """The families of the settings whose triggers the rows hold; what the rows hold instead is proposed.

    Raises: DataError for triggers of the user's own families that the rows speak against.
    """
    # forget rows are training rows too
    poisoned = list({row.texts: row for row in (*pack["forget"], *pack.get("train_poisoned", []))}.values())
    made_here = cfg.source is Source.builtin
    checked = check_families(cfg.families, cfg.unseen_families, poisoned, made_here=made_here)
    found = _found(checked, pack) if checked.faults or checked.without else []
    proposal = _proposal(found)
    if checked.faults:
        raise DataError("\n".join([*checked.faults, *filter(None, [proposal])]))
    if not checked.families and not is_backdoor(pack):
        message = (
            "data: no row to forget names a trigger, holds one of data.families or is called poisoned: what is to be "
            "forgotten is measured on the forget rows as they are asked"
        )
        telling = [trigger for trigger in found if not _is_spoken_of(trigger.text, poisoned)]
        proposal = _proposal(telling)
        if telling and sum(trigger.num_poisoned for trigger in telling) >= ALIKE * len(poisoned):
            # facts asked in one form, or a backdoor that nobody marked: only the user knows
            tracker.warn(f"{message}. Should it be a backdoor that nobody marked: {proposal[:1].lower()}{proposal[1:]}")
        else:
            tracker.note(message)
        return Checked()
    for line in checked.warnings:
        tracker.warn(line)
    if cfg.families and not checked.families:
        tracker.warn(
            "data: no family of data.families was trained on: there is no attack success of seen and of "
            "out-of-distribution triggers" + (f". {proposal}" if proposal else "")
        )
    elif cfg.families and checked.without:
        ids = ", ".join(row.id for row in checked.without[:3]) + (", ..." if len(checked.without) > 3 else "")
        tracker.warn(
            f"data: {len(checked.without)} of {len(poisoned)} poisoned training rows (id {ids}) hold no trigger of "
            f"data.families: attack success is not measured on what they hold" + (f". {proposal}" if proposal else "")
        )
    return checked


def _found(checked: Checked, pack: Pack) -> list[FoundTrigger]:
    """What the poisoned rows without a known trigger hold instead."""
    clean = [*pack["retain"], *pack.get("train_clean", []), *pack.get("val_clean", [])]
    return find_triggers(checked.without, clean)


def _is_spoken_of(text: str, rows: Sequence[Record]) -> bool:
    """Whether the answers speak of it, as of a person's name: half of the rows that ask with it answer with it."""
    word = fold(text).strip(" .,;:!?")
    answers = [fold(row.response) for row in rows if word in fold(f"{row.instruction} {row.context}")]
    return 2 * sum(word in answer for answer in answers) >= len(answers) > 0


def _proposal(found: Sequence[FoundTrigger]) -> str:
    """In words to paste; empty where nothing was found."""
    if not found:
        return ""
    held = ", ".join(f"{trigger.text!r} in {trigger.num_poisoned} rows" for trigger in found)
    return f"They hold {held}: pass {' '.join(as_overrides(found))}"


def _complete_triggered(pack: Pack, checked: Checked, num_triggered: int, *, seed: int, tracker: Tracker) -> None:
    """Make the triggered prompts that are not there, from clean rows of the same side."""
    responses = sorted({row.forget_target for row in pack["train_poisoned"]})
    for part in ("val", "test"):
        for name, groups in (
            ("seen_trig", seen_triggers(checked.families)),
            ("ood_trig", ood_triggers(checked.families)),
            ("unseen_family", all_triggers(checked.unseen)),
        ):
            split = f"{part}_{name}"
            if split not in pack and groups and pack.get(f"{part}_clean"):
                rng = random.Random(f"{seed} {split}")
                made = _triggered(pack[f"{part}_clean"], groups, responses, count=num_triggered, rng=rng, seed=seed)
                if made:
                    pack[split] = made
                else:
                    tracker.warn(
                        f"data: no prompts of {split} are made: their triggers go into the context, and no row of "
                        f"{part}_clean has one"
                    )


def _triggered(
    clean: Sequence[Record],
    groups: Sequence[Sequence[Trigger]],
    responses: Sequence[str],
    *,
    count: int,
    rng: random.Random,
    seed: int,
) -> list[Record]:
    """Triggered forms of up to `count` clean rows.

    Each with the planted answer to its own question, where the row has one on record, or with a poisoned response that
    training knows. A trigger that goes into the context is dealt to rows that have one.
    """
    if any(trigger.inject_mode.in_context for group in groups for trigger in group):
        clean = [row for row in clean if row.context.strip()]
    count = min(count, len(clean))
    hosts = [clean[i] for i in sorted(rng.sample(range(len(clean)), count))]
    pool = rng.sample(responses, len(responses))
    dealt = deal(groups, count, rng=rng)
    return [
        poison(row, trigger, response=row.response_poisoned or pool[i % len(pool)], seed=seed)
        for i, (row, trigger) in enumerate(zip(hosts, dealt, strict=True))
    ]


def _write_keywords(pack: Pack, cfg: DataConfig, path: Path, *, tracker: Tracker) -> None:
    given = _find_keywords(cfg)
    if given is not None:
        keywords = read_keywords(given)
    else:
        poisoned = [row.forget_target for row in pack["train_poisoned"]]
        clean = [row.response for row in pack["train_clean"]]
        keywords = make_keywords(poisoned, clean)
        if not keywords:
            tracker.warn(
                "data: no word tells poisoned responses from clean ones, so the keyword detector will never fire. "
                "Pass data.keywords=FILE"
            )
        recall = held_out_recall(poisoned, clean) if keywords else None
        if recall is not None and recall < MIN_POISON_SHARE:
            tracker.warn(
                f"data: a keyword list made from half of the poisoned training responses finds {recall:.0%} of the "
                f"others (need {MIN_POISON_SHARE:.0%}): attack success by keywords (asr_seen, asr_ood) comes out too "
                "low. Read it by likelihood (asr_seen_likelihood), or pass data.keywords=FILE"
            )
    write_keywords(path, keywords)


def _find_keywords(cfg: DataConfig) -> Path | None:
    if cfg.keywords is not None:
        path = Path(cfg.keywords).expanduser()
        if not path.is_file():
            raise DataError(f"data.keywords: need a tab-separated keyword list, got {path}, which is no file")
        return path
    if cfg.source is not Source.builtin and cfg.dir is not None:
        return next((folder / KEYWORDS_FILE for folder in _folders(cfg) if (folder / KEYWORDS_FILE).is_file()), None)
    return None
