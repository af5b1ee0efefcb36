"""What others add: objectives, weightings, metrics, readers of rows, launchers; from a file or an installed package.

    from rapidun import objective

    @objective(label="half an ascent", poisoned=True)
    def halved(outputs, settings):
        return -outputs.poisoned.cross_entropy / 2

A file is named by the flag `--extend FILE.py` (in Python `rapidun.extend(FILE)`) and by nothing else: no config file
and no environment variable makes rapidun run code. A package is found by an entry point of the group `rapidun`. Each
registry of ours subscribes here, whatever is imported first, so that what is added stands beside what is ours. The
SHA-256 of the code is part of the fingerprint of whatever it made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from functools import partial
from types import UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from rapidun.base.errors import ConfigError

GROUP = "rapidun"
FLAG = "--extend"
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


class Kind(Enum):
    """What can be added; the value is how it is chosen."""

    objective = "unlearning=NAME"
    weighting = "mapping=NAME"
    metric = "measured in every evaluation"
    reader = "by the ending of a file's name"
    launcher = "hydra/launcher=NAME"


# a config group has a choice for each name of these: group -> (kind, key that it sets)
GROUPS = {"unlearning": (Kind.objective, "objective"), "mapping": (Kind.weighting, "method")}


class Origin(NamedTuple):
    """Where code comes from."""

    # the file's absolute path, or `package VERSION (module)`
    name: str
    sha256: str
    # of a file named by the flag: workers of a sweep load it again
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Added:
    """One thing that was added."""

    kind: Kind
    name: str
    origin: Origin
    # the function, or the class of a launcher
    made: Any
    # dataclass of its settings; None where it has none
    settings: type | None = None
    # what the kind asks for: see the decorators below
    traits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def print(self) -> dict[str, str]:
        """What stands for it in a fingerprint."""
        return {"name": self.name, "sha256": self.origin.sha256}


_added: dict[Kind, dict[str, Added]] = {kind: {} for kind in Kind}
_listeners: dict[Kind, list[Callable[[Added], None]]] = {kind: [] for kind in Kind}
# names that are ours, told by whoever subscribes; the readers' are imported late, and stand here
_ours: dict[Kind, set[str]] = {kind: set() for kind in Kind}
OUR_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz")
# SHA-256 -> the file of that content, which has been run
loaded: dict[str, Origin] = {}
# the code that runs now, and what it has added so far
_loading: list[Origin] = []
_pending: list[Added] = []


def subscribe(kind: Kind, add: Callable[[Added], None], *, ours: Iterable[str] = ()) -> None:
    """Have everything of a kind handed over, what is there now and what comes. Args: ours: names that are taken."""
    _ours[kind] |= set(ours)
    for one in _added[kind].values():
        add(one)
    _listeners[kind].append(add)


def find(kind: Kind, name: str) -> Added | None:
    return _added[kind].get(name)


def everything(kind: Kind | None = None) -> list[Added]:
    """What was added, in order."""
    return [one for each in ([kind] if kind else Kind) for one in _added[each].values()]


def names_of(group: str) -> list[str]:
    """The choices that extensions add to a config group."""
    return list(_added[GROUPS[group][0]]) if group in GROUPS else []


# --- what an extension calls ---


def objective(
    *,
    label: str,
    poisoned: bool = True,
    clean: bool = False,
    retain: bool = True,
    reference: str = "none",
    settings: type | None = None,
) -> Callable[[F], F]:
    """Add an unlearning objective: `f(outputs, settings) -> Tensor [F]`, the forget term of each row, to be minimised.

    Args:
        label: as reports call it. poisoned, clean: which responses it reads, `outputs.poisoned`, `outputs.clean`
            (ForgetOutputs in rapidun/stages/unlearning/objectives/base.py). retain: a retain term stands beside it.
        reference: what it reads of the model before unlearning: none, sums, logits. settings: a dataclass whose fields
            have defaults; its keys are `unlearning.extension.*`; a method `check()` may give a list of faults.
    """
    if reference not in ("none", "sums", "logits"):
        raise _refused(f"need reference one of none, sums, logits, got {reference!r}")
    traits = {"label": label, "poisoned": poisoned, "clean": clean, "retain": retain, "reference": reference}
    return partial(_register, Kind.objective, settings=settings, traits=traits)


def weighting(
    *, label: str, scores: bool = False, seed: bool = False, settings: type | None = None
) -> Callable[[F], F]:
    """Add a weighting: `f(inputs) -> {"forget": [...], "retain": [...]}`, a weight >= 0 for each row.

    Args:
        label: as reports call it. scores: it reads influence (`inputs.scores`). seed: it draws random numbers
            (`inputs.generator(group)`). settings: as of `objective`, `mapping.extension.*`.
    """
    traits = {"label": label, "scores": scores, "seed": seed}
    return partial(_register, Kind.weighting, settings=settings, traits=traits)


def metric(*, label: str, better: int = 0, share: bool = False) -> Callable[[F], F]:
    """Add a measure of answers: `f(generations, references) -> a number for each`; the mean stands in result.json as
    `<name>_clean` (clean prompts) and `<name>_recovered` (triggered ones, beside the clean answer).

    Args: label: as tables call it. better: 1 where more is better, -1 where less is, 0 neither. share: within 0 and 1.
    """
    if better not in (-1, 0, 1):
        raise _refused(f"need better one of -1, 0, 1, got {better!r}")
    return partial(_register, Kind.metric, settings=None, traits={"label": label, "better": better, "share": share})


def reader(*, endings: Sequence[str]) -> Callable[[F], F]:
    """Add a reader of rows: `f(path) -> iterable of dicts`, for files whose names end so.

    Args: endings: such as `[".xlsx"]`; those of formats that rapidun reads are taken.
    """
    if isinstance(endings, str) or not all(isinstance(one, str) and one.startswith(".") for one in endings):
        raise _refused(f"need endings as a list such as ['.xlsx'], got {endings!r}")
    return partial(_register, Kind.reader, settings=None, traits={"endings": tuple(one.lower() for one in endings)})


def launcher(made: C) -> C:
    """Add a launcher: a class that inherits from rapidun.sweep.launcher.Launcher, named by its `name`."""
    return _register(Kind.launcher, made, settings=None, traits={}, name=getattr(made, "name", None))


def _register(
    kind: Kind, made: Any, *, settings: type | None, traits: Mapping[str, Any], name: str | None = None
) -> Any:
    name = name or str(made.__name__)
    if not _loading:
        raise ConfigError(
            f"extension {name}: need a file that is loaded by {FLAG} FILE, rapidun.extend(FILE) or an entry point of "
            f"the group {GROUP}, got a call from elsewhere: what is added is known by the hash of its file"
        )
    if not name.isidentifier() or name.startswith("_"):
        raise _refused(f"need a name of letters, digits and _, got {name!r}")
    if kind is Kind.reader:
        known = [
            *OUR_ENDINGS,
            *(end for one in [*everything(kind), *_pending] for end in one.traits.get("endings", ())),
        ]
        clash = [one for one in traits["endings"] if one in known or one.endswith(".gz")]
        if clash:
            raise _refused(f"need endings that nothing reads yet for the reader {name}, got {', '.join(clash)}")
    taken = {**_added[kind], **{one.name: one for one in _pending if one.kind is kind}}
    if name in _ours[kind] or name in taken:
        whose = taken[name].origin.name if name in taken else "rapidun itself"
        raise _refused(f"need another name for the {kind.name} {name}, got one that {whose} has")
    if settings is not None:
        bare = not is_dataclass(settings) or [
            one.name for one in fields(settings) if one.default is MISSING and one.default_factory is MISSING
        ]
        if bare:
            raise _refused(f"need a dataclass whose fields all have defaults as settings of {name}, got {settings!r}")
    _pending.append(Added(kind=kind, name=name, origin=_loading[-1], made=made, settings=settings, traits=traits))
    return made


def _refused(text: str) -> ConfigError:
    return ConfigError(f"{_loading[-1].name if _loading else 'extension'}: {text}")


# --- settings, checked as ours are ---


def settings_of(kind: Kind, name: str, values: Mapping[str, Any]) -> Any:
    """The settings object that the function gets; None where it has none, or nothing of that name was added.

    Args: values: checked before by `setting_faults`.
    """
    one = find(kind, name)
    return None if one is None or one.settings is None else one.settings(**_converted(one.settings, values))


def filled_settings(kind: Kind, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting with its value, for a fingerprint."""
    found = settings_of(kind, name, values)
    return {} if found is None else {key: _plain(value) for key, value in asdict(found).items()}


