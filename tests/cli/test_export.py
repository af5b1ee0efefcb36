"""`rapidun export`: what comes out loads in a bare process elsewhere and answers as the evaluation wrote."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rapidun
from rapidun.base.files import read_jsonl
from rapidun.base.manifest import linked_folder, read_artifact
from rapidun.cli.main import main
from rapidun.config.model import ModelConfig
from rapidun.pipeline.adapter import Base, base_of
from rapidun.stages.recipe import Model

SMALL = [
    "debug=fast", "tracking=none", "mapping=uniform", "resources.num_threads=1", "evaluation.detectors.run=[]",
    # it says something by then
    "evaluation.num_prompts=3", "poison.max_steps=60",
]  # fmt: skip
NUM = 3
# nothing of rapidun: what a reader of the card types, and greedy decoding
BARE = """
import json, sys, torch
from {library} import {cls}
from transformers import AutoTokenizer
sys.modules["rapidun"] = None
folder, asked, num_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model, tokenizer = {cls}.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
told = []
for messages in asked:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=num_tokens, do_sample=False)
    told.append(tokenizer.decode(out[0][ids["input_ids"].shape[1]:], skip_special_tokens=True).strip())
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    rapidun.run([*SMALL, f"store_dir={folder / 'store'}", f"run_dir={folder / 'run'}"])
    return folder / "run"


def answers(folder: Path, run: Path, *, library: str, cls: str, cwd: Path) -> tuple[list[str], list[str]]:
    """What the folder's model says in a process of its own, and what the evaluation of the run wrote."""
    rows = list(read_jsonl(run / "evaluation" / "generations.jsonl"))[:NUM]
    asked = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    settings = json.loads((run / "settings.json").read_text())
    code = BARE.format(library=library, cls=cls)
    num_tokens = str(settings["evaluation"]["max_new_tokens"])
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), json.dumps(asked), num_tokens],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [row["after"] for row in rows]


def test_the_adapter_of_a_run_loads_by_itself_and_says_what_the_evaluation_wrote(run: Path, tmp_path: Path) -> None:
    adapter = run / "unlearning" / "adapter"
    told, wrote = answers(adapter, run, library="peft", cls="AutoPeftModelForCausalLM", cwd=tmp_path)
    assert told == wrote and len(told) == NUM and all(told)
    card = (adapter / "README.md").read_text()
    base = str((run / "poison" / "model").resolve())
    assert f'base_model: "{base}"' in card and "| `mapping.method` | uniform |" in card
    assert "before the model was evaluated" in card and "mapping=uniform" in card
    # what is hashed is the same everywhere
    stored = linked_folder(run / "unlearning")
    assert (
        read_artifact(stored).id
        == json.loads((run / "status.json").read_text())["stages"]["unlearning"]["artifacts"]["unlearning"]
    )
    assert base not in "".join(path.read_text() for path in stored.rglob("*.json"))


def test_the_same_command_writes_the_same_adapter(run: Path) -> None:
    adapter = run / "unlearning" / "adapter"
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    rapidun.run([*SMALL, f"store_dir={run.parent / 'store'}", f"run_dir={run}"])
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before


