"""`rapidun index fit` and `--precondition`: preconditioned queries to an index that stays as it is."""

import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rapidun.base.errors import ArtifactError
from rapidun.cli.main import main
from rapidun.config.index import IndexSettings
from rapidun.config.influence import InfluenceMethod, ParameterSet, Precondition, Score
from rapidun.config.parts import LoraSettings
from rapidun.models.adapters import add_lora, save_adapter
from rapidun.models.curvature import Curvature
from rapidun.models.load import ModelLoader
from rapidun.stages.influence.batches import RowBatch, make_batches
from rapidun.stages.influence.fisher import fit_curvature
from rapidun.stages.influence.gradients.capture import Factors
from rapidun.stages.influence.gradients.params import TrackedParameter, select_parameters
from rapidun.stages.influence.gram import GramResult, exact_gram
from rapidun.stages.influence.index import curvature, gradients
from rapidun.stages.influence.index.curvature import is_fitted, read_factors, write_factors
from rapidun.stages.influence.index.gradients import GradientRows
from rapidun.stages.influence.index.reader import Index
from rapidun.stages.influence.precondition import Preconditioner
from rapidun.stages.influence.scores import influence_scores
from rapidun.stages.influence.sketches.sketch import CountSketch
from rapidun.stages.rows.encode import Encoded, encode_rows
from rapidun.stages.rows.records import Record, read_records, write_records

K = 65536
NUM_QUERIES = 3
FIT_SEED = 7
CASES = [(params, kind) for params in ("all_linear", "lora") for kind in ("kfac", "ekfac")]


class Place(NamedTuple):
    """An index of fourteen rows (queries: the first three), nine other rows to fit on, the factors."""

    root: Path
    model: Path
    adapter: Path | None
    params: str
    kind: str

    @property
    def chosen(self) -> list[str]:
        words = ["--model", str(self.model), "--device", "cpu"]
        return words if self.adapter is None else [*words, "--adapter", str(self.adapter)]

    def build(self, out: str, *more: str, k: int = K) -> int:
        words = ["--rows", str(self.root / "train.jsonl"), "--out", str(self.root / out), *self.chosen]
        return main(["index", "build", *words, "--dtype", "fp16", "--params", self.params, "--k", str(k), *more])

    def fit(self, out: str, *more: str, index: str = "index", rows: str = "fit.jsonl", kind: str = "") -> int:
        words = ["--rows", str(self.root / rows), "--out", str(self.root / out), "--kind", kind or self.kind]
        words += ["--seed", str(FIT_SEED)]
        return main(["index", "fit", str(self.root / index), *self.chosen, *words, *more])

    def query(self, verb: str, out: Path, *more: str, index: str = "index") -> int:
        words = ["--queries", str(self.root / "queries.jsonl"), "--out", str(out), *self.chosen]
        return main(["index", verb, str(self.root / index), *words, *more])

    def records(self, name: str) -> list[Record]:
        return read_records(self.root / f"{name}.jsonl")


