"""Weight files against the model that is to be: every tensor has its place, or the folder is refused with names."""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rapidun.base.errors import ModelError
from rapidun.models.architecture import inspect
from rapidun.models.load import ModelLoader, local_folder
from rapidun.models.weights import Renaming, leading_components, read_headers, unwrapped, weight_files

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
IDS = torch.tensor([[5, 6, 7, 8]])


def names(rename: Callable[[str], str]) -> Change:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


@pytest.fixture
def variant(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny model with other tensors in its file, or other words in its config.json."""

    def make(change: Change = dict, **config: Any) -> Path:
        folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "m"))
        tensors = {name: tensor.clone() for name, tensor in change(load_file(folder / "model.safetensors")).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        words = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(words))
        return folder

    return make


def load(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ModelLoader(device="cpu").load(folder).model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


WRAPPED = {
    "compiled": (lambda name: f"_orig_mod.{name}", "_orig_mod"),
    "data parallel": (lambda name: f"module.{name}", "the prefix module."),
    "both": (lambda name: f"module._orig_mod.{name}", "the prefix module. and _orig_mod"),
    "the other way": (lambda name: f"_orig_mod.module.{name}", "the prefix module. and _orig_mod"),
    "compiled layer by layer": (
        lambda name: "_orig_mod." + name.replace("layers.0.", "layers.0._orig_mod."),
        "_orig_mod",
    ),
    "FSDP with checkpointing": (
        lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module._checkpoint_wrapped_module."),
        "_fsdp_wrapped_module and _checkpoint_wrapped_module",
    ),
    "base of an adapter": (lambda name: name.replace("q_proj.", "q_proj.base_layer."), "base_layer"),
    "peft's base": (
        lambda name: "base_model.model." + name.replace("q_proj.", "q_proj.base_layer."),
        "base_layer",
    ),
    "value-head wrapper": (lambda name: f"pretrained_model.{name}", "the prefix pretrained_model."),
    "somebody's module": (lambda name: f"net.lm.{name}", "the prefix net.lm."),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_what_a_wrapper_left_in_the_names_is_taken_off_and_said(how: str, variant: Any, tiny_model_dir: Path) -> None:
    rename, said = WRAPPED[how]
    folder = variant(names(rename))
    notes: list[str] = []
    model = ModelLoader(device="cpu", say=notes.append).load(folder).model
    assert torch.equal(logits(model), logits(load(tiny_model_dir)))
    assert len(notes) == 1
    assert said in notes[0]
    # saved again, the names are the model's own
    model.save_pretrained(folder / "again")
    assert set(load_file(folder / "again" / "model.safetensors")) == set(
        load_file(tiny_model_dir / "model.safetensors")
    )


def without(word: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if word not in name}


def noise(name: str, *shape: int) -> Change:
    return lambda tensors: {**tensors, name: torch.ones(shape)}


REFUSED: dict[str, tuple[Change, dict[str, Any], str]] = {
    "a layer is missing": (
        without("layers.1."),
        {},
        "9 of 21 tensors missing (first model.layers.1.input_layernorm.weight)",
    ),
    "one tensor is missing": (
        without("layers.1.mlp.up_proj"),
        {},
        "1 of 21 tensors missing (first model.layers.1.mlp.up_proj.weight)",
    ),
    "no head, and none tied": (dict, {"tie_word_embeddings": False}, "1 of 21 tensors missing (first lm_head.weight)"),
    "fewer layers in config.json": (
        dict,
        {"num_hidden_layers": 1},
        "9 that it has no use for (first model.layers.1.input_layernorm.weight)",
    ),
    "biases that the config does without": (
        noise("model.layers.0.self_attn.q_proj.bias", 16),
        {},
        "1 that it has no use for (first model.layers.0.self_attn.q_proj.bias)",
    ),
    "other widths": (
        dict,
        {"intermediate_size": 48},
        "6 of another shape (first model.layers.0.mlp.down_proj.weight: [16, 32] for [16, 48])",
    ),
    "a larger vocabulary in config.json": (dict, {"vocab_size": 280}, "model.embed_tokens.weight: [264, 16]"),
    "a classifier": (
        noise("score.weight", 2, 16),
        {},
        "1 that it has no use for (first score.weight)",
    ),
    "a value head": (
        lambda tensors: noise("v_head.summary.weight", 1, 16)(names(lambda n: f"pretrained_model.{n}")(tensors)),
        {},
        "21 that it has no use for (first pretrained_model.model.embed_tokens.weight)",
    ),
    "an adapter that was not merged": (
        lambda tensors: noise("model.layers.0.self_attn.q_proj.lora_A.default.weight", 2, 16)(
            names(lambda n: n.replace("q_proj.", "q_proj.base_layer."))(tensors)
        ),
        {},
        "a LoRA adapter among them: 1 tensors, first model.layers.0.self_attn.q_proj.lora_A.default.weight",
    ),
    "the same tensor wrapped and bare": (
        lambda tensors: {**tensors, **names(lambda n: f"_orig_mod.{n}")(tensors)},
        {},
        "two that are model.embed_tokens.weight once _orig_mod is taken off",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_whose_tensors_do_not_fit_is_refused_with_names(what: str, variant: Any) -> None:
    change, config, said = REFUSED[what]
    with pytest.raises(ModelError, match=re.escape(said)):
        load(variant(change, **config))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(value: float, variant: Any) -> None:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = value
        return tensors

    with pytest.raises(ModelError, match=r"1 of 512 numbers of model\.layers\.1\.mlp\.up_proj\.weight"):
        load(variant(spoil))


def test_large_but_finite_weights_are_fine(variant: Any) -> None:
    """Their sum overflows float32: 512 times 3e38."""

    def large(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["model.layers.1.mlp.up_proj.weight"].fill_(3e38)
        return tensors

    load(variant(large))


@pytest.mark.parametrize(
    "change",
    [
        dict,
        # what older versions saved besides
        noise("model.layers.0.self_attn.rotary_emb.inv_freq", 4),
        noise("model.rotary_emb.inv_freq", 4),
        noise("model.layers.0.self_attn.masked_bias"),
        noise("model.layers.0.self_attn.bias", 1, 1, 32, 32),
        # the head written out beside the embedding it is tied to
        lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]},
        # saved from the model without its head
        names(lambda name: name.removeprefix("model.")),
    ],
)
def test_right_folders_raise_no_alarm(change: Change, variant: Any, tiny_model_dir: Path) -> None:
    assert torch.equal(logits(load(variant(change))), logits(load(tiny_model_dir)))


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gptj", "opt", "bloom", "mixtral", "qwen2_moe", "mamba", "phi3"])
def test_other_families_are_read_as_they_were_saved(kind: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    small |= {"intermediate_size": 32, "vocab_size": 264, "num_local_experts": 2, "num_experts": 2, "ffn_dim": 32}
    small |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts_per_tok": 1}
    small |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "word_embed_proj_dim": 16}
    config = AutoConfig.for_model(kind, **small, pad_token_id=257, eos_token_id=256, bos_token_id=None)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    saved = read_headers(tmp_path)
    load(tmp_path)
    # and a file that lacks one of its tensors is not
    victim = sorted(name for name in saved if len(saved[name].shape) > 1)[-1]
    tensors = {name: tensor.clone() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    del tensors[victim]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing|another shape"):
        load(tmp_path)


def test_masks_in_old_gpt2_files_are_no_weights(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=264, bos_token_id=None)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    # as in the published gpt2: no `transformer.`, and the mask of each block
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor.clone() for name, tensor in tensors.items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load(tmp_path)


def test_the_report_of_a_wrapped_4bit_model_is_read_too(variant: Any, tiny_model_dir: Path) -> None:
    notes: list[str] = []
    wrapped = ModelLoader(device="cpu", quantisation="8bit", say=notes.append).load(
        variant(names(lambda name: f"_orig_mod.{name}"))
    )
    bare = ModelLoader(device="cpu", quantisation="8bit").load(tiny_model_dir)
    assert torch.equal(logits(wrapped.model), logits(bare.model))
    assert len(notes) == 1


# --- files --------------------------------------------------------------------------------------------------------


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


@pytest.fixture
def sharded(tiny_model_dir: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "m"))
    (folder / "model.safetensors").unlink()
    load(tiny_model_dir).save_pretrained(folder, max_shard_size="20KB")
    assert len(shards(folder)) > 1
    return folder


def test_shards_are_read_together(sharded: Path, tiny_model_dir: Path) -> None:
    assert weight_files(sharded) == shards(sharded)
    assert set(read_headers(sharded)) == set(load_file(tiny_model_dir / "model.safetensors"))
    assert torch.equal(logits(load(sharded)), logits(load(tiny_model_dir)))


def test_a_shard_that_is_not_there_is_named(sharded: Path) -> None:
    lost = shards(sharded)[-1]
    lost.unlink()
    with pytest.raises(ModelError, match=lost.name):
        load(sharded)


def test_a_shard_that_was_cut_is_named(sharded: Path) -> None:
    cut = shards(sharded)[0]
    cut.write_bytes(cut.read_bytes()[:-8])
    with pytest.raises(ModelError, match=rf"{cut.name} \(cut short: [0-9,]+ bytes, a whole file has"):
        load(sharded)


def test_a_tensor_in_two_shards_is_named(sharded: Path) -> None:
    first, last = shards(sharded)[0], shards(sharded)[-1]
    twice = next(iter(load_file(first)))
    save_file({**load_file(last), twice: load_file(first)[twice]}, last, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"got {re.escape(twice)} in both"):
        load(sharded)


def test_an_adapter_file_among_the_weights_is_refused(variant: Any, tiny_model_dir: Path) -> None:
    """transformers would load the base that it names instead of the folder's own weights."""
    folder = variant()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model_dir)}))
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        local_folder(folder)


