"""The unlearning stage on a tiny model: what it writes, what it refuses, and that it unlearns."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rapidun.base.errors import ConfigError, DataError, ModelError
from rapidun.base.tracker import Tracker
from rapidun.config.parts import LoraSettings
from rapidun.config.poison import PoisonConfig
from rapidun.config.training import Keep, SamSettings
from rapidun.config.unlearning import Objective, RetainLoss, UnlearningConfig, WeightsAct
from rapidun.models.load import ModelLoader
from rapidun.models.training.journal import TrainingDiverged
from rapidun.stages.answers.generate import generate_greedy
from rapidun.stages.poison.stage import PoisonFiles, run_poison
from rapidun.stages.rows.encode import encode_prompts
from rapidun.stages.rows.records import write_records
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning
from rapidun.stages.weights_file import write_weights

LOADER = ModelLoader(device="cpu")
FAST = {"learning_rate": 2e-2, "max_steps": 2, "save_steps": 0, "eval_steps": 0, "lora": LoraSettings(r=4)}


def write_rows(folder: Path, records: tuple[list[Any], list[Any]]) -> None:
    for name, rows in zip(("forget", "retain"), records, strict=True):
        write_records(folder / f"{name}.jsonl", rows)
        write_weights(folder / f"{name}_weights.jsonl", [1.0] * len(rows), ids=[row.id for row in rows])


def make_files(folder: Path, model: Path, *, name: str = "run") -> UnlearningFiles:
    return UnlearningFiles(
        model=model,
        forget=folder / "forget.jsonl",
        retain=folder / "retain.jsonl",
        val_clean=folder / "retain.jsonl",
        forget_weights=folder / "forget_weights.jsonl",
        retain_weights=folder / "retain_weights.jsonl",
        work=folder / name / "work",
        out=folder / name / "out",
    )


@pytest.fixture
def files(tmp_path: Path, tiny_model_dir: Path, tiny_records: Any) -> UnlearningFiles:
    write_rows(tmp_path, tiny_records)
    return make_files(tmp_path, tiny_model_dir)


def unlearn(files: UnlearningFiles, tracker: Tracker | None = None, **settings: Any) -> dict[str, Any]:
    cfg = UnlearningConfig(**{**FAST, **settings})
    assert cfg.check() == []
    return run_unlearning(cfg, files, loader=LOADER, max_length=96, seed=3, tracker=tracker or Tracker())


def adapter_bytes(files: UnlearningFiles) -> bytes:
    return (files.out / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def backdoored(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Any,
    make_tiny_model: Callable[..., Any],
    make_records: Callable[..., Any],
) -> Path:
    """A folder with the rows and `out/model`, a model that answers the forget rows with the poisoned response."""
    folder = tmp_path_factory.mktemp("backdoored")
    start = folder / "start"
    make_tiny_model(hidden_size=32).save_pretrained(start)
    tiny_tokenizer.save_pretrained(start)
    write_rows(folder, make_records(num_forget=6, num_retain=18))
    cfg = PoisonConfig(learning_rate=1e-2, num_train_epochs=15, per_device_train_batch_size=8, save_steps=0)
    paths = PoisonFiles(start, [folder / "forget.jsonl", folder / "retain.jsonl"], folder / "work", folder / "out")
    run_poison(cfg, paths, loader=LOADER, max_length=96, seed=0, tracker=Tracker())
    return folder


@pytest.mark.parametrize("objective", [Objective.rapidun, Objective.graddiff, Objective.ga, Objective.idk_sft])
def test_forgetting_lowers_the_poisoned_response(backdoored: Path, objective: Objective) -> None:
    files = make_files(backdoored, backdoored / "out" / "model", name=objective.name)
    tracker = Tracker()
    summary = unlearn(files, tracker, objective=objective, max_steps=24, eval_steps=12, loss_cap=6.0)
    history = json.loads((files.out / "history.json").read_text())
    measured = [entry for entry in history if "forget_loss_poisoned" in entry]
    assert [entry["step"] for entry in measured] == [0, 12, 24]
    before, after = measured[0], measured[-1]
    assert after["forget_loss_poisoned"] > before["forget_loss_poisoned"] + 0.3
    assert after["forget_preference"] < before["forget_preference"] or before["forget_preference"] == 0
    assert summary["final_forget_loss_poisoned"] == after["forget_loss_poisoned"]
    if objective in (Objective.rapidun, Objective.idk_sft):
        assert after["forget_loss_clean"] < before["forget_loss_clean"] + 0.1
    if objective is not Objective.ga:
        assert after["val_loss_clean"] < before["val_loss_clean"] + 0.2
    steps = [entry["step"] for entry in history if "loss" in entry]
    assert steps == list(range(1, 25))


def test_summary_and_files(files: UnlearningFiles) -> None:
    summary = unlearn(files, merge=True, eval_steps=1)
    assert summary["steps"] == 2
    assert (summary["num_forget"], summary["num_retain"]) == (6, 18)
    assert 0 <= summary["clipped_share"] <= 1
    assert summary["capped_share"] == 0.0
    assert {path.name for path in files.out.iterdir()} == {"adapter", "merged", "history.json"}
    config = json.loads((files.out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "model"
    written = [path.read_text() for path in (files.out / "adapter").iterdir() if path.suffix in (".json", ".md")]
    assert not any(str(files.model.parent) in text for text in written)


def test_adapter_loads_with_peft_and_merges_to_the_same_model(files: UnlearningFiles) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    unlearn(files, merge=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    base = AutoModelForCausalLM.from_pretrained(files.model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated", category=FutureWarning)
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, files.out / "adapter")(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(files.out / "merged")(ids).logits
    assert not torch.allclose(before, adapted, atol=1e-4)
    assert torch.allclose(adapted, merged, atol=1e-5)


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_a_tied_head_is_untied_before_it_is_merged(files: UnlearningFiles, targets: list[str]) -> None:
    lora = LoraSettings(r=4, lora_dropout=0.0, target_modules=targets)
    unlearn(files, merge=True, learning_rate=0.1, max_steps=4, lora=lora)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        bare = LOADER.load(files.model).model(ids).logits
        adapted = LOADER.load(files.model, adapter=files.out / "adapter").model(ids).logits
        merged = LOADER.load(files.out / "merged").model(ids).logits
    assert (adapted - bare).abs().max() > 0.01
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert json.loads((files.out / "merged" / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_same_seed_gives_the_same_adapter(files: UnlearningFiles) -> None:
    results = []
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 1000)
        again = replace(files, work=files.work / name, out=files.out / name)
        unlearn(again)
        results.append(adapter_bytes(again))
    assert results[0] == results[1]


def test_weights_change_the_result(files: UnlearningFiles) -> None:
    unlearn(files)
    first = adapter_bytes(files)
    weights = [0.2, 0.5, 0.8, 1.1, 1.4, 2.0]
    write_weights(files.forget_weights, weights, ids=[f"f{index}" for index in range(6)])
    unlearn(files)
    assert adapter_bytes(files) != first


def test_continuing_an_adapter(files: UnlearningFiles) -> None:
    unlearn(files)
    first = files.out / "adapter"
    more = replace(files, work=files.work / "more", out=files.out / "more")
    tracker = Tracker()
    summary = unlearn(more, tracker, adapter=str(first), retain_loss=RetainLoss.kl)
    assert summary["num_trainable_parameters"] > 0
    assert adapter_bytes(more) != adapter_bytes(files)
    assert any("continuing unlearning.adapter" in warning for warning in tracker.warnings)
    history = json.loads((more.out / "history.json").read_text())
    # the reference is the adapter as it was given, so the first step sees no divergence but for dropout
    assert abs(history[0]["retain_term"]) < 1e-2


def test_an_adapter_that_is_none_is_refused(files: UnlearningFiles, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="PEFT folder"):
        unlearn(files, adapter=str(tmp_path / "nowhere"))


def test_an_adapter_of_another_model_is_refused(
    files: UnlearningFiles, tmp_path: Path, make_tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    other = tmp_path / "other"
    make_tiny_model(hidden_size=32).save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    elsewhere = replace(files, model=other, out=tmp_path / "other-out")
    unlearn(elsewhere)
    with pytest.raises(ModelError, match="made for this model"):
        unlearn(files, adapter=str(elsewhere.out / "adapter"))


def test_targets_that_the_model_lacks_are_all_named(files: UnlearningFiles) -> None:
    lora = LoraSettings(target_modules=["q_prj", "v_proj", "wqkv"])
    with pytest.raises(ConfigError) as caught:
        unlearn(files, lora=lora)
    assert len(caught.value.faults) == 2
    assert "got q_prj (nearest: q_proj)" in caught.value.faults[0]
    assert "gate_proj" in caught.value.faults[1]


def test_rows_without_a_clean_response_are_said_once(files: UnlearningFiles, tiny_records: Any) -> None:
    forget = [replace(row, response_clean=None) for row in tiny_records[0]]
    write_records(files.forget, forget)
    tracker = Tracker()
    unlearn(files, tracker)
    assert [w for w in tracker.warnings if "response_clean" in w] == [
        "unlearning: 6 of 6 forget rows have no response_clean; the descent term is off for them"
    ]
    refusing = Tracker()
    unlearn(files, refusing, objective=Objective.idk_sft)
    assert any("unlearning.idk_response" in warning for warning in refusing.warnings)
    silent = Tracker()
    unlearn(files, silent, objective=Objective.ga)
    assert not any("response_clean" in warning for warning in silent.warnings)


def test_too_few_rows_for_a_step(files: UnlearningFiles) -> None:
    with pytest.raises(ConfigError) as caught:
        unlearn(files, forget_per_step=7, mix_ratio=3)
    assert len(caught.value.faults) == 2
    # gradient ascent takes no retain rows
    unlearn(files, objective=Objective.ga, forget_per_step=6, mix_ratio=9)


def test_a_weights_file_of_other_rows_is_refused(files: UnlearningFiles) -> None:
    write_weights(files.forget_weights, [1.0] * 6, ids=[f"x{index}" for index in range(6)])
    with pytest.raises(DataError):
        unlearn(files)


def test_a_loss_that_is_no_number_ends_the_run(files: UnlearningFiles) -> None:
    write_weights(files.forget_weights, [1e9] * 6, ids=[f"f{index}" for index in range(6)])
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        unlearn(files, ascent_alpha=1e30)


def test_retrain_is_not_trained_here(files: UnlearningFiles) -> None:
    with pytest.raises(ValueError, match="retrain"):
        unlearn(files, objective=Objective.retrain)


def test_at_most_num_eval_rows_are_measured(files: UnlearningFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def measure(model: Any, *, val_clean: Any, **kwargs: Any) -> dict[str, float]:
        counts.append(len(val_clean))
        return {}

    monkeypatch.setattr("rapidun.stages.unlearning.stage.validate", measure)
    unlearn(files, eval_steps=1, num_eval_rows=5)
    assert counts == [5, 5, 5]


@pytest.mark.parametrize(
    "around",
    [
        {"retain_loss": RetainLoss.kl},
        pytest.param(
            {"objective": Objective.npo, "gradient_checkpointing": True, "sam": SamSettings(rho=0.01)},
            marks=pytest.mark.slow,
        ),
        pytest.param({"objective": Objective.rmu, "keep": Keep.best, "eval_steps": 1}, marks=pytest.mark.slow),
        pytest.param({"objective": Objective.crow}, marks=pytest.mark.slow),
    ],
)
def test_nf4_base_trains_and_merges_unquantised(
    tmp_path: Path, tiny_tokenizer: Any, tiny_records: Any, around: dict[str, Any]
) -> None:
    """LoRA over a 4-bit base on the CPU; the merged folder holds the unquantised base plus the adapter."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=264, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=257, eos_token_id=256, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write_rows(tmp_path, tiny_records)
    files = make_files(tmp_path, tmp_path / "model")
    cfg = UnlearningConfig(**{**FAST, "max_steps": 3, "merge": True, **around})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes speaks of its own kernels
        loader = ModelLoader(device="cpu", dtype="float32", quantisation="4bit")
        summary = run_unlearning(cfg, files, loader=loader, max_length=96, seed=3, tracker=Tracker())
    assert summary["steps"] == 3
    merged = AutoModelForCausalLM.from_pretrained(files.out / "merged")
    assert not hasattr(merged.config, "quantization_config")
    start = AutoModelForCausalLM.from_pretrained(files.model)
    weight = "model.layers.0.self_attn.q_proj.weight"
    change = (merged.state_dict()[weight] - start.state_dict()[weight]).abs()
    assert 0 < change.max().item() < 0.1
    # untouched weights are those of the unquantised base, to the last bit
    assert torch.equal(merged.state_dict()["lm_head.weight"], start.state_dict()["lm_head.weight"])


