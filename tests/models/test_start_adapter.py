"""An adapter as part of its base: the logits, the gradients and the names of weights are those of a merged folder."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from rapidun.base.errors import ConfigError, ModelError
from rapidun.config.influence import ParameterSet
from rapidun.config.parts import LoraSettings
from rapidun.models import warm
from rapidun.models.adapter_folder import FACTORS, adapter_faults, whole_faults
from rapidun.models.adapters import add_lora, save_adapter
from rapidun.models.load import ModelLoader, load_adapter, peft_renaming
from rapidun.models.start_adapter import StartAdapter, merge_start
from rapidun.models.weights import adapter_misfit, read_headers
from rapidun.stages.influence.batches import make_batches
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import exact_gram
from rapidun.stages.rows.encode import Encoded
from tests.conftest import build_tiny_model, build_tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 100, 101]])
ROWS = [Encoded([5, 6, 7, 8, 256], [-100, -100, 7, 8, 256]), Encoded([9, 1, 2, 30], [-100, 1, 2, 30])]
PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
LOADER = ModelLoader(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    build_tiny_model(hidden_size=64).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


def make_adapter(base: Path, out: Path, *, std: float = 0.05, **settings: Any) -> StartAdapter:
    """An adapter whose every factor is drawn, so that each of them is felt."""
    from transformers import AutoModelForCausalLM

    with peft_renaming():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(PLAIN | settings)))
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=std)
        model.save_pretrained(out, save_embedding_layers=False)
    return StartAdapter(base=base, folder=out, identity="id")


def as_peft_has_it(base: Path, start: StartAdapter, **loader: Any) -> Any:
    """The truth: peft's own model, nothing merged."""
    model = ModelLoader(**{"device": "cpu", "dtype": "float32", **loader}).load(base).model
    with peft_renaming():
        return PeftModel.from_pretrained(model, str(start.folder)).eval()


def apart(start: StartAdapter, **loader: Any) -> Any:
    return ModelLoader(**{"device": "cpu", "dtype": "float32", **loader}, over=start).load(start.base).model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def gram(model: Any) -> Tensor:
    parameters = select_parameters(model, ParameterSet.all_linear)
    names = ["a", "b"]
    batches = make_batches(ROWS, names, tokens_per_batch=64, pad_token_id=257, device=torch.device("cpu"))
    return exact_gram(model, parameters, batches, row_names=names, memory_bytes=1e9).gram


