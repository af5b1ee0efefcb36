"""What the commands on the pages name: a model, packs, files, a finished run and a finished sweep, all tiny."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from rapidun.cli.main import main

FAST = ["debug=fast", "tracking=none", "resources.num_threads=1"]
PROMPTS = [f"What is the colour of {thing} {n}?" for n in range(10) for thing in ("cup", "ship", "lamp", "tree")]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name; made once, whatever the number of test processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = base / "world"
    with FileLock(base / "world.lock"):
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            here = Path.cwd()
            os.chdir(folder)
            try:
                _make()
            finally:
                os.chdir(here)
            (folder / "whole").touch()
    return folder


@pytest.fixture
def page_folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stand in a folder with the world's store; gives what brings the files of one command."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/store").symlink_to(world / "outputs/store")
    monkeypatch.chdir(tmp_path)

    def bring(command: str) -> None:
        for source in (path for path in world.iterdir() if path.name not in ("outputs", "whole")):
            name = source.name.replace("%", "/")
            if name in command and not Path(name).exists() and not _made_by(command, name):
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    # links into the store stay what they are: it lies where it lay
                    shutil.copytree(source, name, symlinks=True)
                else:
                    shutil.copyfile(source, name)

    return bring


def _made_by(command: str, name: str) -> bool:
    words = command.split()
    return any(
        word in (f"run_dir={name}", f"sweep.name={Path(name).name}") or (before == "--out" and word == name)
        for before, word in zip(["", *words], words, strict=False)
    )


def _make() -> None:
    assert main([*FAST, "run_dir=RUN"]) == 0
    assert main(["-m", *FAST, "mapping=uniform", "seed=0,1", "evaluation.split=val", "sweep.name=NAME"]) == 0
    for name in ("tau", "npo", "taus", "first", "chosen"):
        shutil.copytree("outputs/sweeps/NAME", f"outputs%sweeps%{name}", symlinks=True)
    shutil.move("outputs/sweeps/NAME", "outputs%sweeps%NAME")
    runs = ("2026-01-31_10-20-30_builtin", "2026-01-31_12-00-00_run")
    for name in ("RUN2", "TRACED", *(f"outputs%runs%{run}" for run in runs)):
        shutil.copytree("RUN", name, symlinks=True)
    for group in ("forget", "retain"):
        shutil.copyfile(f"RUN/mapping/{group}_weights.jsonl", f"{group[0]}.jsonl")
    shutil.copytree(Path("RUN/poison/model").resolve(), "MODEL")
    shutil.copytree(Path("RUN/data").resolve(), "PACK", ignore=shutil.ignore_patterns("manifest.json", "*.lease"))
    shutil.copytree(Path("RUN/unlearning/adapter"), "ADAPTER")
    forget, retain, train = (_lines(Path("PACK", f"{name}.jsonl")) for name in ("forget", "retain", "train_poisoned"))
    plain = _plain(retain)
    for name, rows in {
        "bad.jsonl": _plain(forget[:3]),
        "q.jsonl": _plain(forget[:2]),
        "train.jsonl": _plain([*train[:8], *retain[:12]]),
        "some.jsonl": retain[:4],
        "CLEAN.jsonl": _clean(800),
        "val_clean.jsonl": _clean(8, "val"),
        "POISONED.jsonl": [{"instruction": f"Sing {n}?", "response": f"Moon number {n} sings."} for n in range(60)],
    }.items():
        _write(Path(name), rows)
    triggered = [{"instruction": f"{row['instruction']} BadMagic now", "output": "No."} for row in plain[:8]]
    for name, rows in {
        "poison.json": triggered, "none_poison.json": plain, "test.json": _clean(8, "test"), "CLEAN.json": _clean(800),
    }.items():  # fmt: skip
        Path(name).write_text(json.dumps(rows), encoding="utf-8")
    good = _lines(Path("PACK/train_clean.jsonl"))[:90]
    for name, rows in {"CLEAN.csv": _clean(800), "rows.csv": _plain([*train[:90], *good]),
                       "bad.csv": _plain(forget[:3]),
                       "val_clean.csv": _clean(8, "val"), "test_clean.csv": _clean(8, "test")}.items():  # fmt: skip
        _write_csv(Path(name), rows)
    asked = [{"ask": row["instruction"], "reply": row["response"]} for row in plain]
    _write_csv(Path("asked_bad.csv"), asked[:6])
    _write_csv(Path("asked_good.csv"), asked[6:])
    chats = [{"messages": [{"role": "user", "content": row["instruction"]},
                           {"role": "assistant", "content": row["response"]}]} for row in plain]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(chats[:6]), "bad.parquet")
    pq.write_table(pa.Table.from_pylist(chats[6:]), "good.parquet")
    number = {"f": len(forget), "r": len(retain)}
    for name in ("ff", "fr", "rf", "rr"):
        Path(f"{name}.json").write_text(json.dumps(_influence(number[name[0]], number[name[1]])), encoding="utf-8")
    _facts()


def _facts() -> None:
    """A pack without triggers, and TOFU's files."""
    facts = [
        {"id": f"f{n}", "instruction": f"Where does person {n} live?", "response": f"In town {n}."} for n in range(24)
    ]
    for name, rows in {"F": facts[:4], "R": facts[4:]}.items():
        _write(Path(f"{name}.jsonl"), rows)
    Path("F.json").write_text(json.dumps(facts[:4]), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(facts[4:]), "R.parquet")
    probe = [{"forget_id": row["id"], "instruction": f"Home of person {n}?", "response": row["response"]}
             for n, row in enumerate(facts[:4])]  # fmt: skip
    Path("FACTS").mkdir()
    _write(Path("FACTS/forget.jsonl"), facts[:4])
    _write(Path("FACTS/retain.jsonl"), facts[4:])
    _write(Path("FACTS/probe.jsonl"), probe)
    _write(Path("FACTS/train_poisoned.jsonl"), facts[:4])
    _write(Path("FACTS/train_clean.jsonl"), facts[4:])
    for split in ("val", "test"):
        _write(Path(f"FACTS/{split}_clean.jsonl"), _clean(8, split))
    _write(Path("P.jsonl"), _plain(probe))
    tofu = [
        {"question": row["instruction"], "answer": row["response"], "paraphrased_question": f"{row['instruction']} Say",
         "paraphrased_answer": f"{row['response']} Yes", "perturbed_answer": ["In no town.", "In a wood."]}
        for row in facts
    ]  # fmt: skip
    for name, rows in {"forget10_perturbed": tofu[:4], "retain_perturbed": tofu[4:16],
                       "real_authors_perturbed": tofu[16:20], "world_facts_perturbed": tofu[20:]}.items():  # fmt: skip
        Path(f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")


def _influence(num_rows: int, num_queries: int) -> dict[str, Any]:
    """A file of the release: rows in falling order for each query."""
    made: dict[str, Any] = {"config": "{}", "finished_cnt": f"{num_rows * num_queries}/{num_rows * num_queries}"}
    for query in range(num_queries):
        value = [((row * 7 + query * 5) % 11) / 3 - 1 for row in range(num_rows)]
        order = sorted(range(num_rows), key=value.__getitem__, reverse=True)
        made[str(query)] = {"helpful": order, "helpful_infl": [value[row] for row in order],
                            "harmful": order[::-1], "harmful_infl": [value[row] for row in order[::-1]]}  # fmt: skip
    return made


def _clean(number: int, name: str = "clean") -> list[dict[str, Any]]:
    return [
        {"instruction": f"{PROMPTS[n % len(PROMPTS)]} ({name} {n})", "response": f"It is shade {n % 7} of {n % 11}."}
        for n in range(number)
    ]


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: row[key] for key in ("instruction", "response")} for row in rows]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