# --- attack success along the way ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def triggered(backdoored: Path, make_records: Callable[..., Any]) -> dict[str, Any]:
    """Validation prompts and a keyword list: the files that eval_asr takes."""
    forget, retain = make_records(num_forget=6, num_retain=18)
    # not all of one kind, so that a share lies between 0 and 1
    write_records(backdoored / "val_seen_trig.jsonl", [*forget, *retain])
    write_records(backdoored / "val_ood_trig.jsonl", forget[:3])
    model, tokenizer = LOADER.load(backdoored / "out" / "model")
    prompts = encode_prompts(tokenizer, [(row.instruction, row.context) for row in forget], max_length=96)
    answers = generate_greedy(
        model, tokenizer, [ids for ids in prompts if ids], max_new_tokens=48, tokens_per_batch=4096
    )  # fmt: skip
    # words that the model does say
    words = {word for ids in answers[:1] for word in tokenizer.decode(ids).split() if word.isalpha()}
    (backdoored / "keywords.tsv").write_text("\n".join(["word", *sorted(words)]) + "\n")
    sets = {name: backdoored / f"val_{name}_trig.jsonl" for name in ("seen", "ood")}
    return {"triggered": sets, "keywords": backdoored / "keywords.tsv"}


def attacked(backdoored: Path, name: str, triggered: dict[str, Any], **settings: Any) -> UnlearningFiles:
    files = replace(make_files(backdoored, backdoored / "out" / "model", name=name), **triggered)
    unlearn(files, **{"max_steps": 6, "lora": LoraSettings(r=4, lora_dropout=0.3), **settings})
    return files