def _place(root: Path, model: Path, adapter: Path | None, params: str, kind: str, make_records: Any) -> Place:
    forget, retain = make_records(num_forget=4, num_retain=10)
    write_records(root / "train.jsonl", forget + retain)
    write_records(root / "queries.jsonl", forget[:NUM_QUERIES])
    others = make_records(num_forget=3, num_retain=6, seed=5)
    write_records(root / "fit.jsonl", others[0] + others[1])
    return Place(root, model, adapter, params, kind)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, make_tiny_model, tiny_tokenizer) -> Path:
    """Weights as large as a trained model's: else attention has no gradients to speak of, and F^-1 sees it alone."""
    model = make_tiny_model()
    generator = torch.Generator().manual_seed(0)
    for parameter in select_parameters(model, ParameterSet.all_linear):
        nn.init.normal_(parameter.modules[0].weight, std=0.3, generator=generator)
    folder: Path = tmp_path_factory.mktemp("larger") / "model"
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, model_dir) -> Path:
    """Both factors away from zero, so that both have gradients."""
    model = ModelLoader(dtype="float32", device="cpu").load(model_dir).model
    settings = LoraSettings(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj", "down_proj"])
    model = add_lora(model, settings, seed=0, section="influence")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    folder: Path = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(model, folder, base=model_dir)
    return folder


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def place(request, tmp_path_factory, model_dir, adapter, make_records) -> Place:
    params, kind = request.param
    used = adapter if params == "lora" else None
    made = _place(tmp_path_factory.mktemp(f"{params}-{kind}"), model_dir, used, params, kind, make_records)
    assert made.build("index") == 0
    before = _bytes(made.root / "index")
    assert made.fit("factors") == 0
    assert _bytes(made.root / "index") == before
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory, model_dir, make_records) -> Place:
    """A small index and its factors, for refusals."""
    made = _place(tmp_path_factory.mktemp("small"), model_dir, None, "mlp", "kfac", make_records)
    assert made.build("index", k=64) == 0
    assert made.fit("factors") == 0
    return made


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Exact(NamedTuple):
    """The same model and rows without the index."""

    model: nn.Module
    parameters: list[TrackedParameter]
    train: list[Encoded]
    batches: list[RowBatch]
    fit_batches: list[RowBatch]


def _exact(place: Place) -> Exact:
    model, tokenizer = ModelLoader(dtype="float32", device="cpu").load(place.model, adapter=place.adapter)
    parameters = select_parameters(model, ParameterSet[place.params])

    def encode(name: str) -> list[Encoded]:
        return encode_rows(
            tokenizer, [(r.instruction, r.context, r.response) for r in place.records(name)], max_length=256
        )

    def batches(rows: list[Encoded]) -> list[RowBatch]:
        # other batches than the commands'
        names = list(map(str, range(len(rows))))
        return make_batches(rows, names, tokens_per_batch=150, pad_token_id=257, device=torch.device("cpu"))

    train = encode("train")
    return Exact(model, parameters, train, batches(train), batches(encode("fit")))


def _exact_products(exact: Exact, curvatures: dict[str, Curvature], *, damping_factor: float) -> GramResult:
    return exact_gram(
        exact.model,
        exact.parameters,
        exact.batches,
        row_names=[str(row) for row in range(len(exact.train))],
        memory_bytes=1e9,
        preconditioner=Preconditioner(curvatures, damping_factor=damping_factor),
    )


