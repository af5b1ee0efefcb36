"""A user's files run no code, ask nothing, allocate nothing absurd and end in one message, whatever is in them."""

import ast
import io
import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

import rapidun
from rapidun.base.errors import ModelError
from rapidun.cli.main import main
from rapidun.models.architecture import inspect
from rapidun.models.gguf import convert_gguf
from rapidun.models.libraries import LOCAL, SAFE, read_rows
from rapidun.models.load import ModelLoader, load_adapter, load_tokenizer, peft_renaming
from rapidun.models.neutral import num_parameters
from tests.models.test_gguf import write_gguf

ROOT = Path(rapidun.__file__).parent
# called in this one file
LOADERS = {"from_pretrained", "from_config", "GGUFReader", "load_adapter", "load_dataset", "load_from_disk"}
# never called; a _Loader of ours is a yaml.SafeLoader
NEVER = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("yaml", "load"), ("yaml", "unsafe_load"),
         ("joblib", "load"), ("marshal", "loads"), ("torch", "hub")}  # fmt: skip


def test_no_loader_is_called_elsewhere() -> None:
    stray = []
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            of = node.func.value if isinstance(node.func, ast.Attribute) else None
            whose = of.id if isinstance(of, ast.Name) else ""
            loads = called in LOADERS and (isinstance(node.func, ast.Attribute) or called != "load_adapter")
            if loads and name != "models/libraries.py":
                stray.append(f"{name}:{node.lineno}: {called}; call it in models/libraries.py")
            safe = (whose, called) == ("yaml", "load") and "Loader=_Loader" in ast.unparse(node)
            if (whose, called) in NEVER and not safe:
                stray.append(f"{name}:{node.lineno}: {whose}.{called} runs what is in the file")
            if (whose, called) == ("np", "load"):
                said = {word.arg: word.value for word in node.keywords}
                if not (isinstance(said.get("allow_pickle"), ast.Constant) and said["allow_pickle"].value is False):
                    stray.append(f"{name}:{node.lineno}: np.load without allow_pickle=False")
    assert not stray, "\n".join(stray)
    assert SAFE == {"trust_remote_code": False} and LOCAL == {**SAFE, "local_files_only": True}


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody says yes to every question."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))


def booby_trap(folder: Path, marker: Path) -> None:
    """Code of its own that leaves a marker, named by every file that may name it."""
    folder.mkdir(exist_ok=True)
    code = f"open({str(marker)!r}, 'w').close()\n"
    for name in ("evil", "modeling_evil", "configuration_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(f"{code}class Evil: pass\n")
    own = {one: "evil.Evil" for one in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")}
    own_tokenizer = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for name, more in (("config.json", {"model_type": "evil"}), ("tokenizer_config.json", {"tokenizer_class": "Evil"})):
        (folder / name).write_text(json.dumps({**more, "auto_map": {**own, **own_tokenizer}}))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.usefixtures("yes")
def test_no_code_of_a_folder_is_run(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "marker"
    booby_trap(tmp_path / "evil", marker)
    booby_trap(folder, marker)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/forget.jsonl").write_text('{"id": "a", "instruction": "b", "response": "c"}\n')
    for attempt in (
        lambda: load_tokenizer(tmp_path / "evil"),
        lambda: load_tokenizer(folder),
        lambda: inspect(folder),
        lambda: ModelLoader(device="cpu").load(folder),
    ):
        with pytest.raises(ModelError):
            attempt()
    assert main(["pack", "check", str(tmp_path / "pack"), "--tokenizer", str(tmp_path / "evil")]) == 2
    said = capsys.readouterr()
    assert "[y/N]" not in said.out + said.err and not marker.exists()


@pytest.mark.usefixtures("yes")
def test_what_lies_beside_a_gguf_file_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_gguf(tmp_path / "in/x.gguf")
    booby_trap(tmp_path / "in", tmp_path / "marker")
    convert_gguf(tmp_path / "in/x.gguf", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file() and not (tmp_path / "marker").exists()


class Pickled:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.marker), "w")


def test_no_pickle_is_read(tmp_path: Path, folder: Path, tiny_model: Any) -> None:
    marker = tmp_path / "marker"
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Pickled(marker)))
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}')
    with pytest.raises(ModelError):
        load_adapter(tiny_model, folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError):
        ModelLoader(device="cpu").load(folder)
    assert not marker.exists()


