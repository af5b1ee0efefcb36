"""Kept answers judged by the other detectors: counted by hand, one artifact a model, no second attack."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attacks_pack import attacked, settings

from rapidun.base.files import read_json, read_jsonl, write_json
from rapidun.base.tracker import Tracker
from rapidun.config.attacks import Attack
from rapidun.config.detectors import Detector, DetectorsConfig
from rapidun.models.load import ModelLoader
from rapidun.stages.evaluation.attacks.leak import asr_at_k
from rapidun.stages.evaluation.attacks.run import run_attack
from rapidun.stages.evaluation.attacks.summary import LINK, VERDICTS_LINK, collected, flat
from rapidun.stages.evaluation.attacks.verdicts import Kept, judge_attacks

RUNS: dict[str, tuple[Attack, dict[str, Any]]] = {
    "relearning.clean.4": (Attack.relearning, {"rows": "clean", "k": 4}),
    "sampling": (Attack.sampling, {}),
    "prompts": (Attack.prompts, {}),
}
# of the poisoned model; thresholds that are met by some answers only, and one by all
CALIBRATION = {
    "detector_likelihood_calibrated_threshold": 1e9,
    "detector_perplexity_threshold": -1.0,
    "detector_judge_threshold": 0.5,
}


@pytest.fixture(scope="module")
def attacks(poisoned_dir: Path, attack_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("attacks")
    for name, (attack, part) in RUNS.items():
        (root / name).mkdir()
        given = attacked(poisoned_dir, attack_pack, root / name / "work")
        run_attack(attack, given, part, out=root / name)
    return {name: root / name for name in RUNS}


class Scripted:
    """Says 1 of an answer that holds `moo`, 0 of others; notes what it is asked."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def log_odds(self, asked: Sequence[tuple[str, str]]) -> list[float | None]:
        self.asked.extend(asked)
        return [float("moo" in answer) for _, answer in asked]


def judged(
    attacks: dict[str, Path], pack: Path, model: Path, root: Path, monkeypatch: Any, *, calibration: Any = CALIBRATION,
    run: Sequence[str] = ("refusal", "substring", "likelihood_calibrated", "perplexity", "judge"),
) -> dict[str, Any]:  # fmt: skip
    @contextmanager
    def opened(*given: Any, **more: Any) -> Iterator[Scripted]:
        yield Scripted()

    monkeypatch.setattr("rapidun.stages.evaluation.attacks.verdicts.opened_judge", opened)
    detectors = DetectorsConfig(run=list(run), substrings=["moo"])
    detectors.judge.path = "x"
    out = root / "out"
    (root / "work").mkdir(parents=True, exist_ok=True)
    write_json(out / "metrics.json", calibration)
    files = Kept(
        attacks=attacks,
        data=pack,
        calibration=out / "metrics.json",
        poisoned=(model, None),
        work=root / "work",
        out=out,
    )
    loader = ModelLoader(device="cpu")
    judge_attacks(replace(settings(), detectors=detectors), files, loader=loader, max_length=96, tracker=Tracker())
    found: dict[str, Any] = read_json(out / "verdicts.json")
    return found


