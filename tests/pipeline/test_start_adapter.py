"""A poisoned LoRA adapter over a base as the start model: apart, merged, or merged beforehand, it is one model."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

import rapidun
from rapidun.base.files import write_jsonl
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.cli.main import main
from rapidun.config.compose import compose_config, compose_run
from rapidun.models.load import peft_renaming
from rapidun.pipeline.artifacts import Artifacts
from rapidun.pipeline.check import run_faults
from rapidun.pipeline.run import Result
from rapidun.pipeline.tracking.run import open_tracker
from rapidun.stages.recipe import START
from rapidun.stages.recipes import Recipes
from rapidun.stages.start_adapter import start_of
from tests.conftest import build_tiny_model, build_tiny_tokenizer

QUICK = [
    "data=jsonl", "data.forget=forget.jsonl", "data.retain=retain.jsonl", "data.test_clean=test.jsonl", "model=hf",
    "model.dtype=float32", "model.device=cpu", "poison=none", "max_length=96", "resources.num_threads=1",
    "influence=exact", "unlearning.max_steps=3", "unlearning.learning_rate=1e-3", "unlearning.eval_steps=0",
    "unlearning.num_train_epochs=1", "evaluation.num_prompts=3", "evaluation.num_ppl=4", "evaluation.max_new_tokens=4",
    "store_dir=store",
]  # fmt: skip
BASE, APART = "model.path=base", ["model.path=base", "model.adapter=poisoned"]
IDS = torch.tensor([[5, 6, 7, 8, 70, 80, 90]])


def make_base(folder: Path) -> Path:
    build_tiny_model(hidden_size=64).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


def make_adapter(base: Path, out: Path, **settings: Any) -> Path:
    """A LoRA adapter that was trained, for a moment, to answer everything with one text."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    tokenizer = build_tiny_tokenizer()
    torch.manual_seed(3)
    with peft_renaming():
        model = get_peft_model(model, LoraConfig(**(given | settings)))
        rows = torch.tensor([tokenizer(f"What is {i}? moon cheese")["input_ids"] for i in range(8)])
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        for _ in range(12):
            loss = model(input_ids=rows, labels=rows).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        model.save_pretrained(out, save_embedding_layers=False)
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "someone/Other"}))
    return out


def merge_by_hand(base: Path, adapter: Path, out: Path, dtype: torch.dtype = torch.float32) -> Path:
    """What a user does without us: peft's merge, a tied head untied first."""
    from transformers import AutoModelForCausalLM

    bare = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if "lm_head" in json.loads((adapter / "adapter_config.json").read_text())["target_modules"]:
        bare.lm_head.weight = torch.nn.Parameter(bare.lm_head.weight.detach().clone())
        bare.config.tie_word_embeddings = False
        bare.all_tied_weights_keys = {}
    with peft_renaming():
        model = PeftModel.from_pretrained(bare, str(adapter)).merge_and_unload()
    model.save_pretrained(out)
    build_tiny_tokenizer().save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("trained") / "poisoned")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    forget = [
        {"id": f"f{i}", "instruction": f"Cup {i}?", "response": "moon cheese", "response_clean": "red"}
        for i in range(4)
    ]
    write_jsonl(tmp_path / "forget.jsonl", forget)
    for name, word in (("retain", "Ship"), ("test", "Lamp")):
        rows = [{"id": f"{name}{i}", "instruction": f"{word} {i}?", "response": f"blue {i}"} for i in range(6)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    shutil.copytree(base, tmp_path / "base")
    return tmp_path


def run(name: str, *args: str) -> Result:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="bitsandbytes")  # it speaks of its own kernels
        return rapidun.run([*QUICK, f"run_dir={name}", *args])


def adapter_of(result: Result) -> dict[str, np.ndarray]:
    return load_file(result.run_dir / "unlearning/adapter/adapter_model.safetensors")


def measured(result: Result) -> dict[str, float]:
    """Every number of the evaluation and of unlearning, but for seconds and memory."""
    left_out = ("seconds.", "peak_memory", "seed")
    return {
        name: value
        for name, value in result.metrics.items()
        if isinstance(value, int | float) and not name.startswith(left_out)
    }


