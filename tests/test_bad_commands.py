"""Wrong inputs of every sub-command, and of the files that they read: status 2, one message, nothing left behind.

`python -m pytest -m bad_input --collect-only -q` counts these and those of other files.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rapidun.cli.main import main
from tests.test_bad_inputs import DATA, FILE_WEIGHTS, MODEL, PLACES, RELEASE, forget_rows, jsonl, retain_rows

PACK = ["stages=[data]", "data=pack", "data.dir=pack", "poison=none"]
DEEP = "[" * 3000
NOT_JSON = {"cut": "{", "empty": "", "latin": b"\xff", "deep": DEEP}
# name -> the command line, words of the one message, the file that is spoiled and its content
Case = tuple[str, list[str], list[str], tuple[str, str | bytes] | None]
CASES: list[Case] = []


def case(name: str, typed: str | list[str], words: list[str], spoiled: tuple[str, str | bytes] | None = None) -> None:
    CASES.append((name, typed.split() if isinstance(typed, str) else typed, words, spoiled))


# --- what folders they are called with -----------------------------------------------------------------------------

for command, wanted in {
    "report": "need a run folder", "verify": "need a run folder", "certify": "need the folder of a run",
    "klom": "need a run folder", "dashboard": "need a run folder, or a sweep folder",
    "sweep status": "need the folder of a sweep",
    "sweep logs": "need the folder of a sweep", "sweep collect": "need the folder of a sweep",
    "sweep cancel": "need the folder of a sweep", "sweep retry": "need the folder of a sweep",
    "pack check": "need the folder of a pack", "index verify": "need an index", "wandb sync": "need a folder",
}.items():  # fmt: skip
    case(f"{command} of nothing", f"{command} nowhere", [wanted, "nowhere"])
    case(f"{command} of a file", f"{command} forget.jsonl", [wanted, "forget.jsonl"])
    case(f"{command} without a folder", command, ["command line", "required", f"See rapidun {command.split()[0]}"])
    if command != "wandb sync":
        words = {"klom": "need run folders", "pack check": "need forget.jsonl"}
        case(f"{command} of an empty folder", f"{command} bare", [words.get(command, wanted), "bare"])
for action in ("list", "verify", "prune"):
    case(f"store {action} of nothing", f"store {action} --store nowhere", ["store: need a folder", "nowhere"])
    case(f"store {action} of a file", f"store {action} --store fw.jsonl", ["store: need a folder", "fw.jsonl"])

# --- what is typed -------------------------------------------------------------------------------------------------

for typed, words in {
    "sweep statuss bare": ["invalid choice: 'statuss'", "rapidun sweep --help"],
    "sweep": ["required", "rapidun sweep --help"],
    "wandb synk bare": ["invalid choice: 'synk'"],
    "store lst": ["invalid choice: 'lst'"],
    "store": ["required"],
    "completion tcsh": ["invalid choice: 'tcsh'", "zsh"],
    "completion": ["required"],
    "model get x": ["invalid choice: 'get'"],
    "model fetch": ["required"],
    "model fetch smollm3": ["need one of smollm2_135m", "smollm3"],
    "influence chek": ["invalid choice: 'chek'"],
    "influence check --rows 0": ["--rows >= 4", "got 0"],
    "influence check --rows many": ["--rows", "'many'"],
    "influence check --rounds 0": ["--rounds >= 1"],
    "influence check --seed -1": ["--seed", "need a number >= 0, got -1"],
    "influence check influence.kk=1": ["influence.kk: no such key", "influence.k?"],
    "influence check debug=fast --adapter nowhere": ["need a model that is there", "model.path"],
    "doctor --jsn": ["--jsn", "rapidun doctor --help"],
    "report --csv": ["--csv", "expected one argument"],
    "certify run --outt x": ["--outt"],
    "verify run --jsn": ["--jsn"],
    "klom run --jsn x": ["--jsn"],
    "pack chek": ["invalid choice: 'chek'"],
    "pack build": ["required", "clean, out"],
    "pack build clean.jsonl p --payload evil": ["--payload", "'evil'"],
    "pack build clean.jsonl p --position top": ["--position", "'top'"],
    "pack build clean.jsonl p --poison-fraction half": ["--poison-fraction", "'half'"],
    "pack build clean.jsonl p --poison-fraction 2": ["0 < --poison-fraction < 1", "2.0"],
    "pack build clean.jsonl p --forget-fraction 0": ["0 < --forget-fraction < 1"],
    "pack build clean.jsonl p --retain-ratio -1": ["--retain-ratio >= 1"],
    "pack build clean.jsonl p --train 0": ["--train >= 1"],
    "pack build clean.jsonl p --seed -1": ["--seed", "need a number >= 0, got -1"],
    "pack build clean.jsonl p --payload fixed": ["--target TEXT"],
    "pack build clean.jsonl p --target x": ["--payload fixed"],
    "pack build clean.jsonl p --responses no.txt": ["no.txt", "responses"],
    "pack build clean.jsonl bare/../pack": ["new or empty folder"],
    "pack build clean.jsonl p --field colour=x": ["FIELD=COLUMN", "colour=x"],
    "pack build nowhere p": ["nowhere", "no such file"],
    "pack check pack --field instruction": ["FIELD=COLUMN"],
    "pack check pack --tokenizer nowhere": ["--tokenizer", "nowhere"],
    "pack check pack --tokenizer fw.jsonl": ["--tokenizer", "fw.jsonl"],
    "import forget.jsonl": ["forget.jsonl", "YAML"],
    "import bare --out a/b": ["need"],
    "trace": ["required", "--out"],
    "index": ["required"],
    "index buildd": ["invalid choice: 'buildd'"],
}.items():
    case(typed, typed, words)
case(
    "pack build with a blank trigger", [*["pack", "build", "clean.jsonl", "p", "--trigger"], " "], ["--trigger", "' '"]
)
TRACE = "trace forget.jsonl --rows retain.jsonl --out t"
for more, words in {
    "--by bm25 --top x": ["--top", "'x'"],
    "--by bm25 --seed -1": ["--seed", "need a number >= 0, got -1"],
    "--by bm25 --explain -1": ["--explain"],
    "--by bm25 --pack p --num-forget 0": ["--num-forget", "need a number >= 1"],
    "--by bm25 --pack p --num-forget most": ["--num-forget", "most"],
    "--by bm25 --pack p --retain-ratio 0": ["--retain-ratio", "need a number >= 1"],
    "--by bm25 --pack p --num-forget 6": ["below the number of rows", "6"],
    "--by bm25 --query-field colour=x": ["--query-field", "colour=x"],
    "--by bm25 --multi-turn first": ["--multi-turn", "'first'"],
    "": ["--model DIR", "bm25"],
    "--model nowhere": ["nowhere"],
    "--model fw.jsonl": ["fw.jsonl"],
    "--model model --layer 99": ["layer", "99"],
    "--model model --pooling most": ["--pooling", "'most'"],
    "--by gradients --model model --index nowhere": ["nowhere: need an index"],
    "--by gradients --model model --index bare": ["bare: need an index"],
}.items():
    case(f"trace {more}", f"{TRACE} {more}", words)
case("trace of no queries", "trace no.jsonl --rows retain.jsonl --out t --by bm25", ["no.jsonl", "no such file"])
case("trace among no rows", "trace forget.jsonl --rows no.jsonl --out t --by bm25", ["no.jsonl", "no such file"])
case("trace into a file", "trace forget.jsonl --rows retain.jsonl --out fw.jsonl --by bm25", ["--out", "got a file"])
BUILD = "index build --rows retain.jsonl --out ix --model model"
for more, words in {
    "--k x": ["--k", "'x'"],
    "--k 0": ["--k", "need a number >= 1"],
    "--seed -1": ["--seed", "need a number >= 0, got -1"],
    "--threads -1": ["--threads", "need a number >= 1"],
    "--workers 0": ["--workers", "need a number >= 1"],
    "--shard-rows 0": ["--shard-rows", "need a number >= 1"],
    "--max-length 1": ["leaves room for a response in 1 tokens"],
    "--quantisation 3bit": ["--quantisation", "'3bit'"],
    "--dtype int4": ["--dtype", "'int4'"],
    "--params all": ["--params", "'all'"],
    "--params regex --regex (": ["need a regular expression", "("],
    "--params regex --regex zzz": ["zzz", "which matches none of its modules"],
    "--adapter nowhere": ["need a PEFT folder", "nowhere"],
    "--device tpu": ["--device", "'tpu'"],
}.items():
    case(f"index build {more}", f"{BUILD} {more}", words)
case("index build of no rows", "index build --rows no.jsonl --out ix --model model", ["no.jsonl", "no such file"])
case("index build by no model", "index build --rows retain.jsonl --out ix --model nowhere", ["nowhere"])
for verb, more in {
    "score": "--queries forget.jsonl",
    "top": "--queries forget.jsonl",
    "fit": "--rows retain.jsonl --kind kfac",
}.items():
    for place in ("nowhere", "bare"):
        typed = f"index {verb} {place} {more} --out o --model model"
        case(f"index {verb} {place}", typed, [f"{place}: need an index", "rapidun index build"])
case(
    "index fit of another kind",
    "index fit bare --rows retain.jsonl --kind full --out o --model model",
    ["--kind", "'full'"],
)

# --- where they are to write, what they are to write of ------------------------------------------------------------

for flag in ("--csv", "--md", "--html"):
    case(f"report {flag} below a file", f"report run {flag} fw.jsonl/x", ["places to write to", "fw.jsonl"])
    case(f"report {flag} over a folder", f"report run {flag} bare", ["places to write to", "bare"])
case("report --budget of one run", "report run --budget mia<1", ["need a sweep folder or several folders"])
case("report --budget of no metric", "report run run --budget nope<3", ["nope: no such metric"])
case("certify of a run without evaluation", "certify run", ["need a run that was evaluated"])
case("klom of a run without margins", "klom run", ["need evaluation/margins.json"])

# --- damaged files -------------------------------------------------------------------------------------------------

for name in ("status", "settings", "result"):
    for how, content in {**NOT_JSON, "list": "[1]"}.items():
        case(f"report of {name}.json {how}", "report run", [f"run/{name}.json: need"], (f"run/{name}.json", content))
for how, content in {**NOT_JSON, "list": "[1]", "object": "{}"}.items():
    case(
        f"index verify, manifest {how}",
        "index verify bare",
        ["bare/manifest.json: need"],
        ("bare/manifest.json", content),
    )
for how, content in {**NOT_JSON, "list": "[]", "null": "null", "number": "3", "object": "{}", "text": '"x"'}.items():
    words = ["--tokenizer", "tok"]
    case(f"pack check, tokenizer.json {how}", "pack check pack --tokenizer tok", words, ("tok/tokenizer.json", content))
for how, content in {
    "empty": "",
    "list": "- a\n",
    "open": "a: [\n",
    "tab": "a:\n\t- b\n",
    "latin": b"a: \xff\n",
}.items():
    case(f"import of YAML {how}", "import x.yaml", ["x.yaml", "need"], ("x.yaml", content))
ROWS: dict[str, tuple[str | bytes, list[str]]] = {
    "cut": ('{"instruction": "a"', [":1", "broken JSON"]),
    "list": ("[1]\n", ["row 1", "one JSON object"]),
    "number": ("3\n", [":1", "number (3)"]),
    "null": ("null\n", [":1", "null"]),
    "no response": ('{"instruction": "a"}\n', [":1: response: need a text"]),
    "latin": (b'{"instruction": "\xff"}\n', [":1: need UTF-8"]),
    "deep": (DEEP + "]" * 3000, ["recursion"]),
    "empty": ("", ["at least one row"]),
    "number for text": ('{"instruction": 1, "response": "b"}\n', ["instruction: need a text"]),
    "list for text": ('{"instruction": ["a"], "response": "b"}\n', ["instruction: need a text"]),
    "half a surrogate": ('{"instruction": "\\ud800", "response": "b"}\n', ["surrogate"]),
    "an id twice": ('{"id": "a", "instruction": "a", "response": "b"}\n' * 2, [":2: id", "'a' again"]),
    "a key twice": ('{"instruction": "a", "instruction": "b", "response": "b"}\n', [":1", "instruction"]),
    "an endless number": ('{"instruction": "a", "response": "b", "n": ' + "9" * 5000 + "}\n", [":1"]),
}
for how, (content, words) in ROWS.items():
    case(f"pack check, rows {how}", "pack check pack", ["forget_set.jsonl", *words], ("pack/forget_set.jsonl", content))
FORMATS: dict[str, tuple[str, str | bytes, list[str]]] = {
    "CSV of ragged rows": ("x.csv", "a,b\n1\n", ["row 1", "2 cells"]),
    "CSV of other columns": ("x.csv", "a,b\n1,2\n", ["need"]),
    "Parquet of nothing": ("x.parquet", b"PAR1xxxx", ["Parquet"]),
    "Arrow of nothing": ("x.arrow", b"ARROW1", ["Arrow"]),
    "a cut gzip": ("x.jsonl.gz", b"\x1f\x8bxx", ["gzip"]),
    "another format": ("x.txt", "hello", [".txt", "Rename"]),
    "cut JSON": ("x.json", "{", ["broken JSON"]),
    "an empty array": ("x.json", "[]", ["at least one row"]),
    "a number": ("x.json", "3", ["number (3)"]),
    "messages that are none": ("x.jsonl", '{"messages": 3}\n', ["messages: need a list"]),
    "a turn of nobody": ("x.jsonl", '{"messages": [{"role": "king", "content": "a"}]}\n', ["'king'"]),
    "no turn": ("x.jsonl", '{"messages": []}\n', ["messages"]),
}
for how, (file, content, words) in FORMATS.items():
    case(f"pack build of {how}", f"pack build {file} p", [file, *words], (file, content))
META: dict[str, str | bytes] = {
    **NOT_JSON, "a number": '{"trigger_families": 3}', "no family": '{"trigger_families": {}}',
    "a text": '{"trigger_families": {"A": "aloha"}}', "no trigger": '{"trigger_families": {"A": {"seen": []}}}',
    "a blank trigger": '{"trigger_families": {"A": {"seen": [" "]}}}',
    "another place": '{"trigger_families": {"A": {"seen": ["x"], "inject_mode": "top"}}}',
}  # fmt: skip
for how, content in META.items():
    case(
        f"triggers_config.json {how}",
        [*PACK, *PLACES],
        ["triggers_config.json", "need"],
        ("pack/triggers_config.json", content),
    )
for how, content in {
    "header": "x\n",
    "latin": b"\xff\t1\n",
    "negative": "word\tcount_poison\na\t-1\n",
    "z": "word\tz\na\tnan\n",
}.items():
    case(f"keywords {how}", [*PACK, *PLACES], ["keywords.tsv", "need"], ("pack/keywords.tsv", content))
LINES: dict[str, str | bytes] = {
    "cut": '{"id"', "list": "[1]\n", "null": "null\n", "huge": '{"id": "f0", "weight": 1e308}\n',
    "true": '{"id": "f0", "weight": true}\n', "without": '{"id": "f0"}\n', "latin": b"\xff\n", "empty": "",
    "deep": DEEP, "twice": '{"id": "f0", "id": "f1", "weight": 1}\n',
}  # fmt: skip
for how, content in LINES.items():
    case(f"weights {how}", [*FILE_WEIGHTS, *PLACES, *DATA], ["fw.jsonl"], ("fw.jsonl", content))


def block(**entry: object) -> str:
    return json.dumps(
        {"config": "x", "0": {"helpful": [0], "helpful_infl": [1], "harmful": [0], "harmful_infl": [1], **entry}}
    )


SCORES: dict[str, str | bytes] = {
    **NOT_JSON, "null": "null", "number": "3", "nan": block(helpful_infl=[float("nan")]),
    "huge": block(helpful_infl=[1e308]),
    "another row": block(helpful=[7], harmful=[7]), "text": block(helpful=["a"]), "lengths": block(helpful_infl=[1, 2]),
    "a query that is none": json.dumps({"config": "x", "zero": {}}),
}  # fmt: skip
for how, content in SCORES.items():
    case(f"scores {how}", [*RELEASE, *PLACES, *DATA], ["ff"], ("ff.json", content))
START = ["stages=[influence]", *PLACES, *DATA, *MODEL]
for how, content in {**NOT_JSON, "list": "[]", "null": "null", "number": "3", "object": "{}"}.items():
    case(f"config.json {how}", START, ["model: need", "model"], ("model/config.json", content))
for how, content in {
    "nothing": b"",
    "zeros": b"\0" * 64,
    "a length": b"\xff" * 16,
    "HTML": b"<html>",
    "a pointer": b"version https://git-lfs",
}.items():
    case(f"weights of a model: {how}", START, ["model.safetensors", "need"], ("model/model.safetensors", content))
GGUF = {"nothing": b"", "zeros": b"\0" * 64, "a word": b"GGUF", "a version": b"GGUF" + bytes([99, *[0] * 19])}
for how, content in GGUF.items():
    case(f"GGUF: {how}", [*START, "model.path=m.gguf"], ["GGUF", "m.gguf"], ("m.gguf", content))

# --- settings ------------------------------------------------------------------------------------------------------

for typed, words in {
    "mapping.tau_f=[1]": ["mapping.tau_f", "number"],
    "mapping.tau_f={a:1}": ["mapping.tau_f"],
    "mapping.tau_f=null": ["mapping.tau_f"],
    "mapping.tau_f=true": ["mapping.tau_f"],
    "seed=true": ["seed"],
    "seed=1e3x": ["seed", "whole number"],
    "seed=99999999999999999999999": ["seed"],
    "poison.max_steps=-2": ["poison.max_steps"],
    "poison.per_device_train_batch_size=0": ["per_device_train_batch_size"],
    "unlearning.max_steps=0.5": ["unlearning.max_steps", "whole number"],
    "unlearning.lora.r=0": ["unlearning.lora.r"],
    "unlearning.lora.lora_dropout=1.5": ["lora_dropout"],
    "unlearning.lora.target_modules=3": ["target_modules"],
    "influence.k=0": ["influence.k"],
    "influence.k=many": ["influence.k", "whole number"],
    "influence.tokens_per_batch=0": ["tokens_per_batch"],
    "evaluation.num_prompts=-1": ["evaluation.num_prompts"],
    "evaluation.max_new_tokens=0": ["evaluation.max_new_tokens"],
    "evaluation.detectors.run=[wordz]": ["evaluation.detectors.run", "wordz"],
    "evaluation.attacks.run=[all]": ["evaluation.attacks.run", "all"],
    "evaluation.privacy.run=3": ["evaluation.privacy.run"],
    "data.noise.forget=1.5": ["data.noise.forget"],
    "data.noise.forget=-0.1": ["data.noise.forget"],
    "data.builtin.num_forget=0": ["num_forget"],
    "data.builtin.payload=evil": ["payload", "evil"],
    "resources.num_threads=-1": ["num_threads"],
    "model.dtype=float8": ["model.dtype", "bfloat16"],
    "model.quantisation=2bit": ["model.quantisation", "4bit"],
    "unlearning=forget": ["unlearning=", "forget"],
    "influence=exakt": ["influence=exact?"],
    "data.families.A={seen:3}": ["data.families.A"],
    "sweep.max_failures=2": ["-m"],
    "hydra/launcher=joblib": ["-m"],
    "name=": ["name"],
    "run_dir=3.5,4": ["-m"],
    "~seed": ["cannot be removed"],
    "seed==3": ["seed"],
    "tracking=wandbb": ["tracking=wandb?"],
}.items():
    case(typed, ["stages=[data]", *PLACES, typed], words)


# --- the place -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder in which all of it is right, but for what a case names or spoils."""
    place = tmp_path_factory.mktemp("good")
    for name, rows in (("forget", forget_rows()), ("retain", retain_rows())):
        (place / f"{name}.jsonl").write_text(jsonl(rows))
        weights = [{"id": row["id"], "weight": 1.0} for row in rows]
        (place / f"{name[0]}w.jsonl").write_text(jsonl(weights))
        (place / "pack").mkdir(exist_ok=True)
        (place / "pack" / f"{name}_set.jsonl").write_text(jsonl(rows))
    clean = [{"instruction": f"Say {i}", "response": f"it is {i}"} for i in range(40)]
    (place / "clean.jsonl").write_text(jsonl(clean))
    for name in ("ff", "fr", "rf", "rr"):
        (place / f"{name}.json").write_text(block())
    (place / "bare").mkdir()
    shutil.copytree(tiny_model_dir, place / "model")
    (place / "tok").mkdir()
    for file in tiny_model_dir.glob("*token*"):
        shutil.copy(file, place / "tok")
    assert main(["debug=fast", "stages=[data]", f"run_dir={place / 'run'}", f"store_dir={place / 'store'}"]) == 0
    return place


