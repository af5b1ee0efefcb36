"""`rapidun index` on a tiny model: what it writes, and what it refuses."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rapidun.cli.main import main
from rapidun.config.index import IndexSettings
from rapidun.config.influence import InfluenceMethod, LossReduction, ParameterSet
from rapidun.config.parts import LoraSettings
from rapidun.models.load import ModelLoader
from rapidun.stages.influence.batches import RowBatch, make_batches
from rapidun.stages.influence.gradients.params import select_parameters
from rapidun.stages.influence.gram import exact_gram
from rapidun.stages.influence.index.gradients import SKETCHES, VERSIONS, GradientRows, describe_model, settings_of
from rapidun.stages.influence.index.reader import Index
from rapidun.stages.influence.index.workers import RUN
from rapidun.stages.rows.encode import encode_rows
from rapidun.stages.rows.records import Record, write_records

K = 512
NUM_TRAIN = 14


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model_dir, make_records) -> Path:
    """Fourteen training rows, three queries (the first three rows), and an index of shards of four rows."""
    root = tmp_path_factory.mktemp("command")
    forget, retain = make_records(num_forget=4, num_retain=10)
    write_records(root / "train.jsonl", forget + retain)
    write_records(root / "queries.jsonl", forget[:3])
    assert _build(root, tiny_model_dir, "index") == 0
    return root


def _build(root: Path, model: Path, out: str, *more: str) -> int:
    command = ["--rows", str(root / "train.jsonl"), "--out", str(root / out), "--model", str(model)]
    command += ["--k", str(K), "--shard-rows", "4", "--device", "cpu", "--tokens-per-batch", "150", *more]
    return main(["index", "build", *command])


def _query(verb: str, root: Path, model: Path, out: Path, *more: str, index: str = "index") -> int:
    command = ["--queries", str(root / "queries.jsonl"), "--out", str(out), "--model", str(model), "--device", "cpu"]
    return main(["index", verb, str(root / index), *command, *more])


def _records(root: Path) -> list:
    from rapidun.stages.rows.records import read_records

    return read_records(root / "train.jsonl")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _exact(model_dir: Path, records: list) -> torch.Tensor:
    """[N, N] cosines of the gradients themselves."""
    model, tokenizer = ModelLoader(dtype="float32", device="cpu").load(model_dir)
    texts = [(r.instruction, r.context, r.response) for r in records]
    encoded = encode_rows(tokenizer, texts, max_length=256)
    names = [r.id for r in records]
    batches = make_batches(encoded, names, tokens_per_batch=300, pad_token_id=257, device=torch.device("cpu"))
    assert all(isinstance(batch, RowBatch) for batch in batches)
    parameters = select_parameters(model, ParameterSet.all_linear)
    gram = exact_gram(model, parameters, batches, row_names=names, memory_bytes=1e9).gram
    norms = gram.diagonal().sqrt()
    return gram / torch.outer(norms, norms)


def test_scores_are_near_the_exact_ones(place, tiny_model_dir, tmp_path, capsys):
    """sd of a sketched cosine at K = 512: 0.044 where the rows are orthogonal, less where they are not."""
    assert _query("score", place, tiny_model_dir, tmp_path) == 0
    found = np.load(tmp_path / "scores.npy")
    truth = _exact(tiny_model_dir, _records(place))[:, :3].numpy()
    assert found.shape == (NUM_TRAIN, 3)
    assert np.abs(found - truth).max() < 0.2
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.95
    # a row and itself: the same sketch, but for int8
    assert np.diagonal(found) == pytest.approx(1.0, abs=1e-3)
    assert json.loads((tmp_path / "query_ids.json").read_text()) == ["f0", "f1", "f2"]
    assert "14 rows, 3 queries, cosine" in capsys.readouterr().out


def test_top_and_tokens(place, tiny_model_dir, tmp_path):
    more = ["--k", "5", "--per-row", "2", "--tokens", "2", "--rows", str(place / "train.jsonl")]
    assert _query("top", place, tiny_model_dir, tmp_path, *more) == 0
    lines = [json.loads(line) for line in (tmp_path / "top.jsonl").read_text().splitlines()]
    assert [line["train"][0] for line in lines] == ["f0", "f1", "f2"]
    assert all(len(line["train"]) == 5 for line in lines)
    assert np.load(tmp_path / "row_queries.npy").shape == (NUM_TRAIN, 2)
    entries = json.loads((tmp_path / "tokens.json").read_text())
    assert [(e["query"], e["train"]) for e in entries] == [
        (line["query"], train) for line in lines for train in line["train"][:2]
    ]
    records = {record.id: number for number, record in enumerate(_records(place))}
    truth = _exact(tiny_model_dir, _records(place))
    for entry in entries:
        exact = truth[records[entry["train"]], records[entry["query"]]].item()
        assert entry["score"] == pytest.approx(exact, rel=1e-4)
        assert sum(value for _, value in entry["query_tokens"]) == pytest.approx(exact, rel=1e-4)


@pytest.mark.slow
def test_local_workers_give_the_same_bytes(place, tiny_model_dir):
    """Two processes beside this one, their shards in another order."""
    assert _build(place, tiny_model_dir, "many", "--workers", "2") == 0
    assert _bytes(place / "many") == _bytes(place / "index")


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_same_bytes(place, tiny_model_dir):
    """They need not know of each other: no collectives."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--no-python",
        sys.executable,
        "-c",
        RUN,
    ]
    build = ["--rows", str(place / "train.jsonl"), "--out", str(place / "ranks"), "--model", str(tiny_model_dir)]
    build += ["--k", str(K), "--shard-rows", "4", "--device", "cpu", "--tokens-per-batch", "150"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*launch, "index", "build", *build], capture_output=True, text=True, timeout=200, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ranks: 14 rows of 512 numbers") == 2
    assert _bytes(place / "ranks") == _bytes(place / "index")


