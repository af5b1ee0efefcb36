"""What of Hydra's own settings a user may set: those of the docs. Hydra makes objects of others (`_target_`), and runs
them, which nothing that is written in a file or typed may bring about here.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from rapidun.config import paths

# groups whose file is chosen; what may be chosen of the last two, Hydra brings along
OBJECTS = ("launcher", "sweeper")
LOGGING = ("job_logging", "hydra_logging")
# handed out by Hydra itself, or printed only
_ITS_OWN = (*OBJECTS, *LOGGING, "verbose", "runtime", "overrides", "searchpath", "help", "hydra_help", "mode")
_OF_THE_JOB = ("name", "override_dirname", "id", "num", "config_name")
_ALLOWED = "hydra/launcher, hydra/sweeper, hydra.launcher.*, hydra.sweeper.*, hydra.verbose, hydra/job_logging"
_MEND = "Leave it out; where jobs run and files lie, cluster.*, resources.*, run_dir and store_dir say"


def key_fault(key: str, value: Any) -> str:
    """What is wrong with an override of Hydra's own settings; empty where it is one of the docs."""
    above, _, below = key.partition(".")
    if above == "hydra" and below:
        section, _, inner = below.partition(".")
        free = section in OBJECTS and inner and not any(part.startswith("_") for part in inner.split("."))
        if (free or below == "verbose") and not any(_makes_objects(value)):
            return ""
    elif key in {f"hydra/{name}" for name in OBJECTS}:
        return ""
    elif key in {f"hydra/{name}" for name in LOGGING}:
        known = _shipped_logging(key.partition("/")[2])
        return "" if value in known else f"{key}: no such choice {value!r}; known: {', '.join(known)}"
    return f"{key}: need one of Hydra's settings that are used here ({_ALLOWED}), got {key}. {_MEND}"


def section_faults(hydra: DictConfig) -> list[str]:
    """What a composed configuration sets of Hydra's own, wherever it was set, that is not of the docs.

    Nothing in it is made an object before this is asked.

    Raises: OmegaConfBaseException where a reference leads nowhere.
    """
    raw: Any = OmegaConf.to_container(hydra, resolve=False)
    found = [f"hydra.{key}" for key in _changed(_without(raw), _expected())]
    for name in OBJECTS:
        # as it is written, and what references make of it
        for section in (raw[name], OmegaConf.to_container(hydra[name], resolve=True)):
            if not isinstance(section, dict) or section.get("_target_") not in _targets(name):
                found.append(f"hydra.{name}._target_")
                continue
            inside = {key: value for key, value in section.items() if key != "_target_"}
            found += [f"hydra.{name}.{key}" for key in _makes_objects(inside)]
    for name in LOGGING:
        if raw.get(name) is not None and raw[name] not in _shipped_logging(name).values():
            found.append(f"hydra.{name}")
    return [
        f"{key}: need one of Hydra's settings that are used here ({_ALLOWED}), got {key} in a file. {_MEND}"
        for key in dict.fromkeys(found)
    ]


def _makes_objects(value: Any, above: str = "") -> Iterator[str]:
    """Where a value holds a key of Hydra's `instantiate`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{above}.{key}" if above else str(key)
            if str(key).strip("'\" ").startswith("_"):
                yield place
            else:
                yield from _makes_objects(inner, place)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _makes_objects(inner, above)


def _targets(name: str) -> set[str]:
    """The classes that plugins have registered, by code."""
    store = ConfigStore.instance()
    nodes = [store.load(f"hydra/{name}/{file}").node for file in store.list(f"hydra/{name}")]
    return {str(node.get("_target_")) for node in nodes}


@lru_cache(maxsize=1)
def _expected() -> dict[str, Any]:
    """Hydra's defaults with what conf/config.yaml says, less what Hydra fills in."""
    own = yaml.safe_load((paths.config_dir() / "config.yaml").read_text(encoding="utf-8")).get("hydra") or {}
    merged = OmegaConf.merge(OmegaConf.structured(HydraConf), own)
    found: Any = OmegaConf.to_container(merged, resolve=False)
    return _without(found)


def _without(hydra: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in hydra.items() if key not in (*_ITS_OWN, "defaults")}
    if not kept.get("env"):
        # the group that Hydra loads by default is empty
        kept.pop("env", None)
    return kept | {"job": {key: value for key, value in hydra["job"].items() if key not in _OF_THE_JOB}}


def _changed(came: Any, expected: Any, above: str = "") -> Iterator[str]:
    """Keys at which two nested values differ, as far down as both have them."""
    if not (isinstance(came, dict) and isinstance(expected, dict)):
        if came != expected:
            yield above
        return
    for key in [*came, *(key for key in expected if key not in came)]:
        place = f"{above}.{key}" if above else str(key)
        if key in came and key in expected:
            yield from _changed(came[key], expected[key], place)
        else:
            yield place


@lru_cache(maxsize=2)
def _shipped_logging(name: str) -> dict[str, Any]:
    """Choice -> contents of the files that come with Hydra."""
    folder = resources.files("hydra.conf") / "hydra" / name
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    found: dict[str, Any] = {}
    for file in files:
        found[file.name.removesuffix(".yaml")] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found
