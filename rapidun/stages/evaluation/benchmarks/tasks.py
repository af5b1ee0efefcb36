"""Task files of lm-eval, read as data: what could run code is refused before lm-eval sees any of it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rapidun.base.errors import ConfigError
from rapidun.models.libraries import BUILDERS

ENDINGS = (".yaml", ".yml")
METRICS = (
    "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "perplexity", "word_perplexity",
    "byte_perplexity", "bits_per_byte", "likelihood", "brier_score", "f1", "mcc",
)  # fmt: skip
FILTERS = (
    "regex", "regex_pos", "remove_whitespace", "multi_choice_regex", "take_first", "take_first_k", "majority_vote",
    "lowercase", "uppercase", "map",
)  # fmt: skip
OUTPUTS = ("loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until")
TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix")
# everything that a task file may say
KEYS = (
    "task", "task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "training_split",
    "validation_split", "test_split", "fewshot_split", *TEMPLATES, "target_delimiter", "fewshot_delimiter",
    "num_fewshot", "metric_list", "output_type", "generation_kwargs", "repeats", "filter_list", "metadata",
)  # fmt: skip
METRIC_KEYS = (
    "metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation", "ignore_numbers",
    "regexes_to_ignore", "hf_evaluate",
)  # fmt: skip
GENERATION_KEYS = (
    "until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty",
)  # fmt: skip
EXECUTED = "!function"
# of a metric's name and of a folder
NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Task:
    """One task file, and the files of its rows by split."""

    name: str
    file: Path
    settings: dict[str, Any]
    rows: dict[str, tuple[Path, ...]]

    @property
    def files(self) -> list[Path]:
        return [self.file, *(path for paths in self.rows.values() for path in paths)]


class _Loader(yaml.SafeLoader):
    """Plain YAML; a tag that names code, or anything else, is refused rather than looked up."""


def _refuse(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag}", node.start_mark)


_Loader.add_constructor(None, _refuse)


def read_tasks(folder: Path, names: Sequence[str]) -> list[Task]:
    """The tasks of these names, from the YAML files below a folder.

    Only the files of the tasks that are asked for need be sound. Nothing that they name is imported or called: they
    are read as plain YAML, every key must be one of KEYS, metrics and filters are named ones of lm-eval, rows are local
    files, templates reach nothing but the row's own fields.

    Raises: ConfigError with every fault.
    """
    if not folder.is_dir():
        raise ConfigError(
            [f"evaluation.lm_eval.include_path: need a folder of task files, got {folder}, which is none. "
             "Change evaluation.lm_eval.include_path=..."]
        )  # fmt: skip
    found: dict[str, list[Path]] = {}
    odd: dict[str, str] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix in ENDINGS and path.is_file()):
        try:
            settings = _load(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            odd[str(path)] = " ".join(str(error).split())
            # the name stands in the file; one that is asked for is not overlooked
            found.setdefault(path.stem, []).append(path)
            continue
        if isinstance(settings, dict) and isinstance(settings.get("task"), str):
            found.setdefault(settings["task"], []).append(path)
    faults: list[str] = []
    tasks = []
    for name in names:
        if not NAME.fullmatch(name):
            faults.append(
                f"evaluation.lm_eval.tasks: need names of letters, digits, _ and -, got {name!r}. Rename it in its file"
            )
            continue
        files = found.get(name, [])
        if len(files) != 1:
            known = ", ".join(sorted(found)[:8]) or "none"
            got = f"{len(files)} ({', '.join(map(str, files))})" if files else f"none; there are {known}"
            damaged = f"; cannot be read: {'; '.join(f'{path}: {why}' for path, why in odd.items())}" if odd else ""
            faults.append(
                f"evaluation.lm_eval.tasks: need one file with `task: {name}` below {folder}, got {got}{damaged}. "
                "Change evaluation.lm_eval.tasks=[...]"
            )
            continue
        [path] = files
        if str(path) in odd:
            faults.append(_fault(path, f"plain YAML without tags such as {EXECUTED}, which run code", odd[str(path)]))
            continue
        task, wrong = _checked(name, path, _load(path))
        faults += wrong
        if task is not None:
            tasks.append(task)
    if faults:
        raise ConfigError(faults)
    return tasks


def _load(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader, with fewer tags


def _fault(path: Path, expected: str, got: object) -> str:
    return f"evaluation.lm_eval: {path}: need {expected}, got {got}. Change the file, or evaluation.lm_eval.tasks"


def _checked(name: str, path: Path, settings: Mapping[str, Any]) -> tuple[Task | None, list[str]]:
    faults = [
        _fault(path, f"no other keys than {', '.join(KEYS)}", f"{key} (it can name code, or other files)")
        for key in settings
        if key not in KEYS
    ]
    if EXECUTED in "\n".join(_texts(settings)):
        faults.append(_fault(path, f"no text that names {EXECUTED}", EXECUTED))
    output = settings.get("output_type", "generate_until")
    if output not in OUTPUTS:
        faults.append(_fault(path, f"output_type among {', '.join(OUTPUTS)}", output))
    faults += [
        _fault(path, f"{key} as {kind}, as lm-eval names no code", f"{value!r}")
        for key, kinds, kind in (
            ("doc_to_text", (str, int), "a template"),
            ("doc_to_target", (str, int, list), "a template"),
            ("doc_to_choice", (str, list), "a template or a list"),
            ("description", (str,), "a template"),
            ("gen_prefix", (str,), "a template"),
            ("metric_list", (list,), "a list"),
            ("filter_list", (list,), "a list"),
            ("generation_kwargs", (dict,), "a mapping"),
            ("metadata", (dict,), "a mapping"),
        )
        if (value := settings.get(key)) is not None and not isinstance(value, kinds)
    ]
    faults += [_fault(path, "templates that use the row's own fields only", why) for why in _odd_templates(settings)]
    generation = settings.get("generation_kwargs")
    faults += [
        _fault(path, f"generation_kwargs of {', '.join(GENERATION_KEYS)}", key)
        for key in (generation if isinstance(generation, dict) else ())
        if key not in GENERATION_KEYS
    ]
    faults += _odd_metrics(path, settings.get("metric_list"))
    faults += _odd_filters(path, settings.get("filter_list"))
    rows, wrong = _rows(path, settings)
    faults += wrong
    if faults:
        return None, faults
    kept = {k: v for k, v in settings.items() if k not in ("dataset_path", "dataset_name", "dataset_kwargs", "tag")}
    return Task(name, path, {**kept, "dataset_path": settings["dataset_path"]}, rows), []


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _odd_templates(settings: Mapping[str, Any]) -> Iterator[str]:
    """What a template reaches for beyond the fields of a row: names with an underscore in front, the filter `attr`."""
    from jinja2 import Environment, TemplateSyntaxError, nodes  # takes a while to import

    parser = Environment(autoescape=False)  # parsed here, never rendered
    for key in TEMPLATES:
        for text in _texts(settings.get(key)):
            try:
                tree = parser.parse(text)
            except TemplateSyntaxError as error:
                yield f"{key}: {error.message} in {text[:80]!r}"
                continue
            names = [one.attr for one in tree.find_all(nodes.Getattr)]
            names += [one.name for one in tree.find_all(nodes.Name)]
            names += [one.value for one in tree.find_all(nodes.Const) if isinstance(one.value, str)]
            hidden = [name for name in names if name.startswith("_")]
            filters = [one.name for one in tree.find_all(nodes.Filter) if one.name in ("attr", "map", "selectattr")]
            loads = list(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)))
            if hidden or filters or loads:
                yield f"{key}: {text[:80]!r}"


def _odd_metrics(path: Path, listed: Any) -> Iterator[str]:
    for entry in listed if isinstance(listed, list) else []:
        name = entry.get("metric") if isinstance(entry, dict) else entry
        if name not in METRICS:
            yield _fault(path, f"metrics among {', '.join(METRICS)}", repr(name))
        elif isinstance(entry, dict):
            odd = [key for key in entry if key not in METRIC_KEYS]
            if odd or entry.get("hf_evaluate"):
                yield _fault(path, f"a metric with {', '.join(METRIC_KEYS[:-1])} alone", odd or "hf_evaluate: true")
            if not isinstance(entry.get("aggregation", ""), str):
                yield _fault(path, "the name of an aggregation", repr(entry["aggregation"]))


def _odd_filters(path: Path, listed: Any) -> Iterator[str]:
    for entry in listed if isinstance(listed, list) else []:
        steps = entry.get("filter") if isinstance(entry, dict) else None
        for step in steps if isinstance(steps, list) else [None]:
            name = step.get("function") if isinstance(step, dict) else None
            if name not in FILTERS:
                yield _fault(path, f"filters among {', '.join(FILTERS)}", repr(name))


def _rows(path: Path, settings: Mapping[str, Any]) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """The files of the rows by split; those that are named relatively lie beside the task file."""
    builder = settings.get("dataset_path")
    if builder not in BUILDERS:
        return {}, [_fault(path, f"dataset_path among {', '.join(BUILDERS)}: rows in local files", repr(builder))]
    kwargs = settings.get("dataset_kwargs")
    named = kwargs.get("data_files") if isinstance(kwargs, dict) else None
    if not isinstance(kwargs, dict) or set(kwargs) != {"data_files"}:
        return {}, [_fault(path, "dataset_kwargs with data_files alone", repr(kwargs))]
    splits = named if isinstance(named, dict) else {"train": named}
    rows: dict[str, tuple[Path, ...]] = {}
    faults = []
    for split, given in splits.items():
        listed = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]
        if not listed or len(listed) != len(given if isinstance(given, list) else [given]):
            faults.append(_fault(path, "data_files of names of files", repr(given)))
            continue
        files = [path.parent / Path(one).expanduser() for one in listed]
        faults += [_fault(path, "data_files that are there", one) for one in files if not one.is_file()]
        rows[str(split)] = tuple(files)
    asked = {settings.get(f"{kind}_split") for kind in ("training", "validation", "test", "fewshot")} - {None}
    if not faults:
        faults += [_fault(path, f"splits among {', '.join(rows)}", s) for s in sorted(map(str, asked)) if s not in rows]
    if not settings.get("test_split") and not settings.get("validation_split"):
        faults.append(_fault(path, "a test_split or a validation_split", "neither"))
    return rows, faults