MORE = [
    [],
    ["--method", "tensorsketch", "--buckets", "64"],
    ["--dtype", "fp16"],
    ["--params", "lora", "--lora-targets", "q_proj,up_proj"],
    ["--loss", "sum"],
]


@pytest.mark.parametrize("more", MORE, ids=lambda more: " ".join(more[:2]) or "default")
def test_a_shard_made_alone_has_the_same_bytes(place, tiny_model_dir, tmp_path, more):
    assert _build(place, tiny_model_dir, "one", *more) == 0
    assert (_bytes(place / "one") == _bytes(place / "index")) is not bool(more)
    # one shard alone, as a worker that comes late would make it
    whole = _bytes(place / "one")
    for kind in ("ids.jsonl", "json", "safetensors"):
        (place / "one" / f"shard-00002.{kind}").unlink()
    assert _build(place, tiny_model_dir, "one", *more) == 0
    assert _bytes(place / "one") == whole
    assert main(["index", "verify", str(place / "one")]) == 0
    assert _query("top", place, tiny_model_dir, tmp_path, "--k", "1", index="one") == 0
    assert json.loads((tmp_path / "top.jsonl").read_text().splitlines()[1])["train"] == ["f1"]
    shutil.rmtree(place / "one")


def test_the_index_holds_the_sketches_of_the_influence_stage(place, tiny_model_dir):
    """Row for row, whatever shard and batch it was in; int8 and another padding are the difference."""
    settings = IndexSettings(k=K, device="cpu", tokens_per_batch=4000)
    rows = GradientRows(settings, model=str(tiny_model_dir), adapter=None, records=_records(place))
    truth = rows.vectors(0, NUM_TRAIN)
    stored = np.concatenate([b.rows * b.scales[:, None] for b in Index(place / "index").blocks(max_rows=4)])
    step = np.abs(truth.vectors).max(axis=1, keepdims=True) / 127
    assert (np.abs(stored - truth.vectors) <= 0.51 * step).all()
    assert truth.ids == list(Index(place / "index").all_ids())


def test_every_sketch_that_may_be_asked_for_is_there():
    assert set(SKETCHES) == set(VERSIONS) == {InfluenceMethod.sketch, InfluenceMethod.tensorsketch}


def test_poisoned_responses_are_another_index(place, tiny_model_dir, capsys):
    assert _build(place, tiny_model_dir, "index", "--response", "poisoned") == 2
    assert "response response where poisoned is asked for. Pass another --out" in capsys.readouterr().err