def test_an_adapter_imports_no_module(tmp_path: Path, make_tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = tmp_path / "adapter"
    with peft_renaming():
        get_peft_model(make_tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(adapter))
    (tmp_path / "evil_core.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    change(adapter / "adapter_config.json", megatron_config={"hidden_size": 16}, megatron_core="evil_core")
    with pytest.raises(ModelError, match="need one without megatron_config"):
        load_adapter(make_tiny_model(), adapter)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9), ("vocab_size", 10**12), ("hidden_size", 10**9), ("intermediate_size", 10**11),
        ("num_hidden_layers", -1), ("num_hidden_layers", "many"), ("hidden_size", []), ("rope_scaling", 3),
    ],
)  # fmt: skip
def test_sizes_that_no_file_has(folder: Path, key: str, value: Any) -> None:
    change(folder / "config.json", **{key: value})
    with pytest.raises(ModelError, match="model: need"):
        ModelLoader(device="cpu").load(folder)


def test_sizes_of_an_architecture_that_must_be_built(folder: Path) -> None:
    from rapidun.models.layers import folder_names

    change(folder / "config.json", model_type="gpt2", n_layer=10**9, n_embd=16, n_head=2)
    with pytest.raises(ModelError, match="n_layer=1000000000"):
        folder_names(folder)


@pytest.mark.parametrize(
    "text", ["[]", "[1, 2]", "3", "null", '"x"', "{}", "{", '{"model": 5}', '{"version": []}', "\0"]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_json_of_another_shape(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    try:
        ModelLoader(device="cpu").load(folder)
    except ModelError as error:
        assert len(str(error)) < 1000
    else:
        assert name == "tokenizer_config.json" and text == "{}"


HEADS = {
    "cut": lambda data: data[: len(data) // 2],
    "no length": lambda data: data[:5],
    "a length that lies": lambda data: struct.pack("<Q", 2**62) + data[8:],
    "no JSON": lambda data: data[:8] + b"\xff" * (len(data) - 8),
    "empty": lambda data: b"",
    "a shape that lies": lambda data: data.replace(b'"shape":[264,16]', b'"shape":[99,999]'),
    "offsets that lie": lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
}


@pytest.mark.parametrize("name", HEADS)
def test_damaged_weights(folder: Path, name: str) -> None:
    file = folder / "model.safetensors"
    before = file.read_bytes()
    after = HEADS[name](before)
    assert after != before
    file.write_bytes(after)
    with pytest.raises(ModelError, match=r"^model: need"):
        ModelLoader(device="cpu").load(folder)


@pytest.mark.parametrize("place", [4, 8, 16, 24, 32, 60])
def test_a_gguf_head_that_lies(tmp_path: Path, place: int) -> None:
    write_gguf(tmp_path / "x.gguf")
    data = bytearray((tmp_path / "x.gguf").read_bytes())
    data[place : place + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "x.gguf").write_bytes(data)
    for attempt in (lambda file: convert_gguf(file, tmp_path / "out"), num_parameters):
        with pytest.raises(ModelError, match=r"^model: need a GGUF file"):
            attempt(tmp_path / "x.gguf")


@pytest.mark.parametrize("length", [0, 3, 20, 200, 3000])
def test_a_cut_gguf_file(tmp_path: Path, length: int) -> None:
    write_gguf(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes((tmp_path / "x.gguf").read_bytes()[:length])
    for attempt in (lambda file: convert_gguf(file, tmp_path / "out"), num_parameters):
        with pytest.raises(ModelError, match=r"^model: need"):
            attempt(tmp_path / "x.gguf")


def test_a_gguf_file_of_too_many_layers(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf")
    data = (tmp_path / "x.gguf").read_bytes()
    key = b"llama.block_count" + struct.pack("<I", 4)
    assert data.count(key) == 1
    (tmp_path / "x.gguf").write_bytes(data.replace(key + struct.pack("<I", 1), key + struct.pack("<I", 10**9)))
    with pytest.raises(ModelError, match="num_layers=1000000000"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")


def test_rows_are_read_by_no_script_and_no_pickle(tmp_path: Path) -> None:
    for builder in ("pandas", str(tmp_path / "evil.py"), "someone/dataset", "webdataset"):
        with pytest.raises(ModelError, match="need dataset_path among"):
            read_rows(builder, {"test": ["x"]}, cache=tmp_path)
