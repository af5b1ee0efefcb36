"""The whole pipeline on a model of a few thousand weights: what is reused, left behind, and survives a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rapidun
from rapidun.base.errors import ArtifactError, ConfigError
from rapidun.config.compose import compose_config
from rapidun.models.training.journal import TrainingDiverged
from rapidun.pipeline.artifacts import Artifacts
from rapidun.pipeline.run import InSweep, Result, run_pipeline
from rapidun.pipeline.tracking.run import open_tracker
from rapidun.stages.recipe import START

FAST = ["debug=fast", "resources.num_threads=1"]
ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, name: str, *overrides: str) -> Result:
    return rapidun.run([*FAST, f"store_dir={tmp_path / 'store'}", f"run_dir={tmp_path / name}", *overrides])


def cached(result: Result) -> dict[str, bool]:
    status = json.loads((result.run_dir / "status.json").read_text())
    return {stage: entry["cached"] for stage, entry in status["stages"].items()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(tmp_path_factory.mktemp("pipeline"), "first")


def test_run_folder_is_complete(first: Result) -> None:
    folder = first.run_dir
    names = ["config.yaml", "command.txt", "status.json", "metrics.jsonl", "result.json", "report.html"]
    names += ["data/manifest.json", "influence/scores.safetensors", "influence/ids.json"]
    names += ["mapping/forget_weights.jsonl", "mapping/retain_weights.jsonl", "mapping/diagnostics.json"]
    names += ["unlearning/adapter/adapter_config.json", "unlearning/adapter/adapter_model.safetensors"]
    names += ["evaluation/before.json", "evaluation/after.json", "evaluation/generations.jsonl"]
    assert [name for name in names if not (folder / name).is_file()] == []
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "done"
    assert all(entry["seconds"] > 0 and entry["peak_memory_gb"] > 0 for entry in status["stages"].values())
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    assert links
    assert all(not os.path.isabs(os.readlink(link)) for link in links)


def test_a_pack_without_wrong_rows_has_the_evaluation_that_it_had(first: Result) -> None:
    """What data.noise brought into the fingerprint stands there only where there are wrong rows."""
    inputs = json.loads((first.run_dir / "evaluation" / ".before" / "manifest.json").read_text())["inputs"]
    assert "forget" not in inputs
    assert "forget" in inputs["splits"]


def test_result_speaks_of_before_and_after(first: Result) -> None:
    metrics = json.loads((first.run_dir / "result.json").read_text())
    assert metrics == first.metrics
    after = json.loads((first.run_dir / "evaluation" / "after.json").read_text())
    before = json.loads((first.run_dir / "evaluation" / "before.json").read_text())
    assert {k: metrics[k] for k in after} == after
    assert {k: metrics[f"before.{k}"] for k in before} == before
    assert len(first.weights["forget"]) == 6
    assert first.scores["fr"].shape == (6, 18)


def test_metrics_have_stage_step_and_time(first: Result) -> None:
    lines = [json.loads(line) for line in (first.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all({"time", "stage", "step"} <= set(line) for line in lines)
    steps = [line["step"] for line in lines if line["stage"] == "unlearning" and "loss" in line]
    assert steps == [1, 2, 3, 4]


def test_second_run_reuses_every_stage_and_gives_the_same_numbers(first: Result) -> None:
    second = run(first.run_dir.parent, "second")
    assert cached(second) == dict.fromkeys(["data", "poison", "influence", "mapping", "unlearning", "evaluation"], True)
    strip = {k: v for k, v in first.metrics.items() if not k.startswith(("seconds", "peak"))}
    assert {k: second.metrics[k] for k in strip} == strip
    assert (second.run_dir / "metrics.jsonl").read_text() == (first.run_dir / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("override", "reused"),
    [
        ("mapping.split.max_dropped=0.5", ["data", "poison", "influence"]),
        ("unlearning.ascent_alpha=2", ["data", "poison", "influence", "mapping"]),
        ("evaluation.max_new_tokens=3", ["data", "poison", "influence", "mapping", "unlearning"]),
        ("seed=7", ["data", "poison", "influence", "mapping"]),
        ("influence.tokens_per_batch=512", ["data", "poison", "influence", "mapping", "unlearning", "evaluation"]),
    ],
)
def test_a_change_repeats_only_what_depends_on_it(first: Result, override: str, reused: list[str]) -> None:
    result = run(first.run_dir.parent, override.replace("=", "_"), override)
    assert [stage for stage, hit in cached(result).items() if hit] == reused


def test_a_touched_row_is_not_reused(first: Result, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    source = first.run_dir / "data"
    for split in ("forget", "retain", "train_poisoned", "train_clean", "val_clean", "test_clean"):
        (pack / f"{split}.jsonl").write_text((source / f"{split}.jsonl").read_text())
    options = ["data=jsonl", f"data.dir={pack}", "data.source=pack", "mapping=uniform"]
    store = first.run_dir.parent
    run(store, "pack1", *options)
    again = run(store, "pack2", *options)
    # equal weights read no influence: that stage makes nothing
    assert all(cached(again).values())
    # the modification time alone changes nothing
    os.utime(pack / "retain.jsonl")
    assert cached(run(store, "pack3", *options)) == cached(again)
    lines = (pack / "retain.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    row["response"] += " indeed"
    (pack / "retain.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    changed = cached(run(store, "pack4", *options))
    assert not changed["data"]
    assert not changed["unlearning"]


def test_stage_alone_needs_what_came_before(first: Result, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="need the result of poison"):
        run(tmp_path, "alone", "stages=[influence]")
    alone = run(first.run_dir.parent, "alone", "stages=[influence,mapping]", "mapping.split.max_dropped=0.4")
    assert cached(alone) == {"influence": True, "mapping": False}


def test_run_folder_of_other_settings_is_refused(first: Result) -> None:
    with pytest.raises(ConfigError, match=r"run_dir: .*mapping\.tau_f: 0\.7 there, 0\.5 asked for"):
        run(first.run_dir.parent, "first", "mapping.tau_f=0.5")


def test_a_run_folder_made_before_a_setting_existed_goes_on(first: Result) -> None:
    """What its settings lack had its default; anything else is another run."""
    parent = first.run_dir.parent
    path = shutil.copytree(first.run_dir, parent / "older", symlinks=True) / "settings.json"
    settings = json.loads(path.read_text())
    del settings["mapping"]["null"], settings["data"]["noise"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r'mapping\.null: "none" there, "shuffled" asked for'):
        run(parent, "older", "mapping.null=shuffled")
    assert all(cached(run(parent, "older")).values())


def test_failure_is_kept_in_status(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged):
        run(tmp_path, "bad", "unlearning.ascent_alpha=1e38")
    status = json.loads((tmp_path / "bad" / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["stage"] == "unlearning"
    assert "TrainingDiverged" in status["error"]["traceback"]
    # what was finished before is not lost
    assert cached(run(tmp_path, "good"))["poison"]


def test_pack_of_two_files_trains_on_its_own_rows(first: Result, tmp_path: Path) -> None:
    """6 forget and 18 retain rows are all that the pack has, so they are what the model is poisoned with."""
    (tmp_path / "pack").mkdir()
    for split in ("forget", "retain"):
        text = (first.run_dir / "data" / f"{split}.jsonl").read_text()
        (tmp_path / "pack" / f"{split}.jsonl").write_text(text)
    place = ["data=jsonl", "data.source=pack", f"data.dir={tmp_path / 'pack'}"]
    result = run(tmp_path, "two", *place, "stages=[data,poison]")
    manifest = json.loads((result.run_dir / "data" / "manifest.json").read_text())
    counts = manifest["result"]["counts"]
    assert (counts["train_poisoned"], counts["train_clean"]) == (6, 18)
    assert (result.run_dir / "poison" / "model" / "model.safetensors").is_file()


def test_retrain_is_the_yardstick_and_needs_no_influence(first: Result) -> None:
    result = run(
        first.run_dir.parent,
        "retrain",
        "unlearning=retrain",
        "stages=[data,poison,influence,mapping,unlearning,evaluation]",
    )
    assert (result.run_dir / "unlearning" / "model" / "model.safetensors").is_file()
    assert result.metrics["ppl_clean"] != result.metrics["before.ppl_clean"]


# peft asks transformers by a name that transformers has since changed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapter_gives_the_generations_that_evaluation_wrote(first: Result) -> None:
    """A bare script with peft and transformers: nothing of ours but the prompts that were written down."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(first.run_dir / "poison" / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(first.run_dir / "poison" / "model")
    model = PeftModel.from_pretrained(base, str(first.run_dir / "unlearning" / "adapter")).eval()
    rows = [json.loads(line) for line in (first.run_dir / "evaluation" / "generations.jsonl").read_text().splitlines()]
    for row in rows[:6]:
        chat = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == row["after"].strip()