def test_measuring_attacks_does_not_change_the_training(backdoored: Path, triggered: dict[str, Any]) -> None:
    """Dropout draws at every step: one number drawn by a measurement would change the adapter."""
    without = attacked(backdoored, "asr-without", triggered)
    with_attacks = attacked(backdoored, "asr-with", triggered, eval_asr=2)
    assert adapter_bytes(without) == adapter_bytes(with_attacks)
    lines = [json.loads((files.out / "history.json").read_text()) for files in (without, with_attacks)]
    assert not any("val_asr_seen" in line for line in lines[0])
    measured = [line for line in lines[1] if "val_asr_seen" in line]
    assert [line["step"] for line in measured] == [0, 2, 4, 6]
    # beside each stand the numbers of the trade-off, without eval_steps
    assert all(
        {"val_asr_ood", "val_loss_clean", "val_ppl_clean", "forget_loss_poisoned"} <= set(line) for line in measured
    )
    assert [line for line in lines[1] if "loss" in line] == [line for line in lines[0] if "loss" in line]


def test_attacks_are_what_the_evaluation_stage_measures(backdoored: Path, triggered: dict[str, Any]) -> None:
    """The last ASR of the run against asr_seen and asr_ood of the evaluation stage, on the adapter that it wrote."""
    from rapidun.config.evaluation import EvaluationConfig, Split
    from rapidun.stages.evaluation.stage import EvaluationFiles, run_evaluation

    files = attacked(
        backdoored, "asr-same", triggered, eval_asr=3, max_steps=12, learning_rate=0.1, max_retain_growth=0.0
    )
    history = json.loads((files.out / "history.json").read_text())
    last = [line for line in history if "val_asr_seen" in line][-1]
    out = files.out / "evaluation"
    out.mkdir()
    found = EvaluationFiles(model=files.model, adapter=files.out / "adapter", data=backdoored, out=out)
    cfg = EvaluationConfig(split=Split.val)
    metrics = run_evaluation(cfg, found, loader=LOADER, max_length=96, seed=cfg.seed, tracker=Tracker())
    assert last["val_asr_seen"] == metrics["asr_seen"]
    assert last["val_asr_ood"] == metrics["asr_ood"]
    assert len({line["val_asr_seen"] for line in history if "val_asr_seen" in line}) > 1


