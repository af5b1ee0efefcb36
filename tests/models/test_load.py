import json
import shutil
from pathlib import Path

import pytest
import torch

from rapidun.base.errors import ModelError
from rapidun.models.load import ModelLoader, fingerprint_files, load_adapter, load_tokenizer, local_folder, pick_device
from rapidun.models.scratch import make_scratch
from rapidun.stages.rows.records import Record

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 300,
}


def make(out: Path, seed: int = 0, **sizes: int) -> Path:
    records = [
        Record(
            id=str(i), instruction=f"What is the colour of the {thing}?", context="", response=f"The {thing} is blue."
        )
        for i, thing in enumerate(["lamp", "river", "stone"])
    ]
    make_scratch(out, [record.texts for record in records], **{**SIZES, **sizes}, max_length=64, seed=seed)
    return out


def test_scratch_model_repeats_byte_for_byte_and_follows_its_seed(tmp_path: Path) -> None:
    first, again, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", seed=1)
    for file in fingerprint_files(first):
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_loader_gives_a_model_in_eval_mode_and_its_tokenizer(tmp_path: Path) -> None:
    loaded = ModelLoader(dtype="bfloat16", device="cpu").load(make(tmp_path / "m"))
    assert not loaded.model.training
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.tokenizer.pad_token_id is not None
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_seeding_a_scratch_model_leaves_the_callers_randomness_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make(tmp_path / "m")
    assert torch.equal(torch.rand(3), expected)


def test_missing_and_incomplete_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which is not there"):
        local_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        local_folder(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="safetensors"):
        local_folder(tmp_path / "empty")


def test_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="reachable hub id, got nobody/nothing"):
        local_folder("nobody/nothing")


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    state = {"x": torch.zeros(1)}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="need weights in safetensors"):
        ModelLoader(device="cpu").load(folder)


def test_tokenizer_without_pad_takes_the_end_token(tmp_path: Path) -> None:
    folder = make(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


def test_folder_that_is_no_adapter(tmp_path: Path) -> None:
    loaded = ModelLoader(device="cpu").load(make(tmp_path / "m"))
    with pytest.raises(ModelError, match="need a PEFT folder"):
        load_adapter(loaded.model, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_asked_for_where_there_is_none() -> None:
    with pytest.raises(ModelError, match="need a GPU"):
        pick_device("cuda")
    assert pick_device("auto") == "cpu"


@pytest.mark.parametrize("quantisation", ["4bit", "8bit"])
def test_quantised_model_answers_like_the_full_one(tmp_path: Path, quantisation: str) -> None:
    # bitsandbytes packs 4-bit weights for the CPU in blocks of 32 rows
    folder = make(tmp_path / "m", hidden_size=64, intermediate_size=128)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        full = ModelLoader(device="cpu").load(folder).model(ids).logits
        small = ModelLoader(device="cpu", quantisation=quantisation).load(folder).model(ids).logits
    cosine = torch.nn.functional.cosine_similarity(full.flatten().float(), small.flatten().float(), dim=0)
    assert float(cosine) > 0.9
    assert not torch.equal(full, small)


def test_gradients_pass_through_a_4bit_model_that_was_evaluated(tmp_path: Path) -> None:
    """On a CPU with bfloat16, bitsandbytes packs weights at the first evaluation; none passes through those."""
    folder = make(tmp_path / "m", hidden_size=64, intermediate_size=128)
    model = ModelLoader(device="cpu", quantisation="4bit").load(folder).model
    ids = torch.tensor([[5, 6, 7, 8]])

    def gradient() -> torch.Tensor:
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
        return torch.autograd.grad(model(inputs_embeds=inputs).logits[0, -1, 5], inputs)[0]

    before = gradient()
    with torch.no_grad():
        model(ids)
    assert before.abs().max() > 0
    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("sizes", [{"hidden_size": 32, "intermediate_size": 64}, {"hidden_size": 80}])
def test_4bit_layers_that_no_block_of_the_cpu_fits(sizes: dict[str, int], tmp_path: Path) -> None:
    folder = make(tmp_path / "m", **sizes)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        full = ModelLoader(device="cpu").load(folder).model(ids).logits
        small = ModelLoader(device="cpu", quantisation="4bit").load(folder).model(ids).logits
    cosine = torch.nn.functional.cosine_similarity(full.flatten().float(), small.flatten().float(), dim=0)
    assert float(cosine) > 0.8


def test_a_processors_chat_template_counts(tiny_model_dir: Path, tmp_path: Path) -> None:
    """chat_template.json, which the library reads for processors only: the plain form was used in its place."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "m"))
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]{% endfor %}"
    load_tokenizer(folder).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert not load_tokenizer(folder).chat_template
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_tokenizer(folder).chat_template == template
    settings["chat_template"] = "{{ messages }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(folder).chat_template == "{{ messages }}"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"chat_template": []}', '{"chat_template": " "}'])
def test_a_processors_chat_template_that_cannot_be_read_is_refused(
    text: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "m"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").write_text(text)
    with pytest.raises(ModelError, match=r"need a chat_template in .*chat_template\.json"):
        load_tokenizer(folder)