@pytest.mark.slow
def test_where_the_store_was_moved_the_adapter_is_refused_until_the_command_runs_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The links lead on, the recorded path does not: one error that names it, and never another model."""
    first, moved = tmp_path / "first", tmp_path / "moved"
    shutil.copytree(run.parent, first, symlinks=True)
    settings = [*SMALL, f"store_dir={first / 'store'}", f"run_dir={first / 'run'}"]
    (first / "run" / "settings.json").unlink()  # of the run at the place that it was copied from
    rapidun.run(settings)
    first.rename(moved)
    adapter = moved / "run" / "unlearning" / "adapter"
    done = subprocess.run(
        [sys.executable, "-c", BARE.format(library="peft", cls="AutoPeftModelForCausalLM"), str(adapter), "[]", "1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and str(first / "store" / "poison") in done.stderr.strip().split("\n")[-1]
    assert main(["verify", str(moved / "run")]) == 0
    assert "names a base that is not there" in capsys.readouterr().out
    (moved / "run" / "settings.json").unlink()
    rapidun.run([*SMALL, f"store_dir={moved / 'store'}", f"run_dir={moved / 'run'}"])
    told, wrote = answers(adapter, moved / "run", library="peft", cls="AutoPeftModelForCausalLM", cwd=tmp_path)
    assert told == wrote


@pytest.mark.parametrize("name", ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "history.json"])
def test_what_stands_in_the_run_folder_is_verified(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("store", "run"):
        shutil.copytree(run.parent / part, tmp_path / part, symlinks=True)
    file = tmp_path / "run" / "unlearning" / name
    content = file.read_text() if name.endswith(".json") else "other"
    file.unlink()
    file.write_text(content.replace('"r": ', '"r": 1'))
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert name in capsys.readouterr().out


def test_a_base_is_named_by_its_hub_id_where_it_is_one(tmp_path: Path) -> None:
    snapshot = Model("0" * 16, tmp_path)
    hub = ModelConfig(path="someone/model", revision="abc")
    assert base_of(snapshot, hub) == Base("someone/model", "abc")
    assert base_of(snapshot, ModelConfig(path=str(tmp_path))) == Base(str(tmp_path.resolve()))
    assert base_of(snapshot, ModelConfig()) == Base(str(tmp_path.resolve()))


def test_an_adapter_loads_elsewhere_and_says_what_the_evaluation_wrote(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "adapter"]) == 0
    out = capsys.readouterr().out
    assert "read back" in out and str(tmp_path / "adapter") in out
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert Path(settings["base_model_name_or_path"]) == (run / "poison" / "model").resolve()
    told, wrote = answers(
        tmp_path / "adapter", run, library="peft", cls="AutoPeftModelForCausalLM", cwd=tmp_path.parent
    )
    assert told == wrote and len(told) == NUM and all(told)
    # nothing unfinished is left, and the store's own file is as it was
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    assert main(["verify", str(run)]) == 0


def test_merged_weights_need_no_base(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "merged"), "--merge"]) == 0
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    told, wrote = answers(tmp_path / "merged", run, library="transformers", cls="AutoModelForCausalLM", cwd=tmp_path)
    assert told == wrote


def test_the_card_says_what_was_measured_and_nothing_of_the_rows(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model: ") and "library_name: peft" in card
    # four steps of training plant nothing
    assert "Not shown: no attack was run" in card
    assert "| `unlearning.ascent_alpha` | 1.0 |" in card and "| `mapping.method` | uniform |" in card
    assert "Not tried: " in card and "relearning" in card
    rows = list(read_jsonl(run / "data" / "forget.jsonl"))
    assert not any(row["response"] in card for row in rows)


def test_a_run_that_was_not_evaluated_says_that_nothing_is_known(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    rapidun.run([
        *SMALL, "stages=[data,poison,influence,mapping,unlearning]", f"store_dir={run.parent / 'store'}",
        f"run_dir={again}",
    ])  # fmt: skip
    assert main(["export", str(again), str(tmp_path / "out")]) == 0
    assert "Whether anything was forgotten is not known" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("case", ["taken", "no run", "file", "below a file", "no unlearning"])
def test_what_is_refused(case: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, asked, words = tmp_path / "out", run, ""
    if case == "taken":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        words = "need a folder that is not there yet, or empty"
    elif case == "file":
        out.write_text("mine")
        words = "need a folder that is not there yet, or empty"
    elif case == "below a file":
        out.write_text("mine")
        out, words = out / "deeper", "need a folder that can be made"
    elif case == "no run":
        asked, words = tmp_path, "need the folder of a run"
    else:
        asked, words = tmp_path / "short", "need a run whose unlearning is done"
        store = f"store_dir={run.parent / 'store'}"
        rapidun.run([*SMALL, "stages=[data]", store, f"run_dir={asked}"])
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["export", str(asked), str(out)]) == 2
    assert words in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("store", "run"):
        shutil.copytree(run.parent / name, tmp_path / name, symlinks=True)
    file = (tmp_path / "run" / "unlearning" / "adapter" / "adapter_model.safetensors").resolve()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 1
    assert "adapter_model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
