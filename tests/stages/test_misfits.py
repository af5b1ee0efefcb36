"""Tokenizers and models that do not fit each other, and rows that do not fit the model, in every stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ConfigError, ModelError, RapidunError
from rapidun.base.tracker import Tracker
from rapidun.cli.main import main
from rapidun.config.evaluation import EvaluationConfig
from rapidun.config.influence import InfluenceConfig, InfluenceMethod
from rapidun.config.parts import LoraSettings
from rapidun.config.poison import PoisonConfig
from rapidun.config.unlearning import UnlearningConfig
from rapidun.models.load import ModelLoader, load_tokenizer
from rapidun.stages.evaluation.stage import EvaluationFiles, run_evaluation
from rapidun.stages.influence.stage import InfluenceFiles, run_influence
from rapidun.stages.poison.stage import PoisonFiles, run_poison
from rapidun.stages.rows.records import Record, write_records
from rapidun.stages.unlearning.stage import UnlearningFiles, run_unlearning
from rapidun.stages.weights_file import write_weights

SHARED: dict[str, Any] = {"loader": ModelLoader(device="cpu", dtype="float32"), "seed": 0}
LORA = LoraSettings(r=2, target_modules=["c_attn"])


def poison(pack: Path, model: Path, **more: Any) -> Any:
    files = PoisonFiles(model, [pack / "forget.jsonl", pack / "retain.jsonl"], pack / "work", pack / "out")
    return run_poison(PoisonConfig(max_steps=1, save_steps=0), files, **SHARED, **more)


def influence(pack: Path, model: Path, **more: Any) -> Any:
    files = InfluenceFiles(
        model=model, adapter=None, forget=pack / "forget.jsonl", retain=pack / "retain.jsonl", out=pack
    )
    return run_influence(InfluenceConfig(method=InfluenceMethod.exact, num_token_queries=0), files, **SHARED, **more)


def unlearning(pack: Path, model: Path, **more: Any) -> Any:
    files = UnlearningFiles(
        model=model, forget=pack / "forget.jsonl", retain=pack / "retain.jsonl", val_clean=pack / "retain.jsonl",
        forget_weights=pack / "forget_weights.jsonl", retain_weights=pack / "retain_weights.jsonl",
        work=pack / "work", out=pack / "out",
    )  # fmt: skip
    cfg = UnlearningConfig(max_steps=1, save_steps=0, eval_steps=1, lora=LORA)
    return run_unlearning(cfg, files, **SHARED, **more)


def evaluation(pack: Path, model: Path, **more: Any) -> Any:
    out = pack / "evaluation"
    out.mkdir(exist_ok=True)
    files = EvaluationFiles(model=model, data=pack, out=out)
    return run_evaluation(EvaluationConfig(max_new_tokens=4), files, **SHARED, **more)


STAGES = {"poison": poison, "influence": influence, "unlearning": unlearning, "evaluation": evaluation}
stages = pytest.mark.parametrize("stage", list(STAGES))
# peft, of GPT-2's layers
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")


def write_pack(folder: Path, forget: list[Record], retain: list[Record]) -> None:
    for name, rows in (("forget", forget), ("retain", retain)):
        write_records(folder / f"{name}.jsonl", rows)
        write_weights(folder / f"{name}_weights.jsonl", [1.0] * len(rows), ids=[row.id for row in rows])
    write_records(folder / "val_clean.jsonl", retain)
    write_records(folder / "test_clean.jsonl", retain)


@pytest.fixture
def rows(make_records: Callable[..., Any]) -> tuple[list[Record], list[Record]]:
    """Rows of up to 60 tokens."""
    forget, retain = make_records(num_forget=4, num_retain=12)
    return forget, retain


@pytest.fixture
def pack(tmp_path: Path, rows: Any) -> Path:
    write_pack(tmp_path, *rows)
    return tmp_path


def gpt2(folder: Path, tokenizer: Any, *, n_positions: int = 128, vocab_size: int = 259) -> Path:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=n_positions,
        n_embd=8,
        n_layer=1,
        n_head=1,
        bos_token_id=None,
        eos_token_id=256,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@stages
def test_a_row_longer_than_the_window_is_refused(pack: Path, tiny_tokenizer: Any, rows: Any, stage: str) -> None:
    """max_length 96, a window of 64: short rows go, one of 110 tokens does not; with max_length 64 it is cut."""
    model = gpt2(pack / "model", tiny_tokenizer, n_positions=64)
    assert STAGES[stage](pack, model, max_length=96, tracker=Tracker())
    write_pack(pack, rows[0], [*rows[1], Record(id="long", instruction="q", response="x" * 80)])
    with pytest.raises(ConfigError) as caught:
        STAGES[stage](pack, model, max_length=96, tracker=Tracker())
    message = str(caught.value)
    assert message.startswith(f"{stage}: need rows that fit into the model's window of 64 tokens, got ")
    assert "with max_length=96. Pass max_length=64 or less" in message
    tracker = Tracker()
    STAGES[stage](pack, model, max_length=64, tracker=tracker)
    assert any("lost the end of their response, to fit into 64 tokens" in said for said in tracker.warnings)


@stages
def test_a_pad_token_beyond_the_vocabulary_costs_nothing(pack: Path, tiny_tokenizer: Any, stage: str) -> None:
    """A [PAD] added to the tokenizer, a model that was never resized: another token pads, masked as any."""
    model = gpt2(pack / "model", tiny_tokenizer)
    expected = STAGES[stage](pack, model, max_length=96, tracker=Tracker())
    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    assert tokenizer.pad_token_id == 259 and load_tokenizer(model).pad_token_id == 256
    assert STAGES[stage](pack, model, max_length=96, tracker=Tracker()) == expected


@stages
def test_tokens_beyond_the_vocabulary_are_refused(pack: Path, tiny_tokenizer: Any, stage: str) -> None:
    """The template's own mark (id 258) is beyond a model of 258 tokens."""
    model = gpt2(pack / "model", tiny_tokenizer, vocab_size=258)
    with pytest.raises(ModelError) as caught:
        STAGES[stage](pack, model, max_length=96, tracker=Tracker())
    message = str(caught.value)
    assert message.startswith(f"{stage}: need tokens that the model knows, got '<|im_start|>' (id 258) in ")
    assert "the tokenizer has 259 tokens, the model 258" in message


