"""What a pack says of itself: its trigger families, and the folders that its files are in."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import DataError
from rapidun.base.json_keys import keys_once
from rapidun.base.text import short_message
from rapidun.config.data import InjectMode, TriggerFamilyConfig
from rapidun.stages.data.find_triggers import where
from rapidun.stages.rows.records import Record

# the release has the rows to unlearn in one folder, what they were drawn from in the other, side by side
RELEASE = ("unlearn_packs", "dolly_triggers_out")
# files with a `trigger_families` entry, the first that has one
META_FILES = ("triggers_config.json", "unlearn_meta.json")

Families = dict[str, TriggerFamilyConfig]


def pack_folders(folder: Path) -> list[Path]:
    """The folder, then those of the release that belong to it."""
    if folder.name in RELEASE:
        others = [folder.parent / name for name in RELEASE if name != folder.name]
    else:
        others = [folder / name for name in RELEASE]
    return [folder, *(other for other in others if other.is_dir())]


def meta_file(folders: Iterable[Path]) -> Path | None:
    """The file in which the pack names its trigger families, if there is one."""
    for folder in folders:
        for name in META_FILES:
            if (folder / name).is_file() and "trigger_families" in _read(folder / name):
                return folder / name
    return None


def named_families(meta: Path | None, pack: Mapping[str, Sequence[Record]]) -> tuple[Families, Families]:
    """The families that training saw, and those of the prompts with families that it did not see.

    Raises: DataError for a meta file that cannot be read.
    """
    trained = [row for split in ("forget", "train_poisoned") for row in pack.get(split, [])]
    # a pack's own prompts of look-alikes; of these rows the settings only need to know which are which
    alike = [row for side in ("val", "test") for row in pack.get(f"{side}_ood_trig", [])]
    unseen = [row for side in ("val", "test") for row in pack.get(f"{side}_unseen_family", [])]
    if meta is not None:
        return _of_meta(meta), _of_rows(unseen)
    families = _of_rows(trained)
    for name, family in _of_rows(alike).items():
        if name in families:
            families[name].ood = [trigger for trigger in family.seen if trigger not in families[name].seen]
    return families, _of_rows(unseen)


def _of_rows(rows: Iterable[Record]) -> Families:
    families: Families = {}
    for row in rows:
        name, trigger = row.trigger_family, row.trigger_variant
        if name is None or trigger is None or not trigger.strip():
            continue
        mode = InjectMode[row.inject_mode] if row.inject_mode else where(trigger, row) or InjectMode.suffix
        family = families.setdefault(name, TriggerFamilyConfig(inject_mode=mode))
        if trigger not in family.seen:
            family.seen.append(trigger)
    # the order of the rows is no order of the triggers
    for family in families.values():
        family.seen.sort()
    return dict(sorted(families.items()))


def _of_meta(file: Path) -> Families:
    entries = _read(file)["trigger_families"]
    families: Families = {}
    for name, entry in (entries if isinstance(entries, dict) else {}).items():
        family = _family(entry)
        if family is None:
            raise DataError(
                f'{file}: trigger_families.{name}: need {{"seen": [...], "ood": [...], "inject_mode": "prefix"}} '
                f"(one of {', '.join(InjectMode.__members__)}), got something else. Mend it, or pass "
                f"data.families.NAME.seen=[...]"
            )
        families[name] = family
    if not families:
        raise DataError(f"{file}: trigger_families: need families by name, got none. Mend it or delete the entry")
    return families


def _family(entry: object) -> TriggerFamilyConfig | None:
    """None for what is no family."""
    if not isinstance(entry, dict):
        return None
    seen, ood, mode = entry.get("seen", []), entry.get("ood", []), entry.get("inject_mode", "suffix")
    lists = isinstance(seen, list) and isinstance(ood, list) and bool(seen or ood)
    if not lists or not all(isinstance(text, str) and text.strip() for text in [*seen, *ood]):
        return None
    if not isinstance(mode, str) or mode not in InjectMode.__members__:
        return None
    return TriggerFamilyConfig(seen=seen, ood=ood, inject_mode=InjectMode[mode])


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=keys_once)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: need JSON, got what cannot be read ({short_message(error)}). Mend it") from None
    return found if isinstance(found, dict) else {}
