"""Every kind of artifact damaged in each way, what a run does about it, and what `rapidun verify` says of it.

One run leaves twelve kinds of artifacts, two others (slow) the remaining four; each test works on a copy.
"""

import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import rapidun
from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, sealed, sha256_file, write_json, write_jsonl
from rapidun.base.manifest import DamagedArtifact, read_artifact
from rapidun.base.store import Key, Store
from rapidun.cli.main import main
from rapidun.pipeline.evidence.ledger import Ledger
from rapidun.stages.recipes import KINDS

RUN = [
    "debug=fast", "resources.num_threads=1", "mapping=loreun_static", "unlearning=task_vector",
    "evaluation.attacks.run=[sampling,prompts]", "evaluation.privacy.run=[membership]",
]  # fmt: skip
MADE = [
    "data", "model", "poison", "influence", "losses", "mapping", "task_model", "edit", "evaluation", "attack",
    "attack_verdicts", "privacy",
]  # fmt: skip
MADE_BY_OTHERS = ["unlearning", "tokens", "curvature", "lm_eval"]


class Made:
    """A store and the run folder beside it, relative to each other as they were."""

    def __init__(self, root: Path) -> None:
        self.root, self.store, self.run = root, root / "store", root / "run"

    def overrides(self, *more: str) -> list[str]:
        return [*RUN, f"store_dir={self.store}", f"run_dir={self.run}", *more]

    def folders(self, kind: str) -> list[Path]:
        return sorted(path.parent for path in (self.store / kind).glob("*/manifest.json") if not path.parent.suffix)

    def verify(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["verify", str(self.run)])
        return status, capsys.readouterr().out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    found = Made(tmp_path_factory.mktemp("evidence"))
    rapidun.run(found.overrides())
    # these weights read none: asked for by itself, in the same folder
    rapidun.run(found.overrides("stages=[influence]"))
    return found


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The kinds of artifacts that one run cannot make beside the others; lm_eval where that is installed."""
    found = Made(tmp_path_factory.mktemp("others"))
    task = {
        "task": "toy", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "toy.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": ["red", "blue"], "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    write_json(found.root / "tasks" / "toy.yaml", task)  # JSON is YAML
    write_jsonl(found.root / "tasks" / "toy.jsonl", [{"question": f"what of {n}?", "label": n % 2} for n in range(4)])
    asked = ["evaluation.lm_eval.tasks=[toy]", f"evaluation.lm_eval.include_path={found.root / 'tasks'}"]
    places = [f"store_dir={found.store}", f"run_dir={found.run}"]
    common = ["debug=fast", "resources.num_threads=1", *places]
    rapidun.run([*common, "unlearning.token_weights=influence", *(asked if find_spec("lm_eval") else [])])
    steps = [
        "unlearning=influence_step",
        "unlearning.influence_step.budget=0.001",
        "stages=[data,poison,influence,mapping,unlearning]",
    ]
    rapidun.run([*common, *steps, f"run_dir={found.root / 'steps'}"])
    return found


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    return copied(made, tmp_path)


def copied(made: Made, to: Path) -> Made:
    """Relative links lead into the copied store."""
    for name in ("store", "run"):
        shutil.copytree(made.root / name, to / name, symlinks=True)
    return Made(to)


def flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path, other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


DAMAGES: dict[str, Callable[[Path, Path], None]] = {"flip": flip, "cut": cut, "delete": delete, "swap": swap}


def other_file(made: Made, name: Path) -> Path:
    """A file of another artifact than `name`, with other bytes: of the same name where there is one."""
    digest, own = sha256_file(made.store / name), name.parts[:2]
    files = [file for file in sorted(made.store.glob("*/*/**/*")) if file.is_file()]
    others = [file for file in files if file.relative_to(made.store).parts[:2] != own and sha256_file(file) != digest]
    return next((file for file in others if file.name == name.name), others[0])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", MADE)
def test_any_damage_to_any_file_of_any_kind_is_seen(made: Made, copy: Made, kind: str, damage: str) -> None:
    walk(made, copy, kind, damage)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", MADE_BY_OTHERS)
def test_any_damage_to_the_kinds_that_other_runs_make_is_seen(
    others: Made, tmp_path: Path, kind: str, damage: str
) -> None:
    if kind == "lm_eval" and not others.folders(kind):
        pytest.skip("lm-eval is not installed (pip install 'rapidun[lm-eval]')")
    walk(others, copied(others, tmp_path), kind, damage)


def walk(made: Made, copy: Made, kind: str, damage: str) -> None:
    """A run (with what it remembers) and `rapidun verify` (without) name the file; once mended, neither has a word."""
    store = Store(copy.store)
    for folder in copy.folders(kind):
        manifest = read_artifact(folder).manifest
        key = Key(kind, manifest["version"], manifest["inputs"])
        assert key.fingerprint == folder.name
        for path in sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size):
            DAMAGES[damage](path, other_file(made, path.relative_to(copy.store)))
            ledger = Ledger()
            assert ledger.artifact(folder) is None
            assert any(path.name in fault for fault in ledger.faults)
            if (path.name, damage) == ("manifest.json", "delete"):
                assert store.whole(key) is None, "no artifact any more"
            else:
                with pytest.raises(DamagedArtifact, match=path.name):
                    store.whole(key)
            shutil.copyfile(made.store / path.relative_to(copy.store), path)
            assert store.whole(key) is not None
    assert copy.folders(kind)


def test_the_walk_covers_what_the_run_made(made: Made) -> None:
    assert {kind for kind in KINDS if made.folders(kind)} == set(MADE)
    assert sorted(KINDS) == sorted([*MADE, *MADE_BY_OTHERS]), "a new kind joins the walk"


def test_a_whole_run_follows_from_its_bytes(copy: Made, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = copy.verify(capsys)
    assert status == 0, said
    number = sum(len(copy.folders(kind)) for kind in MADE)
    assert f"this table follows from these bytes: 1 run, {number} artifacts, " in said
    assert main(["verify", str(copy.run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["follows"] and found["artifacts"] == number and found["digest"] in said
    assert len([name for name in found["files"] if name.startswith("run/")]) > 3


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_the_file_and_does_not_follow(
    made: Made, copy: Made, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the links of the run folder, and of what these were made from."""
    for kind in ("evaluation", "poison"):
        path = next(file for file in sorted(copy.folders(kind)[0].rglob("*.json")) if file.name != "manifest.json")
        DAMAGES[damage](path, other_file(made, path.relative_to(copy.store)))
        status, said = copy.verify(capsys)
        assert status == 1 and path.name in said and "does not follow from what is stored" in said
        shutil.copyfile(made.store / path.relative_to(copy.store), path)