def _command(tmp_path: Path, name: str) -> list[str]:
    steps = ["poison.max_steps=12", "poison.save_steps=2", "unlearning.max_steps=12", "unlearning.save_steps=2"]
    place = [f"store_dir={tmp_path / name}", f"run_dir={tmp_path / name}_run"]
    stages = "stages=[data,poison,influence,mapping,unlearning]"
    return [sys.executable, str(ROOT / "sweep.py"), *FAST, *steps, *place, stages]


def _adapter(tmp_path: Path, name: str) -> bytes:
    return (tmp_path / f"{name}_run" / "unlearning" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_killed_and_started_again_ends_bit_identical(tmp_path: Path) -> None:
    """One run folder killed in poison, then in influence, then in unlearning, beside a run that nobody disturbs."""
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    quiet = {"env": environment, "cwd": tmp_path, "stdout": subprocess.DEVNULL}
    subprocess.run(_command(tmp_path, "whole"), check=True, **quiet)
    for stage in ("poison", "influence", "unlearning"):
        process = subprocess.Popen(_command(tmp_path, "killed"), **quiet)
        folder = tmp_path / "killed" / stage
        # the stage has begun; for the trainings, a checkpoint is there
        pattern = "*.part" if stage == "influence" else "*.work/checkpoint-4"
        deadline = time.monotonic() + 600
        while not any(folder.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
        assert not list((tmp_path / "killed" / stage).glob("*/manifest.json"))
        assert json.loads((tmp_path / "killed_run" / "status.json").read_text())["state"] == "running"
    subprocess.run(_command(tmp_path, "killed"), check=True, **quiet)
    assert _adapter(tmp_path, "killed") == _adapter(tmp_path, "whole")
    status = json.loads((tmp_path / "killed_run" / "status.json").read_text())
    assert status["restarts"] == 3
    assert not list((tmp_path / "killed").rglob("*.part"))


def test_fewer_stages_in_the_same_folder_add_to_it(first: Result) -> None:
    kept = {name: (first.run_dir / name).read_text() for name in ("command.txt", "config.yaml", "metrics.jsonl")}
    run(first.run_dir.parent, "first", "stages=[mapping]")
    assert {name: (first.run_dir / name).read_text() for name in kept} == kept
    status = json.loads((first.run_dir / "status.json").read_text())
    assert status["state"] == "done"
    assert set(status["stages"]) == {"data", "poison", "influence", "mapping", "unlearning", "evaluation"}
    assert json.loads((first.run_dir / "result.json").read_text()) == first.metrics


def test_mapping_numbers_reach_the_result(first: Result) -> None:
    diagnostics = json.loads((first.run_dir / "mapping" / "diagnostics.json").read_text())
    expected = diagnostics["forget"]["effective_sample_size"]
    assert first.metrics["mapping.forget.effective_sample_size"] == expected


def test_a_refused_stage_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="need the result of poison"):
        run(tmp_path, "alone", "stages=[mapping]")
    assert [path.name for path in (tmp_path / "store").iterdir() if path.is_dir()] == ["data"]


@pytest.mark.parametrize("how", ["likelihood_ratio", "influence"])
def test_token_weights_are_made_reused_and_shown(first: Result, how: str) -> None:
    """The scores are an artifact of the influence stage; unlearning alone makes them where they are not there."""
    place = first.run_dir.parent
    chosen = [f"unlearning.token_weights={how}", "unlearning.eval_asr=2", "unlearning.weights_act=sampling"]
    alone = run(place, f"{how}-alone", *chosen, "stages=[unlearning]")
    whole = run(place, how, *chosen)
    assert all(cached(whole)[stage] for stage in ("poison", "influence", "unlearning"))
    found = json.loads((whole.run_dir / "unlearning" / "token_weights.json").read_text())
    assert found == json.loads((alone.run_dir / "unlearning" / "token_weights.json").read_text())
    assert found["token_weights"] == how and len(found["rows"]) == 6
    for row in found["rows"].values():
        assert len(row["tokens"]) == len(row["weights"])
        assert sum(row["weights"]) / len(row["weights"]) == pytest.approx(1.0)
    scores = [json.loads(line) for line in (whole.run_dir / "tokens" / "tokens.jsonl").read_text().splitlines()]
    assert [line["id"] for line in scores] == list(found["rows"])
    lines = [json.loads(line) for line in (whole.run_dir / "metrics.jsonl").read_text().splitlines()]
    attacks = [line for line in lines if any("val_asr_seen" in name for name in line)]
    assert [line["step"] for line in attacks] == [0, 2, 4]
    page = (whole.run_dir / "report.html").read_text()
    assert "Trade-off: attack success against clean loss" in page and "Weights of tokens" in page
    assert "unlearning.final_val_asr_seen" in whole.metrics


def test_a_start_model_that_several_artifacts_need_is_made_alone(tmp_path: Path) -> None:
    """The job of a sweep in which the poisoned model and another artifact need the same model made from scratch."""
    folder, store = tmp_path / "run", tmp_path / "store"
    chosen = [*FAST, f"store_dir={store}", f"run_dir={folder}", "stages=[poison]"]
    cfg = compose_config(chosen)
    recipes = Artifacts(cfg, open_tracker(cfg, folder, cell=False, restarts=0)).recipes
    start = recipes.get(START).recipe
    assert start is not None
    run_pipeline(cfg, overrides=chosen, config_yaml="", in_sweep=InSweep(only=start.id, show=False))
    assert (store / start.id / "model" / "config.json").is_file()
    assert not (store / "poison").exists()