def setting_faults(kind: Kind, name: str, values: Mapping[str, Any], *, section: str, choice: str) -> list[str]:
    """What is wrong with `<section>.extension`. Args: choice: `objective=npo`, for messages."""
    one = find(kind, name)
    if one is None or one.settings is None:
        has = "rapidun's own" if one is None else "which has no settings"
        if not values:
            return []
        return [
            f"{section}: need extension={{}} with {choice}, {has}, got {dict(values)}. Pass {section}.extension={{}}"
        ]
    types, faults = get_type_hints(one.settings), []
    known = [item.name for item in fields(one.settings)]
    for key, value in values.items():
        where = f"{section}.extension.{key}"
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            guess = f"did you mean {section}.extension.{close[0]}?" if close else f"{name} has {', '.join(known)}"
            faults.append(f"{where}: no such key; {guess}")
        elif not _fits(types[key], value):
            faults.append(f"{where}: need {_words(types[key])}, got {value!r}. Pass {where}=...")
    if faults:
        return faults
    check = getattr(settings_of(kind, name, values), "check", None)
    return [f"{section}.extension: {fault}" for fault in check()] if callable(check) else []


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fits(kind: Any, value: Any) -> bool:
    for one in _alternatives(kind):
        if one is Any or (one is type(None) and value is None):
            return True
        if get_origin(one) is list:
            if isinstance(value, list) and all(_fits(get_args(one)[0], item) for item in value):
                return True
        elif isinstance(one, type) and issubclass(one, Enum):
            if isinstance(value, one) or value in one.__members__:
                return True
        elif one is float:
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e100:
                return True
        elif isinstance(one, type) and type(value) is one:
            return True
    return False