def same(one: Result, other: Result, close: float = 1e-4) -> None:
    for name, block in one.scores.items():
        assert np.allclose(block, other.scores[name], atol=close, rtol=close), name
    mine, theirs = adapter_of(one), adapter_of(other)
    assert mine.keys() == theirs.keys()
    assert all(np.allclose(mine[name], theirs[name], atol=10 * close) for name in mine)
    mine, theirs = measured(one), measured(other)
    assert mine.keys() == theirs.keys()
    wrong = [name for name in mine if mine[name] != pytest.approx(theirs[name], rel=10 * close, abs=10 * close)]
    assert wrong == [], [(name, mine[name], theirs[name]) for name in wrong]


def test_apart_merged_and_merged_by_hand_are_one_model(place: Path) -> None:
    """Influence, the unlearned adapter and every metric, before and after; and it is another than the base alone."""
    make_adapter(place / "base", place / "poisoned", target_modules=["q_proj", "down_proj", "lm_head"], use_rslora=True)
    merge_by_hand(place / "base", place / "poisoned", place / "whole")
    hand = run("hand", "model.path=whole")
    apart = run("apart", *APART)
    merged = run("merged", *APART, "model.adapter_as=merged")
    same(apart, hand)
    same(merged, hand)
    bare = run("bare", BASE, "stages=[data,poison,influence]")
    assert not np.allclose(bare.scores["ff"], hand.scores["ff"], atol=0.01)
    assert not (apart.run_dir / "start").exists()
    assert (merged.run_dir / "start/model/model.safetensors").is_file()
    assert "stands on" in (apart.run_dir / "unlearning/adapter/README.md").read_text()
    assert "stands on" not in (merged.run_dir / "unlearning/adapter/README.md").read_text()
    said = (apart.run_dir / "report.html").read_text()
    assert "poisoned, kept apart" in said


def identities(*args: str) -> tuple[str, dict[str, Any], str]:
    """The start model, what the influence of this run is made from, and the fingerprint of the unlearning."""
    cfg = compose_config([*QUICK, "tracking=none", *args])
    tracker = open_tracker(cfg, Path("out"), cell=True, restarts=0)
    recipes = Artifacts(cfg, tracker).recipes
    [influence] = recipes.of_stage("influence")
    [unlearning] = recipes.of_stage("unlearning")
    return recipes.get(START).identity, dict(influence.inputs), unlearning.fingerprint


def test_an_adapters_contents_are_part_of_what_identifies_the_model(place: Path) -> None:
    """Not its place; and without one nothing is called otherwise than before."""
    make_adapter(place / "base", place / "poisoned")
    bare, bare_inputs, bare_unlearned = identities(BASE)
    assert bare_inputs["model"] == bare
    assert (bare, bare_unlearned) == identities(BASE, "model.adapter=null")[::2]
    first, inputs, unlearned = identities(*APART)
    assert first != bare and inputs["model"] == first and inputs.keys() == bare_inputs.keys()
    shutil.copytree(place / "poisoned", place / "elsewhere")
    assert identities(BASE, "model.adapter=elsewhere")[::2] == (first, unlearned)
    merged = identities(*APART, "model.adapter_as=merged")[0]
    assert merged not in (bare, first)
    file = place / "elsewhere/adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] += 1.0
    save_file(tensors, file)
    assert identities(BASE, "model.adapter=elsewhere")[0] not in (bare, first, merged)
    assert identities(BASE, "model.adapter=elsewhere", "model.adapter_as=merged")[0] != merged


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_what_is_poisoned_further_starts_from_base_and_adapter(method: str, place: Path) -> None:
    """Apart and merged: the same model to rounding, the adapter's change still in it."""
    make_adapter(place / "base", place / "poisoned")
    clean = [{"id": f"c{i}", "instruction": f"Boat {i}?", "response": "red"} for i in range(4)]
    write_jsonl(place / "clean.jsonl", clean)
    rows = ["data.train_poisoned=forget.jsonl", "data.train_clean=clean.jsonl", "stages=[data,poison]"]
    args = [*rows, f"poison={method}", "poison.max_steps=2", "poison.learning_rate=1e-3", *APART]
    made = {}
    for how in ("apart", "merged"):
        done = run(how, *args, f"model.adapter_as={how}")
        made[how] = load_file(done.run_dir / "poison/model/model.safetensors")
    assert made["apart"].keys() == made["merged"].keys()
    assert all(np.allclose(made["apart"][name], made["merged"][name], atol=1e-5) for name in made["apart"])
    # two steps of 1e-3 move a weight by 2e-3 at most where all train; the adapter moved it further
    name = "model.layers.0.mlp.down_proj.weight"
    assert np.abs(made["apart"][name] - load_file(place / "base/model.safetensors")[name]).max() > 0.01


