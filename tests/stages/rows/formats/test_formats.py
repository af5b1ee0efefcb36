"""The same rows from every format, written by that format's own library; what is refused, and how it is said."""

import csv
import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.stages.rows.formats.detect import fingerprint
from rapidun.stages.rows.records import Record, read_file, read_records

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"instruction": 'Where, "exactly"?', "context": "line one\nline two", "response": "Here; there,\tso"},
    {"instruction": "Wo liegt Köln? \U0001f5fa", "context": "", "response": "Am Rhein\r\nin Deutschland"},
    {"instruction": "\u8c01\u9886\u5bfc", "context": "a'b`c", "response": "007"},
]


def lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def array(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def table(path: Path, rows: Rows, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def tabs(path: Path, rows: Rows) -> None:
    table(path, rows, "\t")


def parquet(path: Path, rows: Rows) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(pa.Table.from_pylist(rows), path)


def stream(path: Path, rows: Rows) -> None:
    import pyarrow as pa

    made = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)


def arrow_file(path: Path, rows: Rows) -> None:
    import pyarrow as pa

    made = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, made.schema) as writer:
        writer.write_table(made, max_chunksize=2)


def folder(path: Path, rows: Rows) -> None:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(path, num_shards=min(2, len(rows)))


def packed(write: Callable[[Path, Rows], None]) -> Callable[[Path, Rows], None]:
    def written(path: Path, rows: Rows) -> None:
        write(path, rows)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return written


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "a.jsonl": lines,
    "a.ndjson": lines,
    "a.json": array,
    "a.csv": table,
    "a.tsv": tabs,
    "a.parquet": parquet,
    "stream.arrow": stream,
    "file.arrow": arrow_file,
    "folder": folder,
    "a.jsonl.gz": packed(lines),
    "a.json.gz": packed(array),
    "A.CSV.GZ": packed(table),
    "a.tsv.gz": packed(tabs),
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_rows_in_every_format(tmp_path: Path, name: str) -> None:
    lines(tmp_path / "native.jsonl", ROWS)
    WRITERS[name](tmp_path / name, ROWS)
    found = read_file(tmp_path / name)
    assert found.records == read_records(tmp_path / "native.jsonl")
    assert [(r.instruction, r.context, r.response) for r in found.records] == [tuple(row.values()) for row in ROWS]
    assert found.notes == []


ALPHABET = "ab\"',;\t\n\r\\|` éß\u0301\u200d\u2028\u4e2d\u5b66\U0001f600{}[]:#\x0b\x1f"