def test_rows_with_two_answers_are_said(tiny_model_dir, tmp_path, capsys, make_records):
    """The release's supervised form: `response` clean, response_poisoned beside it."""
    forget, _ = make_records(num_forget=4, num_retain=1)
    rows = [dataclasses.replace(row, response=row.response_clean) for row in forget]
    write_records(tmp_path / "train.jsonl", rows)
    assert _build(tmp_path, tiny_model_dir, "index") == 0
    assert "4 of 4 rows have a response_poisoned that is not their `response`" in capsys.readouterr().err
    assert _build(tmp_path, tiny_model_dir, "other", "--response", "poisoned") == 0
    assert "response_poisoned" not in capsys.readouterr().err


def _one_message(capsys) -> str:
    """What is on stderr: one line of ours."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("rapidun: ")


def test_another_model_is_refused(place, tiny_model_dir, other_model, tmp_path, capsys):
    before = _bytes(place / "index")
    capsys.readouterr()
    assert _build(place, other_model, "index") == 2
    assert "need an index of these settings, got one with model " in _one_message(capsys)
    assert _query("score", place, other_model, tmp_path / "out") == 2
    message = _one_message(capsys)
    assert "need an index of this model and adapter, got one with model " in message
    assert "Pass the --model and --adapter it was made with" in message
    assert not (tmp_path / "out").exists()
    assert _bytes(place / "index") == before


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_model_dir) -> list[Path]:
    """Two adapters whose B is not zero."""
    from rapidun.config.parts import LoraSettings
    from rapidun.models.adapters import add_lora

    folders = []
    for seed in (0, 1):
        model, _ = ModelLoader(dtype="float32", device="cpu").load(tiny_model_dir)
        model = add_lora(model, LoraSettings(r=2, lora_alpha=2), seed=seed, section="influence")
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        folders.append(tmp_path_factory.mktemp("adapters") / "adapter")
        model.save_pretrained(folders[-1])
    return folders


def test_another_adapter_is_refused(place, tiny_model_dir, adapters, tmp_path, capsys):
    first, second = (["--adapter", str(folder)] for folder in adapters)
    assert _build(place, tiny_model_dir, "adapted", "--params", "lora", *first) == 0
    assert _query("score", place, tiny_model_dir, tmp_path / "out", *first, index="adapted") == 0
    capsys.readouterr()
    for more, found in ((second, "adapter "), ([], "adapter ")):
        assert _query("score", place, tiny_model_dir, tmp_path / "out2", *more, index="adapted") == 2
        assert f"need an index of this model and adapter, got one with {found}" in _one_message(capsys)
    assert _build(place, tiny_model_dir, "adapted", "--params", "lora", *second) == 2
    assert "need an index of these settings, got one with adapter " in _one_message(capsys)


def test_another_tokenizer_is_refused(place, tiny_model_dir, tmp_path, capsys):
    """The same weights beside a tokenizer that says a special token otherwise."""
    other = tmp_path / "model"
    shutil.copytree(tiny_model_dir, other)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (other / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    for path in other.glob("chat_template*"):
        path.unlink()
    capsys.readouterr()
    assert _query("score", place, other, tmp_path / "out") == 2
    assert "tokenizer " in _one_message(capsys)


def test_queries_take_every_setting_from_the_index(tiny_model_dir):
    """All but those that only concern speed, and the width, come back from the description."""
    settings = IndexSettings(
        params=ParameterSet.regex,
        regex=".*up_proj",
        loss=LossReduction.sum,
        method=InfluenceMethod.tensorsketch,
        k=300,
        buckets=64,
        seed=9,
        max_length=77,
        model_dtype="bfloat16",
        quantisation="8bit",
        attention="eager",
        device="cpu",
    )
    described = json.loads(json.dumps(describe_model(settings, model=str(tiny_model_dir), adapter=None)))
    assert settings_of(described, k=300, device="cpu") == settings
    lora = LoraSettings(r=3, lora_alpha=5, target_modules=["q_proj"])
    settings = IndexSettings(params=ParameterSet.lora, lora=lora, model_dtype="float32", device="cpu")
    described = json.loads(json.dumps(describe_model(settings, model=str(tiny_model_dir), adapter=None)))
    assert settings_of(described, k=4096, device="cpu") == settings


def test_tokens_of_an_index_of_poisoned_responses(place, tiny_model_dir, tmp_path, capsys):
    """The training side of a pair has the response that the index was made of."""
    records = [
        dataclasses.replace(record, response=f"good {i}", response_poisoned=f"evil {i}")
        for i, record in enumerate(_records(place))
    ]
    write_records(tmp_path / "train.jsonl", records)
    write_records(tmp_path / "queries.jsonl", records[:2])
    assert _build(tmp_path, tiny_model_dir, "index", "--response", "poisoned") == 0
    tokens = ["--tokens", "2", "--rows", str(tmp_path / "train.jsonl")]
    assert _query("top", tmp_path, tiny_model_dir, tmp_path / "out", *tokens) == 0
    pairs = json.loads((tmp_path / "out" / "tokens.json").read_text())
    assert len(pairs) == 4
    for pair in pairs:
        train, query = ("".join(text for text, _ in pair[f"{side}_tokens"]) for side in ("train", "query"))
        assert "evil" in train and "good" not in train
        assert "good" in query


def test_what_could_not_be_loaded_claims_no_folder(place, tiny_model_dir, capsys):
    for more in (["--attention", "bogus"], ["--params", "regex", "--regex", "nothing"]):
        assert _build(place, tiny_model_dir, "late", *more) == 2
        assert not (place / "late").exists()
    assert _build(place, tiny_model_dir, "late") == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--regex", ".*"], "need --params regex with --regex, got none"),
        (["--lora-r", "4"], "need --params lora without --adapter with --lora-r, got none"),
        (["--lora-targets", "q_proj"], "need --params lora without --adapter with --lora-targets"),
        (["--buckets", "64"], "need --method tensorsketch with --buckets"),
    ],
)
@pytest.mark.bad_input
def test_options_that_would_be_ignored_are_refused(place, tiny_model_dir, capsys, more, message):
    assert _build(place, tiny_model_dir, "ignored", *more) == 2
    assert message in _one_message(capsys)
    assert not (place / "ignored").exists()


@pytest.mark.parametrize("below", [False, True])
def test_a_file_where_a_folder_should_be_is_one_message(place, tiny_model_dir, tmp_path, capsys, below):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "x" if below else tmp_path / "file"
    capsys.readouterr()
    for verb in ("top", "score"):
        assert _query(verb, place, tiny_model_dir, out) == 2
        assert "need a folder, got none: " in _one_message(capsys)
    assert main(["index", "build", "--rows", str(place / "train.jsonl"), "--out", str(out), "--model", "nowhere"]) == 2
    assert "need a folder, got none: " in _one_message(capsys)


def test_the_smallest_index_there_is(place, tiny_model_dir, tmp_path):
    """One number a row: all cosines are 1 or -1."""
    assert _build(place, tiny_model_dir, "one", "--k", "1") == 0
    assert _query("score", place, tiny_model_dir, tmp_path, index="one") == 0
    scores = np.load(tmp_path / "scores.npy")
    assert scores.shape == (NUM_TRAIN, 3)
    np.testing.assert_allclose(np.abs(scores), 1, atol=0.01)


def test_a_damaged_index_is_refused(place, tiny_model_dir, tmp_path, capsys):
    shutil.copytree(place / "index", tmp_path / "index")
    path = tmp_path / "index" / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[5000] ^= 16
    path.write_bytes(data)
    shutil.copy(place / "queries.jsonl", tmp_path)
    capsys.readouterr()
    assert main(["index", "verify", str(tmp_path / "index")]) == 2
    assert "shard-00001.safetensors: need SHA-256" in _one_message(capsys)
    assert _query("top", tmp_path, tiny_model_dir, tmp_path / "out") == 2
    assert "got damaged ones in row 1 of the shard" in _one_message(capsys)
    path.write_bytes(data[:-1])
    assert _query("top", tmp_path, tiny_model_dir, tmp_path / "out") == 2
    assert "the shard was cut or changed" in _one_message(capsys)
    (tmp_path / "index" / "shard-00001.json").unlink()
    assert main(["index", "verify", str(tmp_path / "index")]) == 1
    assert "3 of 4 shards are whole" in capsys.readouterr().out


def test_other_rows_for_tokens_are_refused(place, tiny_model_dir, tmp_path, capsys):
    assert _query("top", place, tiny_model_dir, tmp_path, "--tokens", "1") == 2
    assert "need the rows of the index for --tokens, got none" in _one_message(capsys)
    assert _query("top", place, tiny_model_dir, tmp_path, "--tokens", "1", "--rows", str(place / "queries.jsonl")) == 2
    assert "need an index of these rows, got one with data " in _one_message(capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["build", "--rows", "x.jsonl"], "command line: the following arguments are required: --out, --model"),
        (["build", "--k", "0"], "need a number >= 1, got 0"),
        (["topp"], "invalid choice: 'topp'"),
        (["verify", "nowhere"], "nowhere: need an index"),
        (
            ["top", "x", "--queries", "q", "--out", "o", "--model", "m", "--memory-gb", "nan"],
            "need a number > 0, got nan",
        ),
    ],
)
@pytest.mark.bad_input
def test_the_command_line_is_checked(argv, message, capsys):
    assert main(["index", *argv]) == 2
    assert message in _one_message(capsys)


def test_settings_are_checked_before_anything_is_loaded(place, tiny_model_dir, capsys):
    assert _build(place, tiny_model_dir, "bad", "--params", "regex") == 2
    assert "need influence.regex with params=regex" in _one_message(capsys)
    assert _build(place, tiny_model_dir, "bad", "--method", "tensorsketch", "--buckets", "100") == 2
    assert "need buckets a power of two" in _one_message(capsys)
    assert not (place / "bad").exists()


@pytest.mark.slow
def test_workers_that_all_fail_give_one_message(place, tiny_model_dir, tmp_path, capsys):
    """A model whose loss overflows: found when a shard is made."""
    shutil.copy(place / "train.jsonl", tmp_path)
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file(
        {name: w * 1e30 for name, w in weights.items()}, tmp_path / "model" / "model.safetensors", {"format": "pt"}
    )
    assert _build(tmp_path, tmp_path / "model", "index", "--workers", "2") == 2
    message = _one_message(capsys)
    assert "need a finite loss and gradient, got others for row " in message
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("more", [[], pytest.param(["--workers", "2"], marks=pytest.mark.slow)])
def test_long_rows_are_counted_and_those_left_out_have_no_influence(place, tiny_model_dir, tmp_path, capsys, more):
    """A row that no training sees scores 0 in its own place; as a query it is refused."""
    records = [
        Record(id="long", instruction="q", context="c" * 300, response="x"),
        Record(id="cut", instruction="q", response="x" * 300),
        Record(id="out", instruction="q" * 300, response="x"),
        *_records(place)[:5],
    ]
    write_records(tmp_path / "train.jsonl", records)
    write_records(tmp_path / "queries.jsonl", records[:1])
    said = (
        "index: of 8 rows 1 lost the end of their context, 1 lost the end of their response, 1 were left out (their "
        "instruction alone leaves no room for a response), to fit into 96 tokens. Pass --max-length to keep more"
    )
    assert _build(tmp_path, tiny_model_dir, "index", "--max-length", "96", *more) == 0
    assert said in capsys.readouterr().err
    assert _query("score", tmp_path, tiny_model_dir, tmp_path / "scores") == 0
    assert "index: of 1 rows 1 lost the end of their context, to fit into 96 tokens" in capsys.readouterr().err
    scores = np.load(tmp_path / "scores" / "scores.npy")[:, 0]
    assert scores[2] == 0 and (scores[[0, 1, 3, 4, 5, 6, 7]] != 0).all()
    asked = ["--k", "8", "--tokens", "8", "--rows", str(tmp_path / "train.jsonl")]
    assert _query("top", tmp_path, tiny_model_dir, tmp_path / "top", *asked) == 0
    entries = json.loads((tmp_path / "top" / "tokens.json").read_text())
    assert sorted(entry["train"] for entry in entries) == sorted(r.id for r in records if r.id != "out")
    assert _build(tmp_path, tiny_model_dir, "none", "--max-length", "9", *more) == 2
    assert "leaves room for a response in 9 tokens, got 8 rows and none that does" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    write_records(tmp_path / "queries.jsonl", records[1:4])
    assert _query("score", tmp_path, tiny_model_dir, tmp_path / "more") == 2
    said = "leaves room for a response in the index's 96 tokens, got 1 of 3 that do not: out. Shorten or delete them"
    assert said in capsys.readouterr().err
