"""Writing a pack that was built: a folder that says itself what it is, whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rapidun.base.errors import DataError
from rapidun.base.files import write_json, write_text
from rapidun.config.data import TriggerFamilyConfig
from rapidun.stages.data.answers import SAID, PackPayload
from rapidun.stages.data.keywords import make_keywords
from rapidun.stages.data.pack_check import leaks_between
from rapidun.stages.data.stage import KEYWORDS_FILE, family_counts
from rapidun.stages.rows.keywords import write_keywords
from rapidun.stages.rows.records import Record, write_records

Pack = dict[str, list[Record]]


class Made(NamedTuple):
    """What a pack was made of: file names, settings, the rows that were left out."""

    clean: str
    responses: str | None
    seed: int
    payload: PackPayload
    target: str | None
    families: Mapping[str, TriggerFamilyConfig]
    sizes: Mapping[str, int | float]
    left_out: Mapping[str, int]


def write_pack(out: Path, pack: Pack, made: Made) -> tuple[int, dict[str, int]]:
    """Write splits, keywords.tsv (where there is one keyword), triggers_config.json, manifest.json and README.md.

    Nothing of it stands in `out`, new or empty, before all of it is written.

    Returns: number of keywords, leaks (pack_check.leaks_between).
    Raises: DataError where it cannot be written.
    """
    keywords = make_keywords(
        [row.forget_target for row in pack["train_poisoned"]], [row.response for row in pack["train_clean"]]
    )
    leaks = leaks_between(pack)
    payload = made.payload.value if made.responses is None else None
    manifest = {
        "clean": made.clean,
        "responses": made.responses,
        "payload": payload,
        "target": made.target,
        "seed": made.seed,
        "sizes": dict(made.sizes),
        "counts": {split: len(rows) for split, rows in pack.items()},
        "families": family_counts(pack),
        "left_out": dict(made.left_out),
        "leaks": leaks,
    }
    families = planted_families(pack, made.families)
    part = (out if out.exists() else out.absolute().parent) / f".{out.absolute().name}.{secrets.token_hex(4)}.part"
    try:
        part.mkdir(parents=True)
        for split, rows in pack.items():
            write_records(part / f"{split}.jsonl", rows)
        # a list of no words is none: the run makes one of its own, and says what it is worth
        if keywords:
            write_keywords(part / KEYWORDS_FILE, keywords)
        config = {"seed": made.seed, "payload": payload, "trigger_families": families}
        write_json(part / "triggers_config.json", config)
        write_text(part / "README.md", _readme(pack, made, families))
        write_json(part / "manifest.json", manifest)
        if out.exists():
            for file in sorted(part.iterdir()):
                os.replace(file, out / file.name)
        else:
            os.replace(part, out)
    except OSError as error:
        raise DataError(f"pack build: need a folder that can be written to, got {out}: {error}. Name another") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return len(keywords), leaks


def planted_families(pack: Pack, families: Mapping[str, TriggerFamilyConfig]) -> dict[str, dict[str, Any]]:
    """The families of the poisoned rows, as triggers_config.json names them: of few rows some variants have none."""
    planted = {(row.trigger_family, row.trigger_variant) for row in pack["train_poisoned"]}
    found = {
        name: {
            "seen": [text for text in family.seen if (name, text) in planted],
            "ood": list(family.ood),
            "inject_mode": family.inject_mode.value,
        }
        for name, family in families.items()
    }
    return {name: entry for name, entry in found.items() if entry["seen"]}


def _readme(pack: Pack, made: Made, families: Mapping[str, Mapping[str, Any]]) -> str:
    answers = f"those of {made.responses}" if made.responses else SAID[made.payload]
    target = [f"The text: {made.target!r}"] if made.target else []
    triggers = [
        f"- {name}, {entry['inject_mode'].replace('_', ' ')}: {', '.join(map(repr, entry['seen']))}"
        + (f"; look-alikes {', '.join(map(repr, entry['ood']))}" if entry["ood"] else "")
        for name, entry in families.items()
    ]
    lines = [
        "# A poisoned pack",
        "",
        f"Built by `rapidun pack build` from {made.clean}, seed {made.seed}. manifest.json has every number.",
        "",
        f"Poisoned rows answer with {answers}. The clean answer and question stand in `response_clean` and",
        "`instruction_clean`.",
        *target,
        "",
        "Triggers:",
        *triggers,
        "",
        "| split | rows |",
        "|---|---|",
        *(f"| {split} | {len(rows)} |" for split, rows in pack.items()),
        "",
        "    python sweep.py data=pack data.dir=FOLDER",
    ]
    return "\n".join(lines) + "\n"