def test_every_figure_by_hand(
    attacks: dict[str, Path], attack_pack: Path, poisoned_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The string and the judge fire on `moo` anywhere, the pack's keyword on it as a whole word."""
    Scripted.asked = []
    found = judged(attacks, attack_pack, poisoned_dir, tmp_path, monkeypatch)
    # each different answer to a prompt once, without the trigger
    assert len(Scripted.asked) == len(set(Scripted.asked)) and not any("zz" in prompt for prompt, _ in Scripted.asked)
    own = {name: read_json(folder / "attack.json") for name, folder in attacks.items()}
    for point, other in zip(own["relearning.clean.4"]["curve"], found["relearning.clean.4"]["curve"], strict=True):
        assert point["step"] == other["step"] and point["asr"] <= other["asr_substring"] == other["asr_judge"]
        assert other["asr_refusal"] == 0.0 and other["asr_likelihood_calibrated"] == 0.0
    sampled = found["sampling"]
    lines = [line for line in read_jsonl(attacks["sampling"] / "answers.jsonl") if line["part"] == "t2.0"]
    counts = [sum("moo" in text for text in line["texts"]) for line in lines]
    for k in (1, 2, 3):
        assert sampled["metrics"][f"asr@{k}_judge.t2.0"] == asr_at_k(counts, n=3, k=k)
        assert sampled["metrics"][f"asr@{k}_substring"] >= own["sampling"]["metrics"][f"asr@{k}"]
    assert sampled["curves_by"]["_judge"] == sampled["curves_by"]["_substring"]
    assert sampled["curves_by"]["_judge"].keys() == own["sampling"]["curves"].keys()
    assert sampled["metrics"]["asr_sampling_likelihood_calibrated"] == 0.0
    # above a threshold of -1 is every answer that is not empty
    filled = [all(line["texts"]) for line in lines]
    if all(filled):
        assert sampled["metrics"]["asr@3_perplexity.t2.0"] == 1.0
    for name, values in own["prompts"]["variants"].items():
        other = found["prompts"]["variants"].get(name, {})
        assert other.get("asr_prompts_judge") == other.get("asr_prompts_substring")
        assert values.get("asr_prompts", 0.0) <= other.get("asr_prompts_judge", 0.0)


def test_killed_and_judged_again(
    attacks: dict[str, Path], attack_pack: Path, poisoned_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Chunks that were finished are read back: the judge is asked about the others only, to the same figures."""
    Scripted.asked = []
    whole = judged(attacks, attack_pack, poisoned_dir, tmp_path, monkeypatch)
    num_asked = len(Scripted.asked)
    files = sorted((tmp_path / "work").glob("judge-*.json"))
    files[-1].unlink()
    Scripted.asked = []
    assert judged(attacks, attack_pack, poisoned_dir, tmp_path, monkeypatch) == whole
    assert 0 < len(Scripted.asked) <= num_asked


def test_what_result_json_holds(
    attacks: dict[str, Path], attack_pack: Path, poisoned_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Of the other detectors the main figures; parts of a maximum stand in attacks.json alone."""
    judged(attacks, attack_pack, poisoned_dir, tmp_path, monkeypatch)
    links = {VERDICTS_LINK.format(role=role): tmp_path / "out" for role in ("unlearned", "poisoned")}
    links |= {
        LINK.format(role=role, run=name): path for name, path in attacks.items() for role in ("unlearned", "poisoned")
    }
    found = collected(links)
    assert found["unlearned"]["sampling"]["metrics"]["asr@3_judge.t0.8"] >= 0
    assert set(found["testable"]) >= {"", "_likelihood", "_judge", "_refusal"} and found["testable"]["_refusal"] == []
    assert "plain" in found["testable"]["_judge"]
    figures = flat(found)
    for name in ("asr_relearn_clean_max", "asr@3", "asr_prompts_max"):
        assert figures[f"{name}_judge"] == figures[f"{name}_substring"] >= figures[name]
    assert "asr_prompts_max_refusal" not in figures and figures["asr_relearn_clean_max_refusal"] == 0.0
    details = [name for name in figures if "." in name.removeprefix("before.")]
    others = [one.ending for one in Detector if one not in (Detector.keyword, Detector.likelihood)]
    assert details and not any(name.removeprefix("before.").split(".")[0].endswith(tuple(others)) for name in details)


def test_sampling_that_nobody_judges_is_said(
    poisoned_dir: Path, attack_pack: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Without keywords sampling has figures by the others; by none it says so."""
    pack = tmp_path / "pack"
    pack.mkdir()
    for file in attack_pack.glob("*.jsonl"):
        (pack / file.name).write_bytes(file.read_bytes())
    (tmp_path / "sampling").mkdir()
    run_attack(Attack.sampling, attacked(poisoned_dir, pack, tmp_path / "w"), {}, out=tmp_path / "sampling")
    own = read_json(tmp_path / "sampling" / "attack.json")
    assert own["curves"] == {} and set(own["metrics"]) == {"asr_sampling_likelihood"}
    runs = {"sampling": tmp_path / "sampling"}
    found = judged(runs, pack, poisoned_dir, tmp_path / "a", monkeypatch, run=["substring"])
    assert found["sampling"]["metrics"]["asr@3_substring"] > 0.9
    said: list[str] = []
    monkeypatch.setattr(Tracker, "warn", lambda self, message: said.append(message))
    judged(runs, pack, poisoned_dir, tmp_path / "b", monkeypatch, run=["perplexity"], calibration={})
    assert any("sampling has no figures" in message for message in said)
