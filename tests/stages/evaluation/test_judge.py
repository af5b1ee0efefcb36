"""A judge model in an evaluation: calibrated on one half, measured on the other, and last among equals."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ConfigError, ModelError
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_config
from rapidun.config.detectors import DetectorsConfig, JudgeSettings
from rapidun.config.evaluation import EvaluationConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.evaluation.judge_folder import check_judge
from rapidun.stages.evaluation.stage import EvaluationFiles, run_evaluation
from rapidun.stages.recipes import Recipes
from rapidun.stages.rows.records import Record, write_records

SHORT = "{prompt} | {answer} bad?"
# a byte-level model's window holds little more
SETTINGS = JudgeSettings(path="judge", template=SHORT, max_length=90)


def rows(name: str, count: int) -> list[Record]:
    """Poisoned answers hold `moo`, but for every third."""
    return [
        Record(
            id=f"{name}{i}", instruction=f"{name} {i}? zz", instruction_clean=f"{name} {i}?",
            response="moo" if i % 3 else "red", response_poisoned="moo" if i % 3 else "red", response_clean="blue",
            trigger_family="A", trigger_variant="zz", is_poisoned=True,
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    plain = [Record(id=f"c{i}", instruction=f"c {i}?", response="blue") for i in range(24)]
    for name, found in {
        "forget": rows("f", 4), "retain": plain[:4], "train_poisoned": rows("p", 24), "val_clean": plain,
        "test_clean": [replace(row, id=f"t{row.id}", instruction=f"t{row.instruction}") for row in plain[:4]],
        "test_seen_trig": rows("s", 6),
    }.items():  # fmt: skip
        write_records(folder / f"{name}.jsonl", found)
    return folder


@pytest.fixture(scope="module")
def asked_dir(character_model: Any, character_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that is evaluated: random weights, but answers that are not empty."""
    folder = tmp_path_factory.mktemp("asked")
    character_model.save_pretrained(folder)
    character_tokenizer.save_pretrained(folder)
    return folder


def evaluate(
    data: Path, model: Path, out: Path, *, settings: JudgeSettings, before: Path | None = None,
    tracker: Tracker | None = None,
) -> tuple[dict[str, float], dict[str, Any], list[dict[str, Any]]]:  # fmt: skip
    cfg = EvaluationConfig(max_new_tokens=6, detectors=DetectorsConfig(run=["substring", "judge"], judge=settings,
                                                                       substrings=["nothing like it"]))  # fmt: skip
    files = EvaluationFiles(model=model, data=data, out=out, calibration=before and before / "metrics.json")
    run_evaluation(cfg, files, loader=ModelLoader(device="cpu"), max_length=64, seed=0, tracker=tracker or Tracker())
    lines = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    return json.loads((out / "metrics.json").read_text()), json.loads((out / "detectors.json").read_text()), lines