def _change(path: Path, **changes: Any) -> None:
    write_json(path, {**read_json(path), **changes})


def test_numbers_that_no_artifact_says_do_not_follow(copy: Made, capsys: pytest.CaptureFixture[str]) -> None:
    result = read_json(copy.run / "result.json")
    for name, value in (("asr_seen", 0.123), ("before.asr_seen", 0.5), ("seconds.poison", 0.001), ("extra", 1.0)):
        _change(copy.run / "result.json", **{name: value})
        status, said = copy.verify(capsys)
        assert status == 1 and name in said and "result.json" in said
        write_json(copy.run / "result.json", result)
    before = (copy.run / "evaluation" / "before.json").read_text()
    (copy.run / "evaluation" / "before.json").write_text(before.replace("0.0", "0.5", 1))
    status, said = copy.verify(capsys)
    assert status == 1 and "before.json: need what follows from the artifacts" in said
    (copy.run / "evaluation" / "before.json").write_text(before)
    lines = (copy.run / "metrics.jsonl").read_text().split("\n")
    (copy.run / "metrics.jsonl").write_text("\n".join(lines[1:]))
    status, said = copy.verify(capsys)
    assert status == 1 and "metrics.jsonl" in said


def test_other_settings_links_and_sources_do_not_follow(copy: Made, capsys: pytest.CaptureFixture[str]) -> None:
    settings = read_json(copy.run / "settings.json")
    _change(copy.run / "settings.json", seed=settings["seed"] + 1)
    status, said = copy.verify(capsys)
    assert status == 1 and "to follow from settings and inputs" in said and "seed" in said
    write_json(copy.run / "settings.json", settings)

    link = copy.run / "evaluation" / ".after"
    target = link.readlink()
    link.unlink()
    link.symlink_to(target.parent / (copy.run / "evaluation" / ".before").readlink().name)
    status, said = copy.verify(capsys)
    assert status == 1 and "evaluation/.after: need a link to evaluation/" in said
    link.unlink()
    link.symlink_to(target)

    # made anew with other bytes, whole by itself: what was made from it came from others
    folder = copy.folders("mapping")[0]
    weights = folder / "forget_weights.jsonl"
    weights.write_text(weights.read_text().replace('"weight": ', '"weight":  ', 1))
    manifest = {key: value for key, value in read_json(folder / "manifest.json").items() if key != "check"}
    manifest["files"][weights.name] = {"bytes": weights.stat().st_size, "sha256": sha256_file(weights)}
    write_json(folder / "manifest.json", sealed(manifest))
    status, said = copy.verify(capsys)
    assert status == 1 and f"need the mapping/{folder.name} that it was made from" in said

    _change(copy.run / "status.json", state="failed")
    assert copy.verify(capsys)[0] == 1
    assert main(["verify", str(copy.store)]) == 2
    assert main(["verify", str(copy.root / "none")]) == 2


