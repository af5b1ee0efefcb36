"""Task files are read as data: whatever could run code, or fetch something, is refused before lm-eval sees it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rapidun.base.errors import ConfigError
from rapidun.stages.evaluation.benchmarks.tasks import read_tasks

TASK: dict[str, Any] = {
    "task": "toy", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "toy.jsonl"}},
    "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
    "doc_to_choice": ["red", "blue"], "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip


def write(folder: Path, text: str | None = None, **changes: Any) -> Path:
    (folder / "toy.jsonl").write_text('{"question": "q?", "label": 0}\n')
    settings = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
    (folder / "toy.yaml").write_text(yaml.safe_dump(settings) if text is None else text)
    return folder


def fault(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_tasks(folder, ["toy"])
    (found,) = caught.value.faults
    return found


def test_a_plain_task(tmp_path: Path) -> None:
    [task] = read_tasks(write(tmp_path), ["toy"])
    assert task.name == "toy" and task.rows == {"test": (tmp_path / "toy.jsonl",)}
    assert task.files == [tmp_path / "toy.yaml", tmp_path / "toy.jsonl"]
    assert "dataset_kwargs" not in task.settings and task.settings["doc_to_text"] == "{{question}}"


@pytest.mark.parametrize("key", ["process_docs", "doc_to_text", "process_results", "task"])
def test_a_function_is_refused_and_not_imported(tmp_path: Path, key: str) -> None:
    (tmp_path / "utils.py").write_text("open('ran', 'w').write('ran')\nraise SystemExit(9)\n")
    write(tmp_path)
    text = (tmp_path / "toy.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(f"{key}:")]
    (tmp_path / "toy.yaml").write_text("\n".join([*lines, f"{key}: !function utils.odd", ""]))
    found = fault(tmp_path)
    assert "!function" in found and "toy.yaml" in found
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [true]", "!include other.yaml", "!!python/name:os"])
def test_other_tags_are_refused(tmp_path: Path, tag: str) -> None:
    write(tmp_path)
    text = (tmp_path / "toy.yaml").read_text()
    (tmp_path / "toy.yaml").write_text(f"{text}metadata: {tag}\n")
    assert "plain YAML" in fault(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"include": "base.yaml"}, "include (it can name code, or other files)"),
        ({"class": "x.Y"}, "class (it can name code"),
        ({"process_docs": "utils.f"}, "process_docs (it can name code"),
        ({"custom_dataset": "x"}, "custom_dataset (it can"),
        ({"unsafe_code": True}, "unsafe_code"),
        ({"use_prompt": "promptsource:*"}, "use_prompt"),
        ({"fewshot_config": {"sampler": "x"}}, "fewshot_config"),
        ({"group": "g"}, "group"),
        ({"description": "!function utils.f"}, "no text that names !function"),
        ({"dataset_path": "someone/set"}, "dataset_path among json, csv, parquet, text"),
        ({"dataset_path": "./loader.py"}, "dataset_path among"),
        ({"dataset_kwargs": {"data_files": {"test": "toy.jsonl"}, "trust_remote_code": True}}, "data_files alone"),
        ({"dataset_kwargs": {"data_files": {"test": "none.jsonl"}}}, "data_files that are there"),
        ({"dataset_kwargs": {"data_files": {"test": [1]}}}, "data_files of names of files"),
        ({"dataset_kwargs": {"data_files": {"test": "https://host/x.jsonl"}}}, "data_files that are there"),
        ({"test_split": "train"}, "splits among test"),
        ({"test_split": None}, "a test_split or a validation_split"),
        ({"output_type": "run"}, "output_type among"),
        ({"metric_list": [{"metric": "./metric.py"}]}, "metrics among acc"),
        ({"metric_list": [{"metric": "f1", "hf_evaluate": True}]}, "hf_evaluate: true"),
        ({"metric_list": [{"metric": "acc", "aggregation": ["x"]}]}, "the name of an aggregation"),
        ({"metric_list": [{"metric": "acc", "code": "x"}]}, "['code']"),
        ({"metric_list": "acc"}, "metric_list as a list"),
        ({"filter_list": [{"name": "x", "filter": [{"function": "custom", "filter_fn": "y"}]}]}, "filters among regex"),
        ({"filter_list": [{"name": "x"}]}, "filters among"),
        ({"generation_kwargs": {"custom_generate": "folder"}}, "generation_kwargs of until"),
        ({"doc_to_text": "{{question.__class__}}"}, "templates that use the row's own fields only"),
        ({"doc_to_text": "{{question['__class__']}}"}, "own fields only"),
        ({"doc_to_target": "{{label | attr('x')}}"}, "own fields only"),
        ({"doc_to_choice": ["{{cycler.__init__}}"]}, "own fields only"),
        ({"description": "{% include 'x' %}"}, "own fields only"),
        ({"doc_to_text": "{{question"}, "own fields only"),
        ({"doc_to_text": {"a": 1}}, "doc_to_text as a template"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in fault(write(tmp_path, **changes))


def test_files_that_nobody_asked_for_may_be_odd(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "other.yaml").write_text("task: other\nprocess_docs: !function utils.f\n")
    (tmp_path / "broken.yml").write_text("a: [\n")
    assert len(read_tasks(tmp_path, ["toy"])) == 1


def test_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need a folder of task files"):
        read_tasks(tmp_path / "none", ["toy"])
    write(tmp_path)
    with pytest.raises(ConfigError, match=r"got none; there are toy"):
        read_tasks(tmp_path, ["tyo"])
    with pytest.raises(ConfigError, match=r"names of letters"):
        read_tasks(tmp_path, ["../toy"])
    (tmp_path / "again.yaml").write_text((tmp_path / "toy.yaml").read_text())
    with pytest.raises(ConfigError, match=r"got 2 \("):
        read_tasks(tmp_path, ["toy"])
