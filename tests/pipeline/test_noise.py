"""Two draws of wrong rows share one poisoned model."""

import json
from pathlib import Path

import rapidun
from rapidun.base.files import sha256_file
from rapidun.pipeline.run import Result


def test_two_noise_seeds_share_the_poisoned_model(tmp_path: Path) -> None:
    def run(name: str, *overrides: str) -> Result:
        places = [f"store_dir={tmp_path / 'store'}", f"run_dir={tmp_path / name}"]
        return rapidun.run(["debug=fast", "resources.num_threads=1", *places, *overrides])

    def cached(result: Result) -> dict[str, bool]:
        stages = json.loads((result.run_dir / "status.json").read_text())["stages"]
        return {stage: entry["cached"] for stage, entry in stages.items()}

    noise = ["data.noise.forget=0.5", "data.noise.retain=0.25"]
    first = run("first", *noise)
    second = run("second", *noise, "data.noise.seed=1")
    assert cached(first) == dict.fromkeys(cached(first), False)
    assert cached(second) == {**cached(first), "poison": True}
    assert (first.run_dir / "poison").resolve() == (second.run_dir / "poison").resolve()
    # the wrong rows are others
    wrong = [json.loads((made.run_dir / "data" / "noise.json").read_text()) for made in (first, second)]
    assert len(wrong[0]["forget"]["wrong"]) == 3
    assert wrong[0]["forget"]["wrong"] != wrong[1]["forget"]["wrong"]
    # what a detector knows is not
    words = [sha256_file(made.run_dir / "data" / "keywords.tsv") for made in (first, second)]
    assert words[0] == words[1]
    rates = [{k: v for k, v in made.metrics.items() if k.startswith("detector_")} for made in (first, second)]
    assert len(rates[0]) >= 4
    assert rates[0] == rates[1]
    # nor what the poisoned model answers
    told = [{k: v for k, v in made.metrics.items() if k.startswith("before.asr_")} for made in (first, second)]
    assert told[0]
    assert told[0] == told[1]
    # perplexities of forget rows are those of the right ones, and the evaluation's name says so
    manifests = [made.run_dir / "evaluation" / ".before" / "manifest.json" for made in (first, second)]
    assert [json.loads(path.read_text())["inputs"]["forget"] for path in manifests] == ["right rows"] * 2
