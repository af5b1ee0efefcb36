"""`rapidun export`: what comes out loads in a bare process elsewhere and answers as the evaluation wrote."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rapidun
from rapidun.base.files import read_jsonl
from rapidun.cli.main import main

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