def random_rows(seed: int, num: int = 20) -> Rows:
    rng = random.Random(seed)

    def text() -> str:
        return "".join(rng.choices(ALPHABET, k=rng.randint(1, 12))) + rng.choice("xyz")

    return [
        {"instruction": text(), "context": rng.choice(["", text()]), "response": text(), "response_clean": text()}
        for _ in range(num)
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_random_rows_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    for seed in range(5):
        rows = random_rows(seed)
        place = tmp_path / str(seed)
        place.mkdir()
        WRITERS[name](place / name, rows)
        got = [
            {key: getattr(record, key) for key in ("instruction", "context", "response", "response_clean")}
            for record in read_records(place / name)
        ]
        assert got == rows


def test_pandas_writes_what_we_read(tmp_path: Path) -> None:
    """With its index, and with cells of nothing."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([*ROWS, {"instruction": "q", "context": None, "response": "NaN"}])
    frame.to_csv(tmp_path / "a.csv")
    frame.to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert read_records(tmp_path / name)[-1].texts == ("q", "", "NaN")
        assert [r.texts for r in read_records(tmp_path / name)][:3] == [tuple(row.values()) for row in ROWS]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_byte_order_mark_and_line_ends_of_windows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [{"instruction": "q", "response": "r"}])
    text = (tmp_path / name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text)
    assert [r.texts for r in read_records(tmp_path / name)] == [("q", "", "r")]


def test_a_name_that_says_another_json_is_read_rightly_and_said(tmp_path: Path) -> None:
    lines(tmp_path / "a.json", ROWS)
    array(tmp_path / "b.jsonl", ROWS)
    (tmp_path / "c.jsonl").write_text(json.dumps(ROWS))
    found = {name: read_file(tmp_path / name) for name in ("a.json", "b.jsonl", "c.jsonl")}
    assert all([r.texts for r in file.records] == [tuple(row.values()) for row in ROWS] for file in found.values())
    assert found["a.json"].notes == ["a.json holds JSON Lines, not one JSON array: read as such"]
    assert found["b.jsonl"].notes == ["b.jsonl holds one JSON array, not JSON Lines: read as such"]


def test_semicolons_are_read_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question;answer\n"What, now?";"a;b"\n')
    found = read_file(tmp_path / "a.csv")
    assert [r.texts for r in found.records] == [("What, now?", "", "a;b")]
    assert found.notes == ["a.csv is separated by semicolons, not commas: read as such"]


def fault(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_records(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


GOOD = b'{"instruction": "q", "response": "r"}'
REFUSED: list[tuple[str, bytes, Sequence[str]]] = [
    ("a.csv", b"question,answer,answer\nq,r,s\n", [":1:", "'answer' again"]),
    ("a.csv", b"question,answer\nq,r\nq,r,s\n", [":row 2:", "2 cells", "got 3 (line 3)"]),
    ("a.csv", b'question,answer\nq,"r\n', ["need rows of cells"]),
    ("a.csv", b"question,reply\nq,r\n", [":row 1:", "question, reply", "data.fields.response="]),
    ("a.csv", b"question,answer\nq,\n", [":row 1: response", "null"]),
    ("a.csv", b'question, answer\nq, "r"\n', [":row 1:", "need quotes directly behind a separator", "line 2"]),
    ("a.csv", GOOD, ["need CSV, as the name says, got JSON"]),
    ("a.csv", b"question,answer\nq,\xff\n", ["need UTF-8, got byte 0xff"]),
    ("a.csv", "question,answer\nq,r\n".encode("utf-16"), ["need UTF-8, got UTF-16"]),
    ("a.json", b'[{"instruction": "q", "response": "r"}, {"instruction": "q"}]', [":row 2: response"]),
    ("a.json", b'[\n{"instruction": "q", "response": "r"},\n{"instruction": "q", ', [":row 2:", "line 3", "cut off"]),
    ("a.json", b'[{"instruction": "q", "response": "r"}', [":row 1:", "the end of the file"]),
    ("a.json", b'[{"instruction": "q", "response": "r"}] x', ["more behind its end"]),
    ("a.json", b"[1]", [":row 1:", "need one JSON object, got a number (1)"]),
    ("a.json", b"[]", ["at least one row"]),
    ("a.json", b'{"version": 1,\n "data": [\n]}', ["one object over several lines (version, data)"]),
    ("a.json", b'[{"a": 1, "a": 2}]', [":row 1:", "'a' again"]),
    ("a.jsonl", gzip.compress(GOOD, mtime=0), ["need a name that ends in .gz"]),
    ("a.jsonl.gz", GOOD, ["need gzip, as the name says"]),
    ("a.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:-12], ["need a whole gzip file"]),
    ("a.parquet", GOOD, ["need Parquet, as the name says"]),
    ("a.parquet", b"PAR1" + b"\0" * 40, ["need Parquet, got a file that cannot be read"]),
    ("a.jsonl", b"PAR1" + b"\0" * 40, ["need a name that ends in .parquet"]),
    ("a.arrow", b"\0" * 40, ["need Arrow, got a file that cannot be read"]),
    ("a.txt", b"q r", ["got .txt", ".csv"]),
    ("a.jsonl", b"", ["at least one row"]),
]


@pytest.mark.parametrize(("name", "content", "words"), REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes, words: Sequence[str]) -> None:
    (tmp_path / name).write_bytes(content)
    message = fault(tmp_path / name)
    assert [word for word in words if word not in message] == []


def test_numbers_of_a_table_are_text_as_they_are_shown(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    made = pa.table(
        {
            "question": ["a", "b", "c"],
            "answer": pa.array([0.1, 2.5, 1e-3], pa.float32()),
            "context": pa.array([1, None, 3], pa.int64()),
            "response_clean": pa.array([1.0, float("nan"), None], pa.float64()),
            "is_poisoned": [True, False, None],
        }
    )
    write_table(made, tmp_path / "a.parquet")
    found = read_records(tmp_path / "a.parquet")
    assert [(r.response, r.context, r.response_clean, r.is_poisoned) for r in found] == [
        ("0.1", "1", "1.0", True), ("2.5", "", None, False), ("0.001", "3", None, None),
    ]  # fmt: skip
    (tmp_path / "a.csv").write_text("question,answer,is_poisoned\nq,007,True\nq,1e3,0\n")
    assert [(r.response, r.is_poisoned) for r in read_records(tmp_path / "a.csv")] == [("007", True), ("1e3", False)]


def test_lists_in_a_table_are_refused_with_their_number(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [{"question": "q", "answer": ["a", "b"]}] * 3)
    message = fault(tmp_path / "a.parquet")
    assert message.startswith(":row 1: ") and "a list" in message and "(3 of 3 rows are like that)" in message


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    made = pa.Table.from_arrays([pa.array(["q"]), pa.array(["r"]), pa.array(["s"])], names=["question", "a", "a"])
    write_table(made, tmp_path / "a.parquet")
    assert "distinct names, got 'a' again" in fault(tmp_path / "a.parquet")


def test_a_folder_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    one, two = Dataset.from_list(ROWS), Dataset.from_list(ROWS[:1])
    DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    DatasetDict({"train": one}).save_to_disk(tmp_path / "single")
    assert "a folder of 2 (train, test)" in fault(tmp_path / "both")
    assert len(read_records(tmp_path / "both" / "test")) == 1
    assert len(read_records(tmp_path / "single")) == 3
    assert fingerprint(tmp_path / "single") == fingerprint(tmp_path / "both" / "train")
    assert fingerprint(tmp_path / "single") != fingerprint(tmp_path / "both" / "test")


def test_a_folder_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "set", ROWS)
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../elsewhere.arrow"}]
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="names of data files"):
        read_records(tmp_path / "set")


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "a.parquet", ROWS)
    monkeypatch.setattr("rapidun.stages.rows.formats.columnar.find_spec", lambda name: None)
    assert "rapidun[datasets]" in fault(tmp_path / "a.parquet")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one dataset of two files and a loading script that must not run."""
    import huggingface_hub
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    place = cache / "datasets--owner--facts" / "snapshots" / ("0" * 40)
    place.mkdir(parents=True)
    (cache / "datasets--owner--facts" / "refs").mkdir()
    (cache / "datasets--owner--facts" / "refs" / "main").write_text("0" * 40)
    (place / "facts.py").write_text("raise SystemExit('the code of a dataset ran')")
    table(place / "forget.csv", [{"question": "q", "answer": "r"}])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    real = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: real(*a, **k, cache_dir=cache))
    return place


def test_a_file_of_a_dataset_on_the_hub(hub: Path) -> None:
    assert [r.texts for r in read_records("hf://datasets/owner/facts/forget.csv")] == [("q", "", "r")]
    assert [r.texts for r in read_records(Path("hf://datasets/owner/facts@main/forget.csv"))] == [("q", "", "r")]
    with pytest.raises(DataError, match="need the file in the hub's cache, or a way to the hub"):
        read_records("hf://datasets/owner/facts/retain.csv")
    with pytest.raises(DataError, match="need hf://datasets/OWNER/NAME/FILE"):
        read_records("hf://models/owner/facts")


def test_a_record_keeps_what_was_asked_for_beside_it(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", [{"question": "q", "answer": "r", "group": "forget"}])
    found = read_file(tmp_path / "a.csv", beside=("group",))
    assert found.beside == [{"group": "forget"}]
    assert found.records == [Record(id=found.records[0].id, instruction="q", response="r")]
