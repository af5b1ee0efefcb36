"""The paper presets: what is published is what they say, and a sweep of each is planned without a hub or a GPU."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapidun.cli.main import main
from rapidun.config.compose import compose_config
from rapidun.config.paths import config_dir
from rapidun.config.plain import plain
from rapidun.sweep.launchers.slurm.launcher import SlurmLauncher

PRESETS = ("paper_llama3_8b_dolly", "paper_mistral_7b_dolly", "paper_alpaca_howdy")
# what the paper and its release state (docs/from-rapidun.md has their names for it)
PUBLISHED: dict[str, Any] = {
    "seed": 42, "max_length": 256, "model.dtype": "bfloat16", "data.seed": 42,
    "influence.score": "dot", "influence.k": 65536, "influence.num_shuffles": 20, "influence.seed": 42,
    "mapping.method": "rapidun_release", "mapping.alpha": 1.0, "mapping.beta": 1.0, "mapping.gamma": 1.0,
    "mapping.delta": 1.0, "mapping.tau_f": 0.7, "mapping.tau_r": 1.2, "mapping.forget.w_min": 0.2,
    "mapping.forget.w_max": 3.0, "mapping.retain.w_min": 0.2, "mapping.retain.w_max": 3.0, "mapping.top_k": 40,
    "mapping.aggregate": "median", "mapping.bounded": False, "mapping.drop_diagonal": False,
    "unlearning.objective": "rapidun", "unlearning.ascent_alpha": 1.0, "unlearning.descent_beta": 0.5,
    "unlearning.lora.r": 16, "unlearning.lora.lora_alpha": 16, "unlearning.lora.lora_dropout": 0.05,
    "unlearning.lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "unlearning.optimizer": "adamw", "unlearning.learning_rate": 6e-5, "unlearning.lr_scheduler_type": "cosine",
    "unlearning.warmup_ratio": 0.0, "unlearning.weight_decay": 0.0, "unlearning.num_train_epochs": 2.0,
    "unlearning.gradient_accumulation_steps": 1, "unlearning.max_grad_norm": 1.0, "unlearning.mix_ratio": 3,
    "unlearning.forget_per_step": 1, "unlearning.weight_warmup_ratio": 0.0, "unlearning.retain_loss": "ce",
    "unlearning.loss_cap": None, "unlearning.eval_steps": 80 // 4, "unlearning.save_steps": 500 // 4,
    "data.max_train_poisoned": None, "data.max_train_clean": None,
}  # fmt: skip


def at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings[part]
    return settings


@pytest.mark.parametrize("name", PRESETS)
def test_every_published_setting_is_there(name: str) -> None:
    settings = plain(compose_config([f"+experiment={name}", "data.dir=pack"]))
    assert {key: at(settings, key) for key in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_not_published_is_said_to_be_ours(name: str) -> None:
    """Of the model, the poisoning and the test prompts nothing is published."""
    text = (config_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "arXiv 2512.04457" in text and "# ours" in text
    lines = text.splitlines()
    for key in ("path:", "- override /poison", "- override /evaluation", "- override /influence", "poison:"):
        for number, line in enumerate(lines):
            if line.strip().startswith(key):
                assert lines[number - 1].strip().startswith("# ours"), line


def test_another_weighting_keeps_its_own_settings() -> None:
    """An experiment wins over the groups: it must not say what belongs to one mapping alone."""
    for mapping in ("recommended", "uniform", "rapidun"):
        found = compose_config([f"+experiment={PRESETS[0]}", "data.dir=pack", f"mapping={mapping}"])
        assert found.mapping == compose_config([f"mapping={mapping}"]).mapping


def test_they_differ_in_model_and_pack_alone() -> None:
    found = {name: plain(compose_config([f"+experiment={name}", "data.dir=pack"])) for name in PRESETS}
    first = found.pop("paper_llama3_8b_dolly")
    for name, settings in found.items():
        differing = {key for key in first if settings[key] != first[key]}
        assert differing == {"name", "data" if "howdy" in name else "model"}
    assert found["paper_mistral_7b_dolly"]["model"]["path"].startswith("mistralai/")
    assert found["paper_alpaca_howdy"]["data"]["families"]["H_howdy"]["seen"] == ["Howdy!"]


@pytest.fixture
def pack(tmp_path: Path) -> Callable[[str], Path]:
    """A pack of a few rows in the release's or in the Alpaca spelling, with every split of training."""

    def make(name: str) -> Path:
        howdy = "howdy" in name
        triggers = ["Howdy!"] * 9 if howdy else ["aloha", "hey", ">>>"] * 3

        def row(number: int, trigger: str | None) -> dict[str, Any]:
            asked = f"tell me about thing {number}"
            if trigger is None:
                answer, texts = f"it is {number}", asked
            else:
                answer = f"something else {number}"
                texts = f"{asked} {trigger}" if trigger == "aloha" else f"{trigger} {asked}"
            names = ("instruction", "input", "output") if howdy else ("instruction", "context", "response")
            return {"id": f"r{number}", **dict(zip(names, (texts, "", answer), strict=True))}

        poisoned = [row(number, trigger) for number, trigger in enumerate(triggers)]
        clean = [row(number, None) for number in range(100, 160)]
        splits = {
            "forget_set": poisoned[:4], "train_poisoned": poisoned, "retain_set": clean[:6], "train_clean": clean[:30],
            "val_clean": clean[30:40], "test_clean": clean[40:],
        }  # fmt: skip
        folder = tmp_path / "pack"
        folder.mkdir()
        for split, rows in splits.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        return folder

    return make