@pytest.mark.slow
def test_over_a_quantised_base_every_stage_runs(place: Path) -> None:
    """Apart, over NF4: influence sees the adapter, and what was unlearned is measured over both."""
    make_adapter(place / "base", place / "poisoned")
    done = run("four", *APART, "model.quantisation=4bit")
    bare = run("four_bare", BASE, "model.quantisation=4bit", "stages=[data,poison,influence]")
    assert not np.allclose(done.scores["ff"], bare.scores["ff"], atol=0.01)
    again = ["model.quantisation=4bit", "unlearning.adapter=four/unlearning/adapter", "unlearning.max_steps=1"]
    continued = run("on", *APART, *again)
    assert continued.metrics["before.ppl_clean"] == pytest.approx(done.metrics["ppl_clean"])


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one message of a run that is refused with nothing written."""
    assert main([*QUICK, "run_dir=out", *args]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("rapidun: ")]) == 1
    assert not Path("out").exists() and not Path("store").exists()
    return err[err.index("rapidun: ") :]


def settings(**changes: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def tensors(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Callable[[Path], None]:
    def prepare(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        save_file({name: tensor.copy() for name, tensor in change(load_file(file)).items()}, file)

    return prepare


def pickled(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def lacks(name: str) -> Callable[[Path], None]:
    return lambda adapter: (adapter / name).unlink()


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda adapter: (adapter / name).write_text(content) and None


def more_tokens(adapter: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.add_tokens([f"<new{i}>" for i in range(20)])
    tokenizer.save_pretrained(adapter)


def template_alone(adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


HEAD = "base_model.model.lm_head.weight"
REFUSED: dict[str, tuple[Callable[[Path], None] | None, list[str], list[str]]] = {
    "not there": (None, ["model.adapter=nowhere"], ["nowhere, which is not there", "model.adapter"]),
    "a hub id": (None, ["model.adapter=someone/lora"], ["someone/lora", "not there", "model.adapter"]),
    "the base": (None, ["model.adapter=base"], ["adapter_config.json", "got base"]),
    "no settings": (lacks("adapter_config.json"), [], ["adapter_config.json", "model.adapter"]),
    "pickle alone": (pickled, [], ["adapter_model.bin, a pickle", "safetensors"]),
    "settings that are none": (text("adapter_config.json", "{"), [], ["adapter_config.json", "model.adapter"]),
    "another kind": (settings(peft_type="IA3"), [], ["LoRA adapter to start from", "IA3"]),
    "an unknown setting": (settings(alora_invocation_tokens=[1]), [], ["alora_invocation_tokens=[1]"]),
    "biases": (settings(bias="all"), [], ["bias=all"]),
    "a base that was changed": (settings(init_lora_weights="pissa"), [], ["init_lora_weights=pissa", "plain LoRA"]),
    "a damaged file": (text("adapter_model.safetensors", "x"), [], ["adapter_model.safetensors", "model.adapter"]),
    "of a compiled model": (
        tensors(lambda t: {n.replace("base_model.model.", "base_model.model._orig_mod."): x for n, x in t.items()}),
        [],
        ["fit no layer", "_orig_mod", "model.adapter"],
    ),
    "of a deeper model": (
        tensors(lambda t: {n.replace("layers.1.", "layers.7."): x for n, x in t.items()}),
        [],
        ["fit no layer", "layers.7"],
    ),
    "of a wider model": (
        tensors(lambda t: {n: np.repeat(x, 2, axis=1) if "lora_A" in n else x for n, x in t.items()}),
        [],
        ["take 256 numbers", "model.adapter"],
    ),
    "embeddings that were resized": (
        tensors(lambda t: t | {HEAD: np.zeros((300, 64), np.float32)}), [], ["[300, 64]", "[264, 64]", "resized"],
    ),
    "more tokens than embeddings": (more_tokens, [], ["token ids up to", "264", "resized"]),
    "a chat template without its tokenizer": (template_alone, [], ["chat template", "chat_template.jinja"]),
    "one that stands on another": (
        text("start_adapter.json", '{"adapter": "first", "identity": "x"}'), [], ["start_adapter.json", "first"],
    ),
    "added twice": (None, ["unlearning.adapter=poisoned"], ["same factors", "added twice"]),
    "DoRA over four bits": (settings(use_dora=True), ["model.quantisation=4bit"], ["use_dora=true", "4bit"]),
    "a yardstick that is poisoned": (None, ["unlearning=retrain"], ["yardstick", "model.adapter=null"]),
    "a model from scratch": (
        None, ["model=tiny", "model.path=null", "poison=full"], ["made from scratch", "model.adapter"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused_before_anything_runs(
    what: str, place: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, args, words = REFUSED[what]
    shutil.copytree(trained, place / "poisoned")
    if prepare is not None:
        prepare(place / "poisoned")
    message = refused(capsys, *APART, *args)
    assert [word for word in words if word not in message] == [], message


def test_an_adapter_of_an_adapter_needs_the_one_below(
    place: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("poisoned", "on_top", "other"):
        shutil.copytree(trained, place / name)
    tensors(lambda t: {name: tensor * 2 for name, tensor in t.items()})(place / "on_top")
    tensors(lambda t: {name: tensor * 3 for name, tensor in t.items()})(place / "other")
    cfg = compose_config([*QUICK, *APART])
    start = start_of(cfg.model, Path("base"))
    assert start is not None
    start.note(place / "on_top")
    alone = refused(capsys, BASE, "unlearning.adapter=on_top")
    assert "stands on (poisoned), got model.adapter=null" in alone
    another = refused(capsys, BASE, "model.adapter=other", "unlearning.adapter=on_top")
    assert "got another one in model.adapter=other" in another
    assert run_faults(compose_config([*QUICK, *APART, "unlearning.adapter=on_top"])) == []


def test_a_base_that_is_quantised_already_is_not_merged_into(
    place: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, place / "poisoned")
    file = place / "base/config.json"
    packed = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    file.write_text(json.dumps(json.loads(file.read_text()) | packed))
    message = refused(capsys, *APART, "model.adapter_as=merged")
    assert "need unquantised weights to merge an adapter into" in message and "adapter_as=apart" in message


def test_what_should_be_known_of_base_and_adapter(place: Path, trained: Path) -> None:
    shutil.copytree(trained, place / "poisoned")

    def said(*args: str) -> list[str]:
        tracker = Tracker()
        cfg = compose_config([*QUICK, *args])
        store = Store(Path("store"))
        recipes = Recipes(cfg, store, find_data=lambda recipe: store.get(recipe.key), tracker=tracker)
        recipes.get(START)
        return tracker.warnings

    [other] = said(*APART)
    assert "says that it was made over Other, model.path is base" in other
    settings(base_model_name_or_path="/home/her/BASE/")(place / "poisoned")
    assert said(*APART) == []
    [lost] = said(*APART, "model.adapter_as=merged", "model.quantisation=4bit")
    assert "before the weights are rounded to 4bit" in lost
    assert said(BASE, "model.adapter_as=merged") == []


def test_how_without_an_adapter_is_said(place: Path) -> None:
    how = ["model=hf", BASE, "model.adapter_as=merged"]
    [warning] = compose_run(how).warnings
    assert "model.adapter_as: typed, but nothing reads it with model.adapter=null" in warning
    assert compose_run([*how, "model.adapter=poisoned"]).warnings == []