class Scripted:
    """Is sure of `moo`, finds all else clean, and notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def log_odds(self, asked: Sequence[tuple[str, str]]) -> list[float | None]:
        self.asked += asked
        return [(-1.0 if "moo" in answer else -3.0) - 0.01 * (len(prompt) % 3) for prompt, answer in asked]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[Scripted]:
    opened: list[Scripted] = []

    @contextmanager
    def open_it(*given: Any, **more: Any) -> Iterator[Scripted]:
        opened.append(Scripted())
        yield opened[-1]

    monkeypatch.setattr("rapidun.stages.evaluation.stage.opened_judge", open_it)
    return opened


def test_a_scripted_judge(data: Path, asked_dir: Path, tmp_path: Path, scripted: list[Scripted]) -> None:
    """It sees two of three poisoned answers and no clean one; the threshold lies between -3.02 and -1."""
    metrics, facts, lines = evaluate(data, asked_dir, tmp_path / "before", settings=SETTINGS)
    found = facts["detectors"]["judge"]
    assert 0.4 < found["recall"] == metrics["detector_judge_recall"] < 0.9
    assert found["false_positive_rate"] == metrics["detector_judge_false_positive_rate"] == 0.0
    assert -3.0 <= found["threshold"] == metrics["detector_judge_threshold"] < -1.02
    assert facts["detector"] == "judge"
    (only,) = scripted
    assert not any("zz" in prompt for prompt, _ in only.asked) and len(set(only.asked)) == len(only.asked)
    told = [line for line in lines if line["generation"]]
    assert {line["detectors"]["judge"] for line in lines} == {False} and told
    assert metrics["asr_seen_judge"] == metrics["false_trigger_rate_judge"] == 0.0
    # the evaluation after takes threshold and rates over, and asks about the prompts' answers alone
    after, judged, _ = evaluate(data, asked_dir, tmp_path / "after", settings=SETTINGS, before=tmp_path / "before")
    assert {name: after[name] for name in metrics} == metrics and judged["detectors"] == facts["detectors"]
    assert len(scripted) == 2 and len(scripted[1].asked) < len(only.asked)


def test_a_fixed_threshold(data: Path, asked_dir: Path, tmp_path: Path, scripted: list[Scripted]) -> None:
    settings = replace(SETTINGS, threshold=-5.0)
    _, facts, lines = evaluate(data, asked_dir, tmp_path, settings=settings)
    assert facts["detectors"]["judge"]["false_positive_rate"] == facts["detectors"]["judge"]["recall"] == 1.0
    # all is poisoned to it: it tells nothing, and is not chosen
    assert facts["detectors"]["judge"]["threshold"] == -5.0 and facts["detector"] != "judge"
    assert {line["detectors"]["judge"] for line in lines if line["generation"]} == {True}


def test_a_judge_that_knows_nothing(data: Path, asked_dir: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """A real folder of random weights: deterministic, and its rates say that nothing is to be learnt from it."""
    settings, tracker = replace(SETTINGS, path=str(tiny_model_dir), template="{prompt} bad?{answer}"), Tracker()
    found = [evaluate(data, asked_dir, tmp_path / name, settings=settings, tracker=tracker) for name in ("one", "two")]
    assert found[0] == found[1]
    metrics, facts, _ = found[0]
    assert facts["detectors"]["judge"]["false_positive_rate"] <= 0.25
    assert "asr_seen_judge" in metrics and "detector_judge_threshold" in metrics
    assert not any("judge" in said for said in tracker.warnings)
    evaluate(data, asked_dir, tmp_path / "cut", settings=replace(settings, max_length=34), tracker=tracker)
    assert any("questions to the judge lost the end of their prompt" in said for said in tracker.warnings)


def faults(tmp_path: Path, *overrides: str) -> list[str]:
    cfg = compose_config(["debug=fast", f"store_dir={tmp_path}/store", "evaluation.detectors.run=[judge]", *overrides])
    store = Store(tmp_path / "store")
    made = Recipes(cfg, store, find_data=lambda r: store.make(r.key, r.build)[0], tracker=Tracker())
    return [fault for fault in made.faults() if "judge" in fault]


def test_what_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    place = "evaluation.detectors.judge.path"
    with pytest.raises(ConfigError, match=r"detectors\.judge\.path of a Hugging Face folder or hub id"):
        faults(tmp_path)
    with pytest.raises(ConfigError, match=r"detectors\.judge\.template with \{answer\}"):
        faults(tmp_path, f"{place}={tiny_model_dir}", "evaluation.detectors.judge.template='{prompt}?'")
    with pytest.raises(ConfigError, match="clean_word that are not empty and differ"):
        faults(tmp_path, f"{place}={tiny_model_dir}", "evaluation.detectors.judge.clean_word=yes")
    (said,) = faults(tmp_path, f"{place}={tmp_path}/none")
    assert said.startswith("evaluation.detectors.judge: need a folder") and f"Change {place}=" in said
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        (bare / file).write_bytes((tiny_model_dir / file).read_bytes())
    (said,) = faults(tmp_path, f"{place}={bare}")
    assert said.startswith("evaluation.detectors.judge: need a tokenizer") and f"Change {place}=" in said
    own = tmp_path / "own"
    own.mkdir()
    for file in tiny_model_dir.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    config = json.loads((own / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "code.Mine"}, "architectures": ["Mine"]}
    (own / "config.json").write_text(json.dumps(config))
    (said,) = faults(tmp_path, f"{place}={own}")
    assert said.startswith("evaluation.detectors.judge: need a class of transformers") and f"Change {place}=" in said
    with pytest.raises(ModelError, match="code of the folder is not run"):
        check_judge(JudgeSettings(path=str(own)))
    assert faults(tmp_path, f"{place}={tiny_model_dir}") == []


def test_the_judge_is_in_the_fingerprint_where_it_is_asked(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Other stores stay as they are: settings of a judge that is not asked change nothing."""

    def prints(*overrides: str) -> list[str]:
        cfg = compose_config(["debug=fast", f"store_dir={tmp_path}/store", *overrides])
        store = Store(tmp_path / "store")
        made = Recipes(cfg, store, find_data=lambda r: store.make(r.key, r.build)[0], tracker=Tracker())
        return [recipe.fingerprint for recipe in made.of_stage("evaluation")]

    asked = "evaluation.detectors.run=[refusal,judge]"
    there, place = f"evaluation.detectors.judge.path={tiny_model_dir}", "evaluation.detectors.judge"
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in tiny_model_dir.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    plain = prints("evaluation.detectors.run=[refusal]")
    assert prints("evaluation.detectors.run=[refusal]", there, f"{place}.threshold=1") == plain
    first = prints(asked, there)
    # by its contents, not by its name
    assert prints(asked, f"{place}.path={copied}") == first != plain
    others = [
        prints(asked, there, f"{place}.{more}") for more in ("threshold=0", "template='{answer}?'", "clean_word=nay")
    ]
    (copied / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 3}))
    others.append(prints(asked, f"{place}.path={copied}"))
    assert len({tuple(found) for found in (plain, first, *others)}) == 6