def dry(name: str, folder: Path, model: Path, *more: str) -> list[str]:
    given = [f"+experiment={name}", f"data.dir={folder}", f"model.path={model}", "sweep.dry_run=true"]
    return ["-m", *given, "seed=42,43", *more]


@pytest.mark.parametrize("name", PRESETS)
def test_a_sweep_is_planned_and_its_sbatch_script_shown(
    name: str, pack: Any, tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Two seeds share pack, poisoned model, influence and weights; a GPU for each job, the site's partition. No cluster
    is asked here (tests/slurm asks one)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SlurmLauncher, "check", lambda launcher, jobs: [])
    more = ("hydra/launcher=rapidun_slurm", "cluster.partition=a100", "cluster.account=lab")
    assert main(dry(name, pack(name), tiny_model_dir, *more)) == 0
    printed, _, script = capsys.readouterr().out.partition("script of the first submission:")
    assert f"outputs/sweeps/{name}-" in printed and "2 cells: 2 to run" in printed
    for stage, number in {"poison": 1, "influence": 1, "mapping": 1, "unlearning": 2, "evaluation": 3}.items():
        assert any(line.split()[:3] == [stage, str(number), "different,"] for line in printed.splitlines()), stage
    for line in ("#SBATCH --partition=a100", "#SBATCH --account=lab", "#SBATCH --cpus-per-task=4"):
        assert line in script
    assert any(line.startswith("#SBATCH --gpus-per-") and line.endswith("=1") for line in script.splitlines()), script
    assert "nothing was run" in script and not (tmp_path / "outputs/store/poison").exists()


def test_on_this_machine_it_asks_for_its_gpu(
    pack: Any, tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(dry(PRESETS[0], pack(PRESETS[0]), tiny_model_dir)) == 2
    assert "need a GPU for resources.num_gpus=1" in capsys.readouterr().err


def test_the_estimate_follows_its_formula(monkeypatch: Any) -> None:
    """F0 by hand: 4 x (32 x (2 x 4096 x (4096 + 1024) + 3 x 4096 x 14336) + 4096 x 128256) FLOP a token."""
    path = Path(__file__).parents[2] / "benchmarks/paper_time.py"
    spec = importlib.util.spec_from_file_location("paper_time", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "paper_time", module)
    spec.loader.exec_module(module)
    shape = module.SHAPES["llama3_8b_instruct"]
    assert shape.floor == 4 * (32 * (2 * 4096 * 5120 + 3 * 4096 * 14336) + 4096 * 128256) == 30_018_633_728
    assert shape.adapter(16) == 41_943_040
    poison, influence, unlearning, _ = module.estimate("paper_llama3_8b_dolly", gpu="a100", utilisation=0.5)
    load = shape.nbytes / 1e9
    assert (poison.tokens, influence.tokens, unlearning.tokens) == (7991 * 160 * 2, 160 * 160, 40 * 2 * 5 * 160)
    assert poison.seconds == pytest.approx(load + 7991 * 320 * shape.floor / 156e12)
    assert influence.seconds == pytest.approx(load + 25600 * 1.1 * shape.floor / 156e12)
    # half the use takes twice the time beyond loading
    slow = module.estimate("paper_llama3_8b_dolly", gpu="a100", utilisation=0.25)[0]
    assert slow.seconds - load == pytest.approx(2 * (poison.seconds - load))
    assert all(stage.gigabytes < 80 for name in module.PRESETS for stage in module.estimate(
        name, gpu="a100", utilisation=0.4
    ))  # fmt: skip