def test_an_index_refuses_the_same(pack: Path, tiny_tokenizer: Any, rows: Any, capsys: Any) -> None:
    def build(name: str, model: Path) -> int:
        command = ["--rows", str(pack / "retain.jsonl"), "--out", str(pack / name), "--model", str(model)]
        return main(["index", "build", *command, "--device", "cpu", "--k", "16", "--max-length", "96"])

    short = gpt2(pack / "short", tiny_tokenizer, n_positions=64)
    assert build("first", short) == 0
    write_pack(pack, rows[0], [*rows[1], Record(id="long", instruction="q", response="x" * 80)])
    assert build("second", short) == 2
    assert "index: need rows that fit into the model's window of 64 tokens, got 1 of " in capsys.readouterr().err
    assert build("third", gpt2(pack / "small", tiny_tokenizer, vocab_size=258)) == 2
    assert "index: need tokens that the model knows, got '<|im_start|>' (id 258)" in capsys.readouterr().err


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Both its pad and its end-of-text token are beyond the model's vocabulary; what is, is named."""
    folder = gpt2(tmp_path / "model", tiny_tokenizer, vocab_size=256)
    with pytest.raises(ModelError, match="need a tokenizer with a pad or an end-of-text token that the model knows"):
        load_tokenizer(folder)


def test_prompts_leave_room_for_an_answer_in_every_architectures_window(pack: Path, tiny_tokenizer: Any) -> None:
    """GPT-2 calls its window n_positions: prompts of 64 tokens less 40 new ones are too long without their context."""
    model = gpt2(pack / "model", tiny_tokenizer, n_positions=64)
    out = pack / "evaluation"
    out.mkdir()
    files = EvaluationFiles(model=model, data=pack, out=out)
    with pytest.raises(RapidunError, match=r"fit into 24 tokens \(the model's window of 64 less max_new_tokens=40\)"):
        run_evaluation(EvaluationConfig(max_new_tokens=40), files, **SHARED, max_length=96, tracker=Tracker())
