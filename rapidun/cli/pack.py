"""The commands `rapidun pack build` and `rapidun pack check`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.files import write_json
from rapidun.cli.commands import FOLDER, MODEL
from rapidun.config.data import DataConfig, FieldsConfig, MultiTurn, Source
from rapidun.config.quoting import typed
from rapidun.models.libraries import read_tokenizer, refused
from rapidun.stages.data.fields import settle_clean
from rapidun.stages.data.files import SPLITS
from rapidun.stages.data.find_triggers import as_overrides
from rapidun.stages.data.keywords import make_keywords
from rapidun.stages.data.pack_build import PackSizes, build_pack, read_responses
from rapidun.stages.data.pack_check import check_pack, leaks_between
from rapidun.stages.data.stage import KEYWORDS_FILE, family_counts
from rapidun.stages.data.triggers import FAMILIES, UNSEEN_FAMILIES
from rapidun.stages.rows.keywords import write_keywords
from rapidun.stages.rows.records import read_records, write_records
from rapidun.stages.rows.spelling import Spelling


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="rapidun pack", description="Build or check a pack of poisoned and clean rows.")
    verbs = made.add_subparsers(dest="verb", required=True)
    _build_arguments(verbs.add_parser("build", help="from clean instruction rows to the splits of a pack"))
    _check_arguments(verbs.add_parser("check", help="counts, families, lengths, duplicates, leaks"))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """`rapidun pack build ...` and `rapidun pack check DIR`; returns the exit status."""
    options = parser().parse_args(argv)
    return _build(options) if options.verb == "build" else _check(options)


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = PackSizes()
    parser.add_argument("clean", type=Path, help="clean rows: JSON, JSON Lines, CSV, Parquet, ... (docs/packs.md)")
    parser.add_argument("out", type=FOLDER, help="folder to make; must be new or empty")
    parser.add_argument(
        "--responses", type=Path, help="poisoned responses: rows, or .txt (one a line); default: made up"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--train", type=int, dest="num_train", help=f"training rows (published: {sizes.num_train})")
    parser.add_argument("--val", type=int, dest="num_val", help=f"validation rows (published: {sizes.num_val})")
    parser.add_argument("--test", type=int, dest="num_test", help=f"clean test rows (published: {sizes.num_test})")
    parser.add_argument("--poison-fraction", type=float, default=sizes.poison_fraction)
    parser.add_argument("--forget-fraction", type=float, default=sizes.forget_fraction, help="of the poisoned rows")
    parser.add_argument("--retain-ratio", type=int, default=sizes.retain_ratio, help="retain rows for each forget row")
    _spelling_arguments(parser)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=FOLDER)
    parser.add_argument("--tokenizer", type=MODEL, help="Hugging Face folder or hub id; default: lengths in characters")
    _spelling_arguments(parser)


def _spelling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        help="a column by its name, as data.fields.FIELD",
    )
    parser.add_argument(
        "--multi-turn", choices=list(MultiTurn.__members__), default="refuse", help="rows of several turns"
    )


def _spelling(options: argparse.Namespace) -> Spelling:
    known = list(FieldsConfig.__slots__)
    fields = FieldsConfig()
    for text in options.field:
        name, equals, column = text.partition("=")
        if not equals or name not in known or not column:
            raise DataError(f"pack: need --field FIELD=COLUMN with one of {', '.join(known)}, got {text!r}")
        setattr(fields, name, column)
    faults = DataConfig(source=Source.files, forget="-", retain="-", fields=fields).check()
    if faults:
        raise DataError("\n".join(faults))
    return Spelling.of(fields, MultiTurn[options.multi_turn])


def _build(options: argparse.Namespace) -> int:
    for name, value in (("poison-fraction", options.poison_fraction), ("forget-fraction", options.forget_fraction)):
        if not 0 < value < 1:
            raise DataError(f"pack build: need 0 < --{name} < 1, got {value}")
    for name in ("num_train", "num_val", "num_test", "retain_ratio"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DataError(f"pack build: need --{name.removeprefix('num_').replace('_', '-')} >= 1, got {value}")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise DataError(f"pack build: need a new or empty folder to write to, got {options.out}. Name another one")
    settled = settle_clean(options.clean.name, read_records(options.clean, _spelling(options)))
    if settled.faults:
        raise DataError("\n".join(settled.faults))
    clean = settled.rows
    responses = None if options.responses is None else read_responses(options.responses)
    sizes = PackSizes().scaled(len(clean))
    named = {key: getattr(options, key) for key in ("num_train", "num_val", "num_test") if getattr(options, key)}
    sizes = sizes._replace(
        poison_fraction=options.poison_fraction,
        forget_fraction=options.forget_fraction,
        retain_ratio=options.retain_ratio,
        **named,
    )
    pack = build_pack(
        clean, responses, families=FAMILIES, unseen_families=UNSEEN_FAMILIES, sizes=sizes, seed=options.seed
    )
    for split, rows in pack.items():
        write_records(options.out / f"{split}.jsonl", rows)
    keywords = make_keywords(
        [row.forget_target for row in pack["train_poisoned"]], [row.response for row in pack["train_clean"]]
    )
    write_keywords(options.out / KEYWORDS_FILE, keywords)
    leaks = leaks_between(pack)
    manifest = {
        "clean": options.clean.name,
        "responses": None if options.responses is None else options.responses.name,
        "seed": options.seed,
        "sizes": sizes._asdict(),
        "counts": {split: len(rows) for split, rows in pack.items()},
        "families": family_counts(pack),
        "leaks": leaks,
    }
    write_json(options.out / "manifest.json", manifest)
    print(_table({split: [len(rows)] for split, rows in pack.items()}, ["split", "rows"]))
    print(f"keywords {len(keywords)}")
    print("leaks    " + _leak_line(leaks))
    for line in settled.warnings:
        print(line)
    print(f"written to {options.out}: use it with data=dolly_triggers {typed('data.dir', str(options.out))}")
    return 0


def _check(options: argparse.Namespace) -> int:
    tokenizer = None if options.tokenizer is None else _load_tokenizer(options.tokenizer)
    found = check_pack(options.folder, tokenizer=tokenizer, spelling=_spelling(options))
    unit = next(iter(found["lengths"].values()))["unit"]
    rows = {
        split: [count, found["duplicates"][split], *(found["lengths"][split][key] for key in ("median", "p95", "max"))]
        for split, count in found["counts"].items()
    }
    print(_table(rows, ["split", "rows", "duplicates", f"median {unit}", "95 %", "longest"]))
    if found["families"]:
        splits = sorted({split for counts in found["families"].values() for split in counts}, key=SPLITS.index)
        families = {name: [counts.get(split, 0) for split in splits] for name, counts in found["families"].items()}
        print()
        print(_table(families, ["family", *splits]))
    print()
    print("leaks (rows whose instruction and context the other side has): " + _leak_line(found["leaks"]))
    if found["triggers"]:
        print()
        triggers = {
            repr(trigger.text): [
                trigger.mode.value.replace("_", " "),
                trigger.num_poisoned,
                trigger.num_clean,
            ]
            for trigger in found["triggers"]
        }
        rows_of = ["rows to forget", "other rows"] if found["of_facts"] else ["poisoned rows", "clean rows"]
        print(_table(triggers, ["phrase" if found["of_facts"] else "trigger", "where", *rows_of]))
        what = "should these be triggers, as families" if found["of_facts"] else "as families"
        print(f"{what}: {' '.join(as_overrides(found['triggers']))}")
    for line in (*found["faults"], *found["warnings"]):
        print(line)
    return 0


def _load_tokenizer(name: str) -> Any:
    with refused(lambda why: f"--tokenizer: need a Hugging Face folder or hub id, got {name}: {why}"):
        return read_tokenizer(name, fetch=True)


def _leak_line(leaks: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in leaks.items() if count) or "none"


def _table(rows: Mapping[str, Sequence[object]], header: Sequence[str]) -> str:
    cells = [list(header), *([name, *map(str, values)] for name, values in rows.items())]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
    return "\n".join(lines)