# --- names --------------------------------------------------------------------------------------------------------


def test_names_of_a_plain_model_stay() -> None:
    plain = ["model.layers.0.module.weight", "lm_head.weight"]
    renaming = unwrapped(plain, folder=Path("m"))
    assert not renaming
    assert [renaming(name) for name in plain] == plain


def test_the_patterns_take_off_what_the_renaming_does() -> None:
    found = unwrapped(["module._orig_mod.a._orig_mod.w", "module.b._orig_mod.w"], folder=Path("m"))
    assert found == Renaming(("_orig_mod",), "module.")
    for name in ("module._orig_mod.a._orig_mod.w", "module.b._orig_mod.w"):
        bare = name
        for pattern in found.patterns(["module._orig_mod.a._orig_mod.w"]):
            bare = re.sub(pattern, "", bare, count=1)
        assert bare == found(name)


def test_leading_components() -> None:
    assert leading_components(["a.b.c.x", "a.b.d.y"]) == ["a.", "a.b."]
    assert leading_components(["a.x", "b.x"]) == []
    assert leading_components([]) == []


# --- codes for weights, own code, untied heads --------------------------------------------------------------------


def recoded(dtype: torch.dtype, words: str) -> Change:
    return lambda tensors: {name: t.to(dtype) if words in name else t for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("dtype", "words", "num", "first"),
    [
        (torch.int8, "layers.1.self_attn.q_proj", 1, "I8"),
        (torch.float8_e4m3fn, "_proj", 14, "F8_E4M3"),
        (torch.float8_e5m2, "embed_tokens", 1, "F8_E5M2"),
        (torch.uint8, "_norm", 1, "U8"),
        (torch.int32, "layers.0.mlp", 3, "I32"),
        (torch.bool, "down_proj", 2, "BOOL"),
    ],
)
def test_weights_that_are_codes_without_scales_are_refused(
    dtype: torch.dtype, words: str, num: int, first: str, variant: Any
) -> None:
    """At the first look and at every load."""
    if words == "_norm":
        words = "layers.0.input_layernorm"
    folder = variant(recoded(dtype, words))
    for look in (inspect, load):
        with pytest.raises(ModelError, match=rf"{num} of \d+ tensors .*{words}.*: {first}\)"):
            look(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_every_plain_type_are_read(dtype: torch.dtype, variant: Any) -> None:
    folder = variant(recoded(dtype, ""))
    inspect(folder)
    load(folder)


def test_integers_that_are_no_weights_raise_no_alarm(variant: Any, tiny_model_dir: Path) -> None:
    """Positions and masks, as older files hold them."""

    def more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        return tensors | {"model.position_ids": torch.arange(8)[None], "model.layers.0.self_attn.bias": mask}

    folder = variant(more)
    inspect(folder)
    assert torch.equal(logits(load(folder)), logits(load(tiny_model_dir)))


OWN = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"auto_map": OWN, "architectures": ["XForCausalLM"]}, "modeling_x.XForCausalLM"),
        ({"auto_map": OWN, "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"auto_map": OWN, "architectures": []}, "architectures none"),
        ({"architectures": ["LlamaWithMemoryForCausalLM"]}, "architectures LlamaWithMemoryForCausalLM"),
        ({"architectures": ["LlamaForCausalLM", "XLlama"]}, "architectures XLlama"),
    ],
)
def test_a_folder_of_its_own_code_is_refused(config: dict[str, Any], said: str, variant: Any) -> None:
    folder = variant(**config)
    for look in (inspect, load):
        with pytest.raises(ModelError, match="code of the folder is not run") as refused:
            look(folder)
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, None),
        ({"architectures": ["LlamaModel"]}, None),
        ({"architectures": ["LLaMAForCausalLM"]}, None),
        ({"architectures": ["FSDPLlamaForCausalLM"]}, None),
        ({"architectures": None}, None),
        ({"auto_map": {"AutoConfig": "configuration_x.XConfig"}}, None),
        ({"auto_map": OWN}, "code of its own"),
        ({"architectures": ["MistralForCausalLM"]}, "another model type"),
    ],
)
def test_stock_classes_stay_allowed(config: dict[str, Any], said: str | None, variant: Any) -> None:
    folder = variant(**config)
    load(folder)
    notes = inspect(folder).notes
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


def with_head(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: tensors | {"lm_head.weight": change(tensors["model.embed_tokens.weight"].clone())}


def last_row(tensor: Tensor) -> Tensor:
    tensor[-1, -1] += 1
    return tensor


@pytest.mark.parametrize(("change", "tied"), [(lambda t: t, True), (lambda t: -t, False), (last_row, False)])
def test_another_head_in_the_files_counts_more_than_tie_word_embeddings(
    change: Callable[[Tensor], Tensor], tied: bool, variant: Any
) -> None:
    folder = variant(with_head(change), tie_word_embeddings=True)
    facts = inspect(folder)
    assert facts.tied is tied
    assert len(facts.notes) == (not tied)
    assert tied or "lm_head.weight" in facts.notes[0]
    model = load(folder)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight) is tied
