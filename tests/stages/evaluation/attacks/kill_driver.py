"""Run by test_kill.py in a process of its own: attacks, is killed by SIGKILL in the middle, attacks again.

Every attempt is a forked child, killed for real. Prints one JSON object: scenario -> what attack.json then holds, and
how many children were killed.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))

import bitsandbytes  # noqa: E402, F401
import peft  # noqa: E402, F401
from attacks_pack import attacked  # noqa: E402

from rapidun.base.tracker import Tracker  # noqa: E402
from rapidun.config.attacks import Attack  # noqa: E402
from rapidun.models.training.journal import JournalCallback  # noqa: E402
from rapidun.stages.evaluation import chunks  # noqa: E402
from rapidun.stages.evaluation.attacks import asking, prompts, quantisation, sampling  # noqa: E402
from rapidun.stages.evaluation.attacks.run import run_attack  # noqa: E402

# chunks small enough that a kill falls between them
for module in (asking, prompts, quantisation):
    module.CHUNK = 2  # type: ignore[attr-defined]
sampling.CHUNK = 6
os.fsync = lambda handle: None  # SIGKILL leaves the page cache alone


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAt(Tracker):
    """Kills its own process when the training line of a step arrives."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step = step

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        if step is not None and step == self.step and any(name.endswith("_loss") for name in metrics):
            die()


def kill_at_chunk(call: int) -> Callable[[], None]:
    """Die before the `call`-th chunk of this attempt is written."""

    def prepare() -> None:
        write, calls = chunks.write_json, [0]

        def write_json(path: Path, value: object) -> None:
            calls[0] += 1
            if calls[0] == call:
                die()
            write(path, value)

        chunks.write_json = write_json

    return prepare


def kill_in_merge() -> None:
    """Die when the merged model is written, before its marker is."""
    save = quantisation.save_merged

    def save_merged(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        die()

    quantisation.save_merged = save_merged


def kill_before_marker() -> None:
    original = JournalCallback.on_save

    def on_save(self: JournalCallback, *args: Any, **kwargs: Any) -> None:
        if self.journal.counts["steps"] == 4:
            die()
        original(self, *args, **kwargs)

    JournalCallback.on_save = on_save  # type: ignore[method-assign]


Kill = dict[str, Any]
RELEARNING: list[Kill] = [{"step": 1}, {"step": 3}, {"prepare": kill_before_marker}, {"step": 6}]
SCENARIOS: dict[str, tuple[Attack, dict[str, Any], list[Kill]]] = {
    "sampling": (Attack.sampling, {}, [{"prepare": kill_at_chunk(call)} for call in (2, 2, 1)]),
    "prompts": (Attack.prompts, {}, [{"prepare": kill_at_chunk(call)} for call in (2, 5, 9)]),
    "quantisation": (
        Attack.quantisation, {},
        [{"prepare": kill_in_merge}, *({"prepare": kill_at_chunk(call)} for call in (1, 5, 3))],
    ),
    "relearning": (Attack.relearning, {"rows": "poisoned", "k": 4}, RELEARNING),
}  # fmt: skip


def attempt(
    root: Path, name: str, out: Path, *, prepare: Callable[[], None] | None = None, step: int | None = None
) -> bool:
    """Run in a child; True if it was killed."""
    child = os.fork()
    if child == 0:
        try:
            if prepare is not None:
                prepare()
            attack, part, _ = SCENARIOS[name]
            adapter = root / "adapter" if name == "quantisation" else None
            given = attacked(root / "model", root / "pack", out / "work", adapter=adapter, tracker=KillAt(step))
            run_attack(attack, given, part, out=out)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit(1)
    return False


def scenario(root: Path, name: str, kills: list[Kill]) -> dict[str, Any]:
    out = root / f"{name}-{len(kills)}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    killed = sum(attempt(root, name, out, **kill) for kill in kills)
    attempt(root, name, out)
    return {"text": (out / "attack.json").read_text() + (out / "answers.jsonl").read_text(), "killed": killed}


def main(root: Path, names: list[str]) -> None:
    found = {}
    for name in names:
        found[name] = scenario(root, name, SCENARIOS[name][2])
        found[f"{name}-alone"] = scenario(root, name, [])
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