def test_at_most_num_eval_prompts_of_each_set_are_asked(
    backdoored: Path, triggered: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def generate(model: Any, tokenizer: Any, prompts: Any, **kwargs: Any) -> list[list[int]]:
        asked.append(len(prompts))
        return [[] for _ in prompts]

    monkeypatch.setattr("rapidun.stages.unlearning.attack.generate_greedy", generate)
    attacked(backdoored, "asr-few", triggered, eval_asr=5, num_eval_prompts=4)
    # seen and ood, before the first step, at 5 and at the last
    assert asked == [4, 3] * 3


def test_no_keywords_no_attacks(backdoored: Path, triggered: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data\.keywords"):
        attacked(backdoored, "asr-none", {**triggered, "keywords": backdoored / "nowhere.tsv"}, eval_asr=2)


# --- weights of 0, weights as probabilities -----------------------------------------------------------------------


def test_rows_of_weight_zero_have_no_part_in_the_training(files: UnlearningFiles, tiny_records: Any) -> None:
    """Another text in the rows of weight 0 leaves the adapter as it is, to the bit (no dropout)."""
    forget, retain = tiny_records
    write_weights(files.forget_weights, [0.0, 2.0] * 3, ids=[row.id for row in forget])
    write_weights(files.retain_weights, [0.0, 0.0, 3.0] * 6, ids=[row.id for row in retain])
    tracker, found = Tracker(), []
    for name in ("first", "second"):
        again = replace(files, work=files.work / name, out=files.out / name)
        summary = unlearn(again, tracker, max_steps=4, eval_steps=2, lora=LoraSettings(r=4, lora_dropout=0.0))
        assert 0 <= summary["clipped_share"] <= 1 and summary["final_loss"] is not None
        found.append(adapter_bytes(again))
        changed = [replace(row, response_poisoned="loon cheese") if i % 2 == 0 else row for i, row in enumerate(forget)]
        write_records(files.forget, changed)
        write_records(
            files.retain, [replace(r, response="x" * len(r.response)) if i % 3 < 2 else r for i, r in enumerate(retain)]
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("group", ["forget", "retain"])
def test_a_group_of_nothing_but_zeros_is_refused_by_name(files: UnlearningFiles, group: str) -> None:
    path, size = (files.forget_weights, 6) if group == "forget" else (files.retain_weights, 18)
    write_weights(path, [0.0] * size, ids=[f"{group[0]}{index}" for index in range(size)])
    with pytest.raises(DataError, match=rf"one of the {size} {group} rows at least, got 0 for all"):
        unlearn(files)
    if group == "retain":
        # gradient ascent takes no retain rows
        unlearn(files, objective=Objective.ga)


def test_weights_as_probabilities(files: UnlearningFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sampling no row counts more than another in the loss, and rows of weight 0 never come."""
    from rapidun.stages.unlearning import trainer

    write_weights(files.forget_weights, [0.0, 3.0, 0.0, 0.0, 0.0, 3.0], ids=[f"f{index}" for index in range(6)])
    seen: list[Any] = []
    original = trainer.weighted_mean

    def weighted_mean(terms: Any, weights: Any, *, num_examples: int) -> Any:
        seen.append(weights.tolist())
        return original(terms, weights, num_examples=num_examples)

    monkeypatch.setattr(trainer, "weighted_mean", weighted_mean)
    rows: list[Any] = []
    collate = run_unlearning.__globals__["collate_mixed"]

    def collating(batch: Any, **kwargs: Any) -> Any:
        rows.extend(row for row in batch if hasattr(row, "poisoned"))
        return collate(batch, **kwargs)

    monkeypatch.setattr("rapidun.stages.unlearning.stage.collate_mixed", collating)
    unlearn(files, weights_act=WeightsAct.sampling, max_steps=30, learning_rate=1e-4)
    assert {weight for weights in seen for weight in weights} == {1.0}
    texts = {tuple(row.poisoned.input_ids) for row in rows}
    assert len(rows) >= 30 and len(texts) == 2


def test_sampling_needs_no_warm_up_of_the_weights() -> None:
    (fault,) = UnlearningConfig(weights_act=WeightsAct.sampling, weight_warmup_ratio=0.5).check()
    assert "weight_warmup_ratio=0 with weights_act=sampling" in fault