def _exact_scores(place: Place, *, damping_factor: float) -> np.ndarray:
    """[rows, queries] cosines <g_i, F^-1 g_j> of the gradients themselves, F fitted here."""
    exact = _exact(place)
    num_fit = len(place.records("fit"))
    curvatures = fit_curvature(
        exact.model,
        exact.parameters,
        exact.fit_batches,
        kind=Precondition[place.kind],
        row_names=[str(row) for row in range(num_fit)],
        seed=FIT_SEED,
    )
    result = _exact_products(exact, curvatures, damping_factor=damping_factor)
    scores = influence_scores(result.gram, score=Score.cosine, norms=result.norms, query_norms=result.query_norms)
    return scores[:, :NUM_QUERIES].numpy()


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    ranks = [values.ravel().argsort().argsort() for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_scores_are_near_the_exact_preconditioned_ones(place, tmp_path, capsys):
    """Every cosine within 5 sd = 5 sqrt((1 + c^2) / K) of the exact one, their mean within 3; plain ones are not."""
    before = _bytes(place.root / "index")
    assert place.query("score", tmp_path, "--precondition", str(place.root / "factors")) == 0
    assert "14 rows, 3 queries, cosine, preconditioned" in capsys.readouterr().out
    assert place.query("score", tmp_path / "plain") == 0
    assert _bytes(place.root / "index") == before
    found, plain = np.load(tmp_path / "scores.npy"), np.load(tmp_path / "plain" / "scores.npy")
    truth = _exact_scores(place, damping_factor=0.1)
    sd = np.sqrt((1 + truth**2) / K)
    assert (np.abs(found - truth) < 5 * sd).all()
    assert abs((found - truth).mean()) < 3 * sd.mean()
    assert _rank_correlation(found, truth) > 0.98
    assert (np.abs(plain - truth) > 5 * sd).mean() > 0.5


def _solved_by_hand(gradient: Tensor, curvature: Curvature, damping_factor: float) -> Tensor:
    """Q_g [(Q_g^T G Q_a) / (l + damping_factor mean l)] Q_a^T in float64, one whole gradient."""
    rows, columns, values = (tensor.double() for tensor in curvature)
    rotated = rows.T @ gradient @ columns
    return rows @ (rotated / (values + damping_factor * values.mean())) @ columns.T


def _query_sketches(place: Place, autograd_gradients: Any, *, damping_factor: float) -> Tensor:
    """[queries, K] float64: autograd's gradients, solved as whole matrices with the stored factors, then sketched."""
    exact = _exact(place)
    exact.model.double()
    whole = autograd_gradients(exact.model, exact.parameters, exact.train[:NUM_QUERIES])
    factors = read_factors(place.root / "factors", exact.parameters, device=torch.device("cpu"))
    sketch = CountSketch(k=K, seed=42)
    buffer = sketch.new_buffer(NUM_QUERIES, dtype=torch.float64, device=torch.device("cpu"))
    for parameter, flat in zip(exact.parameters, whole.split([p.numel for p in exact.parameters], 1), strict=True):
        solved = torch.stack(
            [_solved_by_hand(g, factors[parameter.name], damping_factor) for g in flat.unflatten(1, parameter.shape)]
        )
        # G = g^T a with a = I: g = G^T
        identity = torch.eye(parameter.shape[1], dtype=torch.float64).expand(NUM_QUERIES, -1, -1)
        sketch.add(buffer, parameter.name, parameter.shape, Factors(identity, solved.transpose(1, 2)))
    return sketch.finish(buffer)


def test_a_querys_numbers_are_the_sketch_of_its_solved_gradient(place, tmp_path, autograd_gradients, monkeypatch):
    """To float precision: the vectors, in one batch and row by row, and the products with the stored rows."""
    expected = _query_sketches(place, autograd_gradients, damping_factor=0.3)
    close = {"rtol": 1e-4, "atol": 2e-5 * expected.abs().max().item()}
    settings = IndexSettings(params=ParameterSet[place.params], k=K, device="cpu")
    rows = GradientRows(settings, model=str(place.model), adapter=place.adapter, records=place.records("queries"))
    factors = read_factors(place.root / "factors", rows.parameters, device=rows.device)
    preconditioner = Preconditioner(factors, damping_factor=0.3)
    sizes = []
    batches = rows.batches
    monkeypatch.setattr(rows, "batches", lambda *a, **k: (sizes.append(len(b.rows)) or b for b in batches(*a, **k)))
    for numel, wanted in ((gradients.WHOLE_NUMEL, [3]), (1, [1, 1, 1])):
        monkeypatch.setattr(gradients, "WHOLE_NUMEL", numel)
        sizes.clear()
        vectors = rows.vectors(0, NUM_QUERIES, preconditioner=preconditioner).vectors
        assert sizes == wanted
        torch.testing.assert_close(torch.from_numpy(vectors).double(), expected, **close)
    more = ["--precondition", str(place.root / "factors"), "--damping-factor", "0.3", "--score", "dot"]
    assert place.query("score", tmp_path, *more) == 0
    stored = np.concatenate([b.rows * b.scales[:, None] for b in Index(place.root / "index").blocks(max_rows=4)])
    products = stored.astype(np.float64) @ expected.numpy().T
    assert np.load(tmp_path / "scores.npy") == pytest.approx(products, rel=1e-3, abs=1e-4 * np.abs(products).max())


def _sketched(place: Place, method: InfluenceMethod, seed: int, factors: Any) -> np.ndarray:
    """[rows, queries] <S g_i, S F^-1 g_j> for one seed of a small sketch."""
    settings = IndexSettings(
        params=ParameterSet[place.params], method=method, k=256, buckets=128, seed=seed, device="cpu"
    )
    rows = GradientRows(settings, model=str(place.model), adapter=None, records=place.records("train"))
    preconditioner = Preconditioner(factors, damping_factor=0.1)
    train = rows.vectors(0, len(rows.records)).vectors.astype(np.float64)
    return train @ rows.vectors(0, NUM_QUERIES, preconditioner=preconditioner).vectors.T


@pytest.mark.parametrize("method", [InfluenceMethod.sketch, InfluenceMethod.tensorsketch])
def test_sketched_products_are_unbiased(small, method):
    """Over 60 seeds of the sketch: |mean error| < 4.5 sd / sqrt(60) for each pair; a wrong F^-1 is far outside."""
    exact = _exact(small)
    factors = read_factors(small.root / "factors", exact.parameters, device=torch.device("cpu"))
    truth = _exact_products(exact, factors, damping_factor=0.1)
    errors = np.stack([_sketched(small, method, seed, factors) for seed in range(60)])
    errors -= truth.gram[:, :NUM_QUERIES].numpy()
    assert (np.abs(errors.mean(axis=0)) < 4.5 * errors.std(axis=0, ddof=1) / 60**0.5).all()
    norms = torch.outer(truth.norms, truth.query_norms[:NUM_QUERIES]).numpy()
    assert (errors.std(axis=0) < 0.1 * norms).all()


def test_what_is_written(small, capsys):
    tensors = load_file(small.root / "factors" / "factors.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert [tuple(tensors[f"{name}.{part}"].shape) for part in Curvature._fields] == [(16, 16), (32, 32), (16, 32)]
    text = (small.root / "factors" / "factors.json").read_text()
    note = json.loads(text)
    index = json.loads((small.root / "index" / "manifest.json").read_text())["recipe"]["source"]
    assert {key: note["recipe"][key] for key in ("kind", "num_rows", "seed", "response")} == {
        "kind": "kfac",
        "num_rows": 9,
        "seed": FIT_SEED,
        "response": "response",
    }
    assert note["recipe"]["source"]["model"] == index["model"]
    assert "/" not in text and str(small.root.name) not in text
    assert [path.name for path in small.root.iterdir() if path.suffix == ".part"] == []


def test_a_finished_fit_is_kept_and_another_recipe_refused(small, capsys):
    before = _bytes(small.root / "factors")
    times = [path.stat().st_mtime_ns for path in sorted((small.root / "factors").iterdir())]
    capsys.readouterr()
    assert small.fit("factors") == 0
    assert "kfac, fitted on 9 rows, 0.0 MB (was there and is kept)" in capsys.readouterr().out
    for more, words in (
        (("--seed", "8"), "seed 7 where 8 is asked for"),
        (("--response", "poisoned"), "response response where poisoned is asked for"),
    ):
        assert small.fit("factors", *more) == 2
        assert f"need a fit of these settings, got one with {words}. Pass another --out" in _one_message(capsys)
    assert small.fit("factors", kind="ekfac") == 2
    assert "kind kfac where ekfac is asked for" in _one_message(capsys)
    assert small.fit("factors", rows="train.jsonl") == 2
    assert "num_rows 9 where 14 is asked for" in _one_message(capsys)
    # as many others
    lines = (small.root / "train.jsonl").read_text().splitlines()
    (small.root / "nine.jsonl").write_text("\n".join(lines[-9:]) + "\n")
    assert small.fit("factors", rows="nine.jsonl") == 2
    assert "got one with rows " in _one_message(capsys)
    assert [path.stat().st_mtime_ns for path in sorted((small.root / "factors").iterdir())] == times
    assert _bytes(small.root / "factors") == before


def test_nothing_else_is_written_over(small, capsys):
    before = _bytes(small.root / "index")
    capsys.readouterr()
    assert small.fit("index") == 2
    assert "index: need a new or an empty folder, got one with other files. Change --out" in _one_message(capsys)
    assert _bytes(small.root / "index") == before
    assert small.fit("fit.jsonl") == 2
    assert "is a file. Change --out" in _one_message(capsys)


def test_a_write_that_fails_leaves_nothing(small, capsys, monkeypatch):
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(curvature, "write_json", full)
        assert small.fit("later") == 2
    assert f"need room for {small.root / 'later'}, got" in _one_message(capsys)
    assert list((small.root / "later").iterdir()) == []
    assert list(small.root.glob("*.part")) == []
    assert small.fit("later") == 0
    assert _bytes(small.root / "later") == _bytes(small.root / "factors")


def test_a_full_disk_is_one_message(small, capsys, monkeypatch):
    """safetensors has an error of its own for it."""

    def full(path: Path, tensors: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(curvature, "write_tensors", full)
    capsys.readouterr()
    assert small.fit("full") == 2
    assert f"need room for {small.root / 'full'}, got" in _one_message(capsys)
    assert list(small.root.glob("*.part")) == []


def test_of_two_fits_at_once_the_first_stays(tmp_path):
    curvatures = {"w": Curvature(torch.eye(2), torch.eye(3), torch.ones(2, 3))}
    write_factors(tmp_path / "f", {"version": 1, "seed": 1}, curvatures)
    first = _bytes(tmp_path / "f")
    write_factors(tmp_path / "f", {"version": 1, "seed": 1}, curvatures)
    with pytest.raises(ArtifactError, match="seed 1 where 2 is asked for"):
        write_factors(tmp_path / "f", {"version": 1, "seed": 2}, curvatures)
    assert _bytes(tmp_path / "f") == first
    assert is_fitted(tmp_path / "f", {"version": 1, "seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def _one_message(capsys) -> str:
    """What is on stderr: one line of ours."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return str(lines[0]).removeprefix("rapidun: ")


def _refused(place: Place, out: Path, factors: Path, capsys: Any, *more: str, index: str = "index") -> str:
    capsys.readouterr()
    assert place.query("score", out, "--precondition", str(factors), *more, index=index) == 2
    assert not out.exists()
    return _one_message(capsys)


def test_factors_of_another_model_are_refused(small, other_model, tmp_path, capsys):
    capsys.readouterr()
    assert small._replace(model=other_model).fit("wrong") == 2
    message = _one_message(capsys)
    assert "need an index of this model and adapter, got one with model " in message
    assert "Pass the --model and --adapter it was made with" in message
    assert not (small.root / "wrong").exists()
    other = small._replace(model=other_model)
    assert other.build("other", k=64) == 0
    assert other.fit("other-factors", index="other") == 0
    message = _refused(small, tmp_path / "out", small.root / "other-factors", capsys)
    assert message.startswith(f"{small.root / 'other-factors'}: need a fit for the index {small.root / 'index'}, got ")
    assert "model " in message and message.endswith(" is asked for. Make one: rapidun index fit")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--params", "attention"), "parameters.set mlp where attention is asked for"),
        (("--loss", "sum"), "loss mean where sum is asked for"),
        (("--max-length", "200"), "prompt.max_length 256 where 200 is asked for"),
    ],
)
def test_factors_of_other_settings_are_refused(small, tmp_path, capsys, more, words):
    assert small.build(more[1], *more, k=64) == 0
    message = _refused(small, tmp_path / "out", small.root / "factors", capsys, index=more[1])
    assert f"{small.root / 'factors'}: need a fit for the index {small.root / more[1]}, got one with {words}" in message


def test_another_sketch_of_the_same_gradients_is_served(small, tmp_path):
    """K, seed and method concern the rows only."""
    assert small.build("sketch", "--seed", "3", "--method", "tensorsketch", "--buckets", "32", k=32) == 0
    assert small.query("score", tmp_path, "--precondition", str(small.root / "factors"), index="sketch") == 0


def test_the_seed_of_a_fresh_adapter_counts(small, tmp_path, capsys):
    """With params=lora and no adapter the index's seed draws one."""
    lora = small._replace(params="lora")
    for seed in ("1", "2"):
        assert lora.build(f"lora{seed}", "--seed", seed, k=64) == 0
    assert lora.fit("lora-factors", index="lora1") == 0
    factors = small.root / "lora-factors"
    assert lora.query("score", tmp_path / "fine", "--precondition", str(factors), index="lora1") == 0
    assert np.isfinite(np.load(tmp_path / "fine" / "scores.npy")).all()
    message = _refused(lora, tmp_path / "out", factors, capsys, index="lora2")
    assert "parameters.fresh_lora_seed 1 where 2 is asked for" in message


def test_damaged_factors_are_refused(small, tmp_path, capsys):
    factors = tmp_path / "factors"
    shutil.copytree(small.root / "factors", factors)
    path = factors / "factors.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 16
    path.write_bytes(data)
    message = _refused(small, tmp_path / "out", factors, capsys)
    assert f"{path}: need SHA-256 " in message and "run the same rapidun index fit again" in message
    path.unlink()
    assert "need the factors of factors.json, got no file" in _refused(small, tmp_path / "out", factors, capsys)
    note = factors / "factors.json"
    note.write_text(note.read_text().replace('"kfac"', '"ekfac"'))
    assert "need a note that fits its own checksum" in _refused(small, tmp_path / "out", factors, capsys)
    message = _refused(small, tmp_path / "out", small.root / "index", capsys)
    assert "index: need factors (factors.json in it), got none. Make them: rapidun index fit" in message


def test_a_weight_without_factors_is_named(tmp_path):
    write_factors(tmp_path / "f", {"version": 1}, {"w": Curvature(torch.eye(2), torch.eye(3), torch.ones(2, 3))})

    def read(name: str, shape: tuple[int, int]) -> Sequence[str]:
        parameter = TrackedParameter(name, shape, (nn.Identity(),), 0)
        return list(read_factors(tmp_path / "f", [parameter], device=torch.device("cpu")))

    assert read("w", (2, 3)) == ["w"]
    with pytest.raises(ArtifactError, match=r"need factors of v \[2, 3\], got nothing"):
        read("v", (2, 3))
    with pytest.raises(ArtifactError, match=r"need factors of w \[3, 2\], got \[2, 3\]"):
        read("w", (3, 2))


def test_weights_that_cannot_be_fitted_are_refused(small, capsys):
    embeddings = small._replace(params="embeddings")
    assert embeddings.build("embeddings", k=64) == 0
    capsys.readouterr()
    assert embeddings.fit("no-factors", index="embeddings") == 2
    message = _one_message(capsys)
    assert "need nn.Linear weights, got model.embed_tokens.weight" in message
    assert message.endswith("Build an index with other --params")
    assert "influence.params" not in message and "influence.precondition" not in message


def test_options_that_do_not_go_together(small, tmp_path, capsys):
    factors = ["--precondition", str(small.root / "factors")]
    capsys.readouterr()
    assert small.query("score", tmp_path / "out", "--damping-factor", "0.2") == 2
    assert "command line: need --precondition DIR with --damping-factor, got none" in _one_message(capsys)
    more = ["--tokens", "1", "--rows", str(small.root / "train.jsonl")]
    assert small.query("top", tmp_path / "out", *factors, *more) == 2
    assert "index top: need --tokens without --precondition" in _one_message(capsys)
    for wrong in ("0", "-1", "nan", "inf"):
        assert small.query("top", tmp_path / "out", *factors, "--damping-factor", wrong) == 2
        assert f"need a number > 0, got {wrong}" in _one_message(capsys)
    assert not (tmp_path / "out").exists()
    assert small.query("top", tmp_path / "out", *factors, "--k", "2") == 0
    assert "the best 2 of 14 rows, cosine, preconditioned" in capsys.readouterr().out


def test_the_damping_factor_counts(small, tmp_path):
    """The default is 0.1, and a heavier one gives other scores."""
    scores = []
    for number, more in enumerate(([], ["--damping-factor", "0.1"], ["--damping-factor", "10"])):
        out = tmp_path / str(number)
        assert small.query("score", out, "--precondition", str(small.root / "factors"), *more) == 0
        scores.append(np.load(out / "scores.npy"))
    assert (scores[0] == scores[1]).all()
    assert np.abs(scores[0] - scores[2]).max() > 0.05