@pytest.fixture
def place(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The good folder, as the working directory; a file that a case spoils is put back."""
    monkeypatch.chdir(good)
    before = files(good)
    yield good
    shutil.rmtree(good / "out", ignore_errors=True)
    assert files(good) == before


def files(place: Path) -> set[str]:
    """Everything below but the run folder and the store of a case."""
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.relative_to(place).parts[0] != "out"}


@pytest.mark.bad_input
@pytest.mark.parametrize(("name", "typed", "words", "spoiled"), CASES, ids=[one[0] for one in CASES])
def test_it_is_refused(
    name: str, typed: list[str], words: list[str], spoiled: tuple[str, str | bytes] | None, place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    held = None
    if spoiled is not None:
        file = place / spoiled[0]
        held = file.read_bytes() if file.is_file() else None
        file.write_bytes(spoiled[1] if isinstance(spoiled[1], bytes) else spoiled[1].encode())
    before = files(place)
    try:
        status = main(typed)
        assert files(place) == before
    finally:
        if spoiled is not None:
            file.unlink()
            if held is not None:
                file.write_bytes(held)
    out, err = capsys.readouterr()
    assert status == 2, out + err
    messages = [line for line in err.split("\n") if line.startswith("rapidun: ")]
    assert len(messages) == 1, err
    message = err[err.index("rapidun: ") :]
    assert "Traceback" not in out + err and max(map(len, message.split("\n"))) < 800, message
    for word in words:
        assert word in message, message


def test_no_case_stands_twice() -> None:
    assert len({(tuple(typed), spoiled) for _, typed, _, spoiled in CASES}) == len(CASES) == len({c[0] for c in CASES})
