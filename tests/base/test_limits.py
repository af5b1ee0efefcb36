"""What the machine refuses, in everybody's words: one message with place, need and remedy."""

import errno
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import rapidun
from rapidun.base import limits
from rapidun.base.errors import ConfigError, MachineError, ModelError
from rapidun.base.files import write_atomic, write_json, write_text, writing
from rapidun.base.limits import refusal, refusing
from rapidun.base.store import Store
from rapidun.base.text import byte_size, lines_of, one_line
from rapidun.pipeline.folder import RunFolder

PACKAGE = Path(rapidun.__file__).parent
# errno -> what is said of it
SAID = {
    errno.ENOSPC: r"need room for 5 bytes in PLACE/file, got .* free \(No space left on device\)\. Make room",
    errno.EDQUOT: r"need room for 5 bytes in PLACE/file, got a used-up quota",
    errno.EFBIG: r"need room for 5 bytes in PLACE/file, got .* \(File too large\)",
    errno.ENAMETOOLONG: r"need names of at most 255 bytes and paths of at most 4095, got",
    errno.EROFS: r"need a folder that can be written, got PLACE/file \(Read-only file system\)\. Pass run_dir=",
    errno.EMFILE: r"open files: need more than \d+ at once, .* Run ulimit -n 4096",
    errno.EIO: r"got an input/output error at PLACE/file",
    errno.ENOMEM: r"memory: need .*, got .* available",
}
# words of libraries -> what they are about
WORDS = {
    "[enforce fail at inline_container.cc:672] . unexpected pos 187648 vs 187540": "need room for",  # torch
    "PytorchStreamWriter failed writing file data/0: file write failed": "need room for",
    "basic_ios::clear: iostream error": "need room for",  # torch once more
    "1000 requested and 512 written": "need room for",  # numpy
    "Error while serializing: I/O error: No space left on device (os error 28)": "No space left",  # safetensors
    "Error while serializing: I/O error: Disk quota exceeded (os error 122)": "used-up quota",
    "Error while serializing: I/O error: File name too long (os error 36)": "need names of at most",
    "IO Error: Too many open files (os error 24)": "open files: need more than",
    "[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device": "No space left",  # pyarrow
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "40000000000 bytes. Error code 12 (Cannot allocate memory)": "memory: need 40.0 GB more",
    "can't start new thread": "processes: need one more",
}


@pytest.mark.parametrize("number", SAID, ids=errno.errorcode.get)
def test_each_refusal_of_the_system_has_one_message(tmp_path: Path, number: int) -> None:
    def write(part: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(MachineError) as caught, refusing({"run_dir": tmp_path}):
        write_atomic(tmp_path / "file", write, num_bytes=5)
    message = str(caught.value)
    assert re.search(SAID[number].replace("PLACE", re.escape(str(tmp_path))), message), message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "shard-1"])
def test_a_message_names_the_file_that_was_to_be_there(tmp_path: Path, below: str) -> None:
    """Not the unfinished one, which is gone when the message is read."""

    def write(part: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part / below))

    with pytest.raises(MachineError) as caught, refusing({"run_dir": tmp_path}):
        write_atomic(tmp_path / "weights", write)
    named = tmp_path / "weights" / below
    assert f"need room for {named}, got" in str(caught.value) and ".part" not in str(caught.value)


@pytest.mark.parametrize("words", WORDS, ids=range(len(WORDS)))
def test_words_of_libraries(tmp_path: Path, words: str) -> None:
    told = refusal(_raised(RuntimeError(words), tmp_path / "model.pt"), {"store_dir": tmp_path})
    assert told is not None and WORDS[words] in str(told)
    if "need room" in str(told):
        assert str(tmp_path / "model.pt") in str(told) and "store_dir=" in str(told)


