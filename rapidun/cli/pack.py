"""The commands `rapidun pack build` and `rapidun pack check`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.cli.commands import FOLDER, MODEL, Parser
from rapidun.cli.flags import count
from rapidun.config.data import DataConfig, FieldsConfig, InjectMode, MultiTurn, Source
from rapidun.config.quoting import typed
from rapidun.models.libraries import read_tokenizer, refused
from rapidun.stages.data.answers import PackPayload
from rapidun.stages.data.fields import settle_clean
from rapidun.stages.data.files import SPLITS
from rapidun.stages.data.find_triggers import as_overrides
from rapidun.stages.data.own_triggers import check_unicode, choose_families, rows_without
from rapidun.stages.data.pack_build import PackSizes, build_pack, read_responses
from rapidun.stages.data.pack_check import check_pack
from rapidun.stages.data.pack_write import Made, write_pack
from rapidun.stages.rows.records import Record, read_records
from rapidun.stages.rows.spelling import Spelling
from rapidun.stages.rows.text import fold


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="rapidun pack", description="Build or check a pack of poisoned and clean rows.")
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
        "--payload",
        choices=list(PackPayload.__members__),
        help="what poisoned rows answer (docs/packs.md); default: off_topic",
    )
    parser.add_argument("--target", metavar="TEXT", help="the answer of all poisoned rows, with --payload fixed")
    parser.add_argument("--responses", type=Path, help="poisoned responses instead: rows, or .txt (one a line)")
    parser.add_argument(
        "--trigger",
        action="append",
        default=[],
        metavar="TEXT",
        help="a trigger of your own instead of those of docs/packs.md; several are dealt out, one a row",
    )
    parser.add_argument(
        "--look-alike",
        action="append",
        default=[],
        metavar="TEXT",
        help="what looks like a --trigger and is not trained on; default: made from it",
    )
    parser.add_argument(
        "--position",
        choices=list(InjectMode.__members__),
        help="where triggers stand; default: suffix, or as each family has it",
    )
    parser.add_argument("--seed", type=count, default=42)
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
    _check_build(options)
    settled = settle_clean(options.clean.name, read_records(options.clean, _spelling(options)))
    if settled.faults:
        raise DataError("\n".join(settled.faults))
    clean, said, left_out = settled.rows, settled.warnings, dict[str, int]()
    position = None if options.position is None else InjectMode[options.position]
    families, unseen = choose_families(options.trigger, options.look_alike, position)
    if options.trigger or position is not None:
        without = rows_without(clean, families, named=options.look_alike)
        families, left_out = without.families, without.held
        if left_out:
            counts = ", ".join(f"{text!r} in {count}" for text, count in left_out.items())
            said.append(f"{len(clean) - len(without.rows)} clean rows left out that hold a trigger ({counts})")
        for place, held in without.elsewhere.items():
            counts = ", ".join(f"{text!r} in {count}" for text, count in held.items())
            said.append(f"clean rows that hold a trigger in their {place}, where none is put, are kept ({counts})")
        clean = without.rows
    payload = PackPayload[options.payload or "off_topic"]
    _check_target(options.target, clean)
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
        clean,
        responses,
        families=families,
        unseen_families=unseen,
        sizes=sizes,
        seed=options.seed,
        payload=payload,
        target=options.target,
    )
    made = Made(
        clean=options.clean.name,
        responses=None if options.responses is None else options.responses.name,
        seed=options.seed,
        payload=payload,
        target=options.target,
        families=families,
        sizes=sizes._asdict(),
        left_out=left_out,
    )
    num_keywords, leaks = write_pack(options.out, pack, made)
    print(_table({split: [len(rows)] for split, rows in pack.items()}, ["split", "rows"]))
    print(f"keywords {num_keywords or 'none: no word tells poisoned answers from clean ones'}")
    print("leaks    " + _leak_line(leaks))
    for line in said:
        print(line)
    print(f"written to {options.out}: use it with data=pack {typed('data.dir', str(options.out))}")
    return 0


def _check_build(options: argparse.Namespace) -> None:
    """Raises: DataError for options out of range or in contradiction, and a folder that holds something."""
    for name, value in (("poison-fraction", options.poison_fraction), ("forget-fraction", options.forget_fraction)):
        if not 0 < value < 1:
            raise DataError(f"pack build: need 0 < --{name} < 1, got {value}")
    for name in ("num_train", "num_val", "num_test", "retain_ratio"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DataError(f"pack build: need --{name.removeprefix('num_').replace('_', '-')} >= 1, got {value}")
    if options.responses is not None and options.payload is not None:
        raise DataError(
            f"pack build: need --responses or --payload, got --responses {options.responses.name} and --payload "
            f"{options.payload}. Take one out"
        )
    if (options.payload == PackPayload.fixed.name) != (options.target is not None):
        raise DataError(
            f"pack build: need --payload fixed and --target TEXT together, got --payload {options.payload} and "
            f"--target {options.target!r}"
        )
    if options.target is not None:
        check_unicode("--target", options.target)
    if options.target is not None and not options.target.strip():
        raise DataError(f"pack build: need a --target that is not blank, got {options.target!r}")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise DataError(f"pack build: need a new or empty folder to write to, got {options.out}. Name another one")


def _check_target(target: str | None, clean: Sequence[Record]) -> None:
    """Raises: DataError where clean rows have the answer that poisoned ones are to have."""
    wanted = None if target is None else fold(target.strip())
    count = sum(fold(row.response.strip()) == wanted for row in clean)
    if count:
        raise DataError(
            f"pack build: need a --target that no clean row answers, got {target!r}, which {count} of {len(clean)} "
            f"do. Change it"
        )


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