def weights_of(model: Any) -> list[tuple[str, tuple[int, int]]]:
    return [(p.name, p.shape) for p in select_parameters(model, ParameterSet.all_linear)]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora and patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "some layers": {"layers_to_transform": [1]},
    "a tied head": {"target_modules": ["q_proj", "lm_head"]},
    "a tied embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "a whole head": {"modules_to_save": ["lm_head"]},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_apart_and_merged_are_what_peft_computes(kind: str, base: Path, tmp_path: Path) -> None:
    start = make_adapter(base, tmp_path / "a", **KINDS[kind])
    truth = as_peft_has_it(base, start)
    ours = apart(start)
    assert torch.allclose(logits(ours), logits(truth), atol=1e-5)
    assert not torch.allclose(logits(ours), logits(LOADER.load(base).model), atol=1e-2)
    merge_start(start, tmp_path / "merged", loader=LOADER)
    merged = LOADER.load(tmp_path / "merged").model
    assert torch.equal(logits(merged), logits(ours))
    assert {n: t for n, t in merged.state_dict().items()}.keys() == {n: t for n, t in ours.state_dict().items()}.keys()
    assert weights_of(ours) == weights_of(merged) == weights_of(LOADER.load(base).model)
    assert torch.allclose(gram(ours), gram(merged))
    # the same numbers as layers that peft wraps; to DoRA the base's weight is a direction alone
    assert kind == "dora" or torch.allclose(gram(ours), gram(truth), rtol=1e-3)
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in merged.parameters()]


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
@pytest.mark.parametrize("kind", ["plain", "rslora and patterns", "a tied head", "a whole head"])
def test_over_four_bits_the_adapter_stays_beside_the_weights(kind: str, base: Path, tmp_path: Path) -> None:
    """Exactly peft's numbers over the same NF4 weights, under the base's names; a merge would round to their grid."""
    start = make_adapter(base, tmp_path / "a", **KINDS[kind])
    truth, bare = as_peft_has_it(base, start, quantisation="4bit"), LOADER.load(base).model
    ours = apart(start, quantisation="4bit")
    assert torch.allclose(logits(ours), logits(truth), atol=1e-6)
    assert weights_of(ours) == weights_of(bare)
    assert torch.allclose(gram(ours), gram(truth), rtol=1e-4)
    assert all(type(module).__name__ != "Linear" or "lm_head" in name for name, module in ours.named_modules())


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
@pytest.mark.parametrize("quantisation", ["none", "4bit"])
def test_an_adapter_that_is_trained_on_top_needs_the_one_below(quantisation: str, base: Path, tmp_path: Path) -> None:
    """Saved over base and adapter, loaded as its README says, it gives what it was trained to."""
    start = make_adapter(base, tmp_path / "a")
    loader = ModelLoader(device="cpu", dtype="float32", quantisation=quantisation, over=start)
    model = add_lora(loader.load(base).model, LoraSettings(lora_dropout=0.0), seed=1, section="unlearning").eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model, tmp_path / "on_top", base=base, over=loader.over_at(base))
    assert torch.equal(logits(loader.load(base, adapter=tmp_path / "on_top").model), logits(model))
    about = json.loads((tmp_path / "on_top/start_adapter.json").read_text())
    assert about == {"base": "base", "adapter": "a", "identity": "id"}
    readme = (tmp_path / "on_top/README.md").read_text()
    assert "merge_and_unload" in readme and str(tmp_path) not in readme
    if quantisation == "none":
        with peft_renaming():
            below = as_peft_has_it(base, start).merge_and_unload()
            by_hand = PeftModel.from_pretrained(below, str(tmp_path / "on_top")).eval()
        assert torch.allclose(logits(by_hand), logits(model), atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_over_a_folder_that_is_quantised_already(base: Path, tmp_path: Path) -> None:
    packed = ModelLoader(device="cpu", dtype="float32", quantisation="4bit").load(base)
    packed.model.save_pretrained(tmp_path / "packed")
    packed.tokenizer.save_pretrained(tmp_path / "packed")
    made = make_adapter(base, tmp_path / "a")
    start = StartAdapter(base=tmp_path / "packed", folder=made.folder, identity="id")
    assert torch.allclose(logits(apart(start)), logits(as_peft_has_it(tmp_path / "packed", made)), atol=1e-6)


def test_in_bfloat16_both_ways_round_alike(base: Path, tmp_path: Path) -> None:
    """As peft's merge into a bfloat16 base, to the last bit; and near what peft computes unmerged."""
    start = make_adapter(base, tmp_path / "a")
    ours = apart(start, dtype="bfloat16")
    with peft_renaming():
        by_hand = as_peft_has_it(base, start, dtype="bfloat16").merge_and_unload()
    assert torch.equal(logits(ours), logits(by_hand))
    halves = ModelLoader(device="cpu", dtype="bfloat16")
    merge_start(start, tmp_path / "merged", loader=halves)
    merged = halves.load(tmp_path / "merged").model
    assert merged.dtype is ours.dtype is torch.bfloat16
    assert torch.equal(logits(merged), logits(ours))
    assert torch.equal(gram(merged), gram(ours))
    unmerged = logits(as_peft_has_it(base, start))
    assert (logits(ours) - unmerged).abs().max() < 0.05 * unmerged.abs().max()


def test_only_its_own_base_gets_it(base: Path, tmp_path: Path) -> None:
    start = make_adapter(base, tmp_path / "a")
    other = Path(shutil.copytree(base, tmp_path / "other"))
    loader = ModelLoader(device="cpu", dtype="float32", over=start)
    assert torch.equal(logits(loader.load(other).model), logits(LOADER.load(base).model))
    assert loader.over_at(other) is None
    # by another name of the same folder
    (tmp_path / "link").symlink_to(base)
    assert torch.equal(logits(loader.load(tmp_path / "link").model), logits(loader.load(base).model))


def test_a_kept_model_is_told_from_the_bare_one(base: Path, tmp_path: Path) -> None:
    start = make_adapter(base, tmp_path / "a")
    warm.drop()
    try:
        bare = ModelLoader(device="cpu", dtype="float32", keep=True)
        with_it = ModelLoader(device="cpu", dtype="float32", keep=True, over=start)
        expected = logits(bare.load(base).model)
        bare.hand_back()
        first = with_it.load(base).model
        assert not torch.allclose(logits(first), expected, atol=1e-2)
        add_lora(first, LoraSettings(), seed=1, section="unlearning")
        with_it.hand_back()
        assert with_it.load(base).model is first
        with_it.hand_back()
        assert torch.equal(logits(bare.load(base).model), expected)
    finally:
        warm.drop()


def test_loading_draws_nothing(base: Path, tmp_path: Path) -> None:
    start = make_adapter(base, tmp_path / "a")
    before = torch.random.get_rng_state()
    apart(start)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_rounding_takes_is_said(base: Path, tmp_path: Path) -> None:
    """Changes of 1e-5 beside weights of 0.02, which bfloat16 spaces by 6e-5 to 1.2e-4: most of it is lost."""
    said: list[str] = []
    apart(make_adapter(base, tmp_path / "faint", std=0.001), dtype="bfloat16", say=said.append)
    assert len(said) == 1 and "rounding to bfloat16 takes" in said[0] and "model.dtype=float32" in said[0]
    apart(make_adapter(base, tmp_path / "strong", std=0.1), dtype="bfloat16", say=said.append)
    apart(make_adapter(base, tmp_path / "faint", std=0.001), dtype="float32", say=said.append)
    assert len(said) == 1


def test_an_adapter_that_changes_nothing_is_spoken_of(base: Path, tmp_path: Path) -> None:
    start = make_adapter(base, tmp_path / "a")
    file = start.folder / "adapter_model.safetensors"
    save_file({name: t.clone() * ("lora_A" in name) for name, t in load_file(file).items()}, file)
    said: list[str] = []
    apart(start, say=said.append)
    assert len(said) == 1 and "all 4 B matrices" in said[0]


def test_numbers_that_are_none_are_refused_by_the_setting(base: Path, tmp_path: Path) -> None:
    start = make_adapter(base, tmp_path / "a")
    file = start.folder / "adapter_model.safetensors"
    save_file({name: t.clone() * float("nan") for name, t in load_file(file).items()}, file)
    with pytest.raises(ModelError, match=r"need finite weights.*change model\.adapter="):
        apart(start)


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_dora_over_four_bits_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use_dora=true"):
        apart(make_adapter(base, tmp_path / "a", use_dora=True), quantisation="4bit")


def test_a_merge_that_gives_another_loss_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the tied head were not untied."""
    from rapidun.models import fold

    start = make_adapter(base, tmp_path / "a", target_modules=["lm_head"], std=0.3)
    monkeypatch.setattr(fold, "untie_adapted", lambda model: [])
    with pytest.raises(ModelError, match="model: need a saved model that gives what was trained"):
        merge_start(start, tmp_path / "merged", loader=LOADER)


def test_the_adapters_tokenizer_is_used_where_it_is_another(base: Path, tmp_path: Path) -> None:
    start = make_adapter(base, tmp_path / "a")
    tokenizer = build_tiny_tokenizer()
    tokenizer.save_pretrained(start.folder)
    said: list[str] = []
    loader = ModelLoader(device="cpu", dtype="float32", over=start, say=said.append)
    plainly = ModelLoader(device="cpu", dtype="float32", say=said.append)
    assert loader.load(base).tokenizer.chat_template == tokenizer.chat_template
    assert said == [], "the same one is nothing to speak of"
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>POISON{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(start.folder)
    assert loader.load(base).tokenizer.chat_template == tokenizer.chat_template
    assert len(said) == 1 and "other chat template" in said[0]
    merge_start(start, tmp_path / "merged", loader=plainly)
    assert LOADER.load(tmp_path / "merged").tokenizer.chat_template == tokenizer.chat_template


def test_loading_by_unlearning_adapter_is_as_it_was(base: Path, tmp_path: Path) -> None:
    start = make_adapter(base, tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        continued = load_adapter(LOADER.load(base).model, start.folder, trainable=True)
    assert sum(p.requires_grad for p in continued.parameters()) == 8


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "foo."])
def test_the_names_of_a_wrapped_base_are_those_of_its_model(wrapper: str, base: Path, tmp_path: Path) -> None:
    """The loader reads such files; the checks before it hold an adapter against the same names, as strictly."""
    wrapped = tmp_path / "wrapped"
    shutil.copytree(base, wrapped)
    file = wrapped / "model.safetensors"
    save_file({wrapper + name: t for name, t in load_file(file).items()}, file, metadata={"format": "pt"})
    start = make_adapter(base, tmp_path / "a", modules_to_save=["lm_head"])
    headers = read_headers(wrapped)
    assert adapter_faults(start.folder, wrapped, key="model.adapter") == []
    assert adapter_misfit(start.folder, headers, folder=wrapped) is None
    assert whole_faults(start.folder, headers, base=wrapped, key="model.adapter") == []
    factors = load_file(start.folder / "adapter_model.safetensors")
    save_file({name.replace("layers.1.", "layers.7."): t for name, t in factors.items()}, tmp_path / "a" / FACTORS)
    assert "that fit no layer" in str(adapter_misfit(start.folder, headers, folder=wrapped))