def test_a_thread_without_room_for_its_stack_is_a_matter_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ulimit -v`: the system says the same of it as of too many threads."""
    actual = limits.resource.getrlimit
    bound = {limits.resource.RLIMIT_AS: (4 << 30, 4 << 30)}
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: bound.get(which) or actual(which))
    told = str(refusal(_raised(RuntimeError("can't start new thread"), tmp_path / "x"), {"store_dir": tmp_path}))
    assert told.startswith("memory: need more, got ") and "(ulimit -v)" in told


def test_the_first_cause_counts() -> None:
    """torch's words come while its file is closed, after the write that found no room."""
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        finally:
            raise RuntimeError("unexpected pos 10 vs 5")
    except RuntimeError as error:
        assert "used-up quota" in str(refusal(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("need a number"),
        FileNotFoundError(errno.ENOENT, "No such file", "a"),
        KeyError("No space left on device"),  # a row's text
        ConfigError("run_dir: need a folder, got x (Read-only file system)"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    ],
)
def test_what_is_no_refusal_of_the_machine_stays(error: Exception) -> None:
    assert refusal(error) is None
    with pytest.raises(type(error)) as caught, refusing():
        raise error
    assert caught.value is error


def test_an_error_of_ours_that_hides_a_full_disk_gives_way_to_it() -> None:
    """`need a causal LM, got DIR (Too many open files)` would send the user to the wrong place."""
    try:
        raise ModelError("model: need a causal LM") from OSError(errno.EMFILE, "Too many open files")
    except ModelError as error:
        assert "open files" in str(refusal(error))


def test_a_full_disk_that_nobody_can_place_is_said_as_such(tmp_path: Path) -> None:
    told = str(refusal(OSError(errno.ENOSPC, "No space left on device"), {"run_dir": tmp_path}))
    assert "while the folders of this run have room" in told


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_real_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """The real thing: bytes asked, bytes free, and what is there stays readable."""
    write_text(small_disk / "kept", "x")
    with pytest.raises(MachineError) as caught, refusing({"store_dir": small_disk}):
        write_text(small_disk / "file", "y" * 200_000)
    message = str(caught.value)
    assert re.match(rf"store_dir: need room for 200,000 bytes in {small_disk}/file, got [\d,]+ bytes free", message)
    assert [path.name for path in small_disk.iterdir()] == ["kept"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_leaves_no_status_that_says_running(small_disk: Path) -> None:
    """Not a byte is free when the run fails: the old status is written over."""
    folder = RunFolder(small_disk / "run")
    folder.open(config={"stages": ["data"]}, config_yaml="", overrides=[])
    folder.start_stage("data")
    folder.heartbeat.stop()
    _fill(small_disk)
    assert folder.fail(MachineError("disk: need room")) == ""
    status = json.loads((small_disk / "run" / "status.json").read_text())
    assert (status["state"], status["error"]["message"]) == ("failed", "MachineError: disk: need room")


def test_a_status_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.open(config={"stages": ["data"]}, config_yaml="", overrides=[])
    folder.heartbeat.stop()
    (tmp_path / "status.json").unlink()

    def refused(path: Path, value: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("rapidun.pipeline.folder.write_json", refused)
    assert "could not be written (Read-only file system) and still says that the run goes on" in folder.fail(
        ValueError("x")
    )


ODD = [
    "plain", "with blank", "quo'te", 'quo"te', "100%", "{}", "$HOME", "[red]", "x[b]y", ":smile:", "new\nline",
    "u\u2028line", "v\x0bt", "n\x85l", "\u05d0\u05d1", "\U0001f600", ".hidden", "é" * 127, "-dash", "tab\there",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_the_store_finds_a_run_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """What note_run notes, prune reads: of another folder it would delete the artifacts."""
    run = tmp_path / name
    run.mkdir()
    store = Store(tmp_path / "store")
    store.root.mkdir()
    store.note_run(run)
    assert store.run_folders() == [run.resolve()]


def test_no_file_of_the_package_splits_text_at_odd_line_ends() -> None:
    """str.splitlines cuts at \\x0b, \\x85, U+2028, which names and rows may hold."""
    for file in PACKAGE.rglob("*.py"):
        assert ".splitlines(" not in file.read_text(encoding="utf-8"), file


def test_every_console_prints_text_and_no_markup() -> None:
    """`[red]` in a name is a name: consoles come from base/screen.py, columns of text say markup=False."""
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert file.name == "screen.py" or not re.search(r"(?<![\w])Console\(", text), file
        assert "from_markup" not in text, file
        for call in re.findall(r"\bTextColumn\([^()]*\)", text):
            assert "markup=False" in call, (file, call)


def test_names_are_shown_in_one_line() -> None:
    assert one_line("a\nb\u2028c\x1b[31m é") == "a\\nb\\u2028c\\x1b[31m é"
    assert lines_of("a\u2028b\n\x85\n") == ["a\u2028b", "\x85"] and lines_of("") == []
    assert [byte_size(n) for n in (999, 12_345_678, 4e10)] == ["999 bytes", "12.3 MB", "40.0 GB"]


def test_every_number_is_told() -> None:
    assert {number for _, number in limits.WORDS} <= set(limits.TOLD)


def test_the_innermost_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, writing(tmp_path), writing(tmp_path / "inner", 7):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert f"7 bytes in {tmp_path / 'inner'}" in str(refusal(caught.value))


def test_json_that_finds_no_room_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", 1)

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        write_json(tmp_path / "a.json", 2)
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _fill(place: Path) -> None:
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


def _raised(error: Exception, path: Path) -> Exception:
    try:
        with writing(path):
            raise error
    except Exception as caught:
        return caught