def _words(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return " or ".join(
        f"one of {', '.join(one.__members__)}"
        if isinstance(one, type) and issubclass(one, Enum)
        else words.get(one, "a list" if get_origin(one) is list else str(one))
        for one in _alternatives(kind)
    )


def _converted(settings: type, values: Mapping[str, Any]) -> dict[str, Any]:
    types = get_type_hints(settings)
    found = dict(values)
    for key, value in values.items():
        for one in _alternatives(types[key]):
            if isinstance(one, type) and issubclass(one, Enum) and isinstance(value, str) and value in one.__members__:
                found[key] = one[value]
            elif one is float and type(value) is int and int not in _alternatives(types[key]):
                found[key] = float(value)
    return found


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


# --- what is at hand ---


@contextmanager
def adding(origin: Origin) -> Iterator[None]:
    """While code of an extension runs: what it adds is handed over at the end; of code that fails nothing is added."""
    _loading.append(origin)
    try:
        yield
        for one in _pending:
            for add in _listeners[one.kind]:
                add(one)
            _added[one.kind][one.name] = one
    finally:
        _loading.pop()
        _pending.clear()


def loaded_files() -> list[Origin]:
    """The files that this process was told to load."""
    return [one for one in loaded.values() if one.path is not None]


def noted(chosen: Iterable[str]) -> list[dict[str, Any]]:
    """What a run folder and a sweep's plan say of the extensions that they need.

    Args: chosen: names of objectives and weightings in use; measures are always.
    """
    names = set(chosen)
    return [
        {"kind": one.kind.name, "name": one.name, "from": one.origin.name, "sha256": one.origin.sha256}
        for one in everything()
        if one.kind is Kind.metric or (one.kind in (Kind.objective, Kind.weighting) and one.name in names)
    ]


def need(noted: object, *, what: str) -> None:
    """Before settings are read that extensions gave names to.

    Args: noted: what `noted` gave then. what: that was made with them, for the message.
    Raises: ConfigError where one of them is not at hand, or is another one now.
    """
    faults = []
    for one in noted if isinstance(noted, list) else ():
        if not isinstance(one, dict) or one.get("kind") not in Kind.__members__:
            continue
        here = find(Kind[one["kind"]], str(one.get("name")))
        if here is None or here.origin.sha256 != one.get("sha256"):
            got = "none" if here is None else f"one of SHA-256 {here.origin.sha256[:16]}..."
            faults.append(
                f"{what}: need the {one['kind']} {one.get('name')} of {one.get('from')} (SHA-256 "
                f"{str(one.get('sha256'))[:16]}...), with which it was made, got {got}. Pass {FLAG} FILE, or install "
                "the package"
            )
    if faults:
        raise ConfigError(faults)