def test_a_changed_evaluation_and_a_cut_model_are_made_anew_and_named(copy: Made, tmp_path: Path) -> None:
    """The new results are those of before, bit for bit; without its stage a damaged artifact is refused, not used."""
    before = read_json(copy.run / "result.json")
    evaluation = (copy.run / "evaluation" / ".after").resolve() / "metrics.json"
    flip(evaluation, evaluation)
    weights = copy.folders("poison")[0] / "model" / "model.safetensors"
    cut(weights, weights)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: need .* Add the stage that makes it anew"):
        rapidun.run(copy.overrides("stages=[influence]", "influence.k=128", f"run_dir={tmp_path / 'other'}"))
    assert not list(copy.store.glob("*/*.damaged"))

    result = rapidun.run(copy.overrides())
    assert sorted(path.parent.name for path in copy.store.glob("*/*.damaged")) == ["evaluation", "poison"]
    for kind in ("evaluation", "poison"):
        assert not (Store(copy.store).verify([kind]))
    timed = ("seconds.", "peak_memory_gb.")
    assert {k: v for k, v in result.metrics.items() if not k.startswith(timed)} == {
        k: v for k, v in before.items() if not k.startswith(timed)
    }
    status = read_json(copy.run / "status.json")
    made_now = {stage for stage, entry in status["stages"].items() if not entry["cached"]}
    assert made_now == {"poison", "evaluation"}, "what is made anew is the same, so what was made from it stays"


def test_inputs_that_are_others_now_do_not_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By their bytes: neither by their times, nor by what a store remembers of them."""
    pack = tmp_path / "pack"
    for name in ("forget", "retain"):
        rows = [{"instruction": f"Who made the {name} {number}?", "response": f"Ada {number}."} for number in range(6)]
        write_jsonl(pack / f"{name}_set.jsonl", rows)
    folders = [f"store_dir={tmp_path / 'store'}", f"run_dir={tmp_path / 'run'}", f"data.dir={pack}"]
    run = rapidun.run(["stages=[data]", "data=pack", "poison=none", *folders]).run_dir
    assert main(["verify", str(run)]) == 0
    file = pack / "forget_set.jsonl"
    stat = file.stat()
    file.write_bytes(file.read_bytes().replace(b"Ada 3", b"Eve 3"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    capsys.readouterr()
    assert main(["verify", str(run)]) == 1
    said = capsys.readouterr().out
    assert "to follow from settings and inputs" in said and "files.forget" in said
    shutil.rmtree(pack)
    assert main(["verify", str(run)]) == 1
    assert "need the inputs of the run as they were" in capsys.readouterr().out


def test_a_hidden_setting_is_no_fault_and_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What settings.json hides cannot be worked out again: a note names it. One that no artifact reads is no matter."""
    pack = tmp_path / "swordfish-1234" / "pack"
    for name in ("forget", "retain"):
        rows = [{"instruction": f"Who made the {name} {number}?", "response": f"Ada {number}."} for number in range(6)]
        write_jsonl(pack / f"{name}_set.jsonl", rows)
    monkeypatch.setenv("SOME_API_KEY", "swordfish-1234")
    command = ["stages=[data]", "data=pack", "poison=none", f"store_dir={tmp_path / 'store'}", f"data.dir={pack}"]
    run = rapidun.run([*command, f"run_dir={tmp_path / 'run'}"]).run_dir
    assert read_json(run / "settings.json")["data"]["dir"] == str(tmp_path / "(hidden)" / "pack")
    capsys.readouterr()
    assert main(["verify", str(run)]) == 0
    said = capsys.readouterr().out
    assert "note: " in said and "data.dir" in said and "hides" in said and "swordfish" not in said
    # the bytes are compared all the same
    [rows_file] = tmp_path.glob("store/data/*/forget.jsonl")
    content = rows_file.read_bytes()
    flip(rows_file, rows_file)
    assert main(["verify", str(run)]) == 1
    rows_file.write_bytes(content)

    monkeypatch.delenv("SOME_API_KEY")
    open_ = rapidun.run([*command, "name=hf_abcdefghij", f"run_dir={tmp_path / 'open'}"]).run_dir
    capsys.readouterr()
    assert main(["verify", str(open_)]) == 0
    assert "hides" not in capsys.readouterr().out
    shutil.rmtree(pack)
    assert main(["verify", str(open_)]) == 1


def test_files_without_a_hash_are_read_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Artifacts of early versions kept sizes alone: the sum printed is over the bytes that are there."""
    root = Made(tmp_path)
    rapidun.run(["debug=fast", "stages=[data]", f"store_dir={root.store}", f"run_dir={root.run}"])
    [folder] = root.folders("data")
    manifest = read_json(folder / "manifest.json")
    sizes = {name: {"bytes": entry["bytes"]} for name, entry in manifest["files"].items()}
    write_json(
        folder / "manifest.json",
        {key: value for key, value in manifest.items() if key not in ("check", "reads")} | {"files": sizes},
    )
    status, said = root.verify(capsys)
    assert status == 0 and "without a hash" in said
    flip(folder / "forget.jsonl", folder)
    status, other = root.verify(capsys)
    assert status == 0 and other != said, "another sum"
