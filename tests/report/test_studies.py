"""benchmarks/studies.py: what it takes from a sweep, what its tables say, and docs/RESULTS.md beside its data."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pytest

import rapidun
from rapidun.config.cells import compose_cells
from rapidun.config.plain import plain

ROOT = Path(__file__).resolve().parents[2]
SPEC = {
    "title": "A study",
    "preset": "study_small",
    "groups": {"dirty": {"data.noise.forget": 0.25}, "clean": {"data.noise.forget": 0.0}},
    "arms": {"uniform": {"mapping.method": "uniform"}, "oracle": {"mapping.method": "oracle"}},
    "pairs": {"seed": [0, 1, 2]},
    "baseline": "uniform",
    "primary": "recovered",
    "higher": True,
    "shown": ["asr_seen"],
    "budget": "ppl_clean <= 1.02 * before.ppl_clean",
}


@pytest.fixture
def studies(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("studies", ROOT / "benchmarks" / "studies.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "studies", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STUDIES", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "RESULTS.md")
    (tmp_path / "small.json").write_text(json.dumps(SPEC))
    return module


def lines_of(studies, cells):
    """Lines as `collect` keeps them, from (group, arm, seed, recovered, clean perplexity)."""
    study = studies.read_study("small")
    lines = {}
    for group, arm, seed, recovered, perplexity in cells:
        line = {
            "group": group, "arm": arm, "seed": str(seed), "recovered": str(recovered), "asr_seen": "0.5",
            "ppl_clean": str(perplexity), "before.ppl_clean": "10", "seconds": "1", "weights_sha256": arm,
        }  # fmt: skip
        lines[studies.key_of(study, line)] = line
    studies.write_lines(study, lines)
    return study


def finding(studies, study, arm):
    """The cells of an arm's line in the table of dirty packs."""
    line = next(line for line in studies.study_results(study) if line.startswith(f"| {arm} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_an_interval_worked_by_hand(studies):
    """Differences .1, .2, .3: mean .2, s = .1, t(2) = 4.303, half a width of 4.303 * .1 / sqrt(3) = .248."""
    base = [("dirty", "uniform", seed, 0.1, 10) for seed in range(3)]
    study = lines_of(studies, [*base, *(("dirty", "oracle", seed, 0.2 + seed / 10, 10) for seed in range(3))])
    assert finding(studies, study, "oracle") == [
        "oracle", "3", "0.300", "+0.200 [-0.048, +0.448]", "0.500", "yes", "not shown",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("differences", "perplexity", "words"),
    [
        ((0.20, 0.21, 0.22), 10.0, "helps"),
        ((0.20, 0.21, 0.22), 10.3, "outside the budget"),
        ((-0.20, -0.21, -0.22), 10.0, "harms"),
        ((0.20, -0.21, 0.22), 10.0, "not shown"),
    ],
)
def test_the_rule_of_decision(studies, differences, perplexity, words):
    cells = [("dirty", "uniform", seed, 0.5, 10) for seed in range(3)]
    cells += [("dirty", "oracle", seed, 0.5 + one, perplexity) for seed, one in enumerate(differences)]
    assert finding(studies, lines_of(studies, cells), "oracle")[-1] == words


def test_where_less_is_better_the_rule_is_turned_round(studies):
    cells = [("dirty", "uniform", seed, 0.5, 10) for seed in range(3)]
    cells += [("dirty", "oracle", seed, 0.3 + seed / 100, 10) for seed in range(3)]
    study = lines_of(studies, cells)
    assert finding(studies, study, "oracle")[-1] == "harms"
    assert finding(studies, study._replace(higher=False), "oracle")[-1] == "helps"


def test_only_pairs_that_both_have_are_compared_and_one_shows_nothing(studies):
    study = lines_of(
        studies,
        [
            ("dirty", arm, seed, recovered, 10)
            for arm, seed, recovered in (("uniform", 0, 0.1), ("oracle", 0, 0.9), ("oracle", 1, 0.1))
        ],
    )
    assert finding(studies, study, "oracle")[3:] == ["+0.800", "0.500", "yes", "not shown (one pair)"]


def test_an_arm_that_has_no_cells_in_a_group_is_neither_planned_nor_shown(studies):
    study = lines_of(studies, [("dirty", "uniform", 0, 0.1, 10)])._replace(left_out=[["dirty", "oracle"]])
    text = "\n".join(studies.study_results(study))
    assert "1 of 9 cells run" in text and "oracle" not in text


def test_what_was_not_run_is_said(studies):
    study = lines_of(studies, [("dirty", "uniform", 0, 0.1, 10)])
    text = "\n".join(studies.study_results(study))
    assert "1 of 12 cells run" in text
    assert "| oracle | 0 | not run |" in text
    assert "Not run: clean." in text


def test_the_missing_cells_are_what_is_run(studies, tmp_path, monkeypatch):
    study = lines_of(studies, [("dirty", "uniform", 0, 0.1, 10)])
    (tmp_path / "study_small.yaml").write_text('sweep:\n  where: mapping != "oracle" or seed > 0\n')
    monkeypatch.setattr(studies, "PRESETS", tmp_path)
    typed = studies.command(study, ["data.dir=PACK"])
    assert typed[2:4] == ["-m", "+experiment=study_small"]
    done = 'not (data.noise.forget == 0.25 and mapping.method == "uniform" and seed == 0)'
    assert typed[4] == "sweep.where=" + json.dumps(f'(mapping != "oracle" or seed > 0) and {done}')
    assert typed[5] == "data.dir=PACK"


def test_finished_cells_are_taken_with_their_evidence_and_damaged_ones_are_not(studies, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    run = sweep / "0123456789"
    rapidun.run([
        "debug=fast", "resources.num_threads=1", "mapping=uniform", "evaluation.detectors.run=[]", "seed=1",
        f"store_dir={tmp_path / 'store'}", f"run_dir={run}",
    ])  # fmt: skip
    study = studies.read_study("small")._replace(primary="rougeL_recovered")
    assert studies.collect(study, sweep) == (1, [])
    (line,) = studies.read_lines(study).values()
    result = json.loads((run / "result.json").read_text())
    assert (line["group"], line["arm"], line["seed"]) == ("clean", "uniform", "1")
    assert float(line["ppl_clean"]) == pytest.approx(result["ppl_clean"], rel=1e-5)
    assert len(line["weights_sha256"]) == 16
    # a number that does not follow from what is stored
    (run / "result.json").write_text(json.dumps(result | {"ppl_clean": result["ppl_clean"] / 2}))
    (studies.STUDIES / "small.csv").unlink()
    taken, refused = studies.collect(study, sweep)
    assert taken == 0 and "ppl_clean" in refused[0]
    assert studies.read_lines(study) == {}


def test_a_run_that_came_to_the_baselines_weights_needs_no_training(studies, tmp_path):
    sweep, store = tmp_path / "sweep", f"store_dir={tmp_path / 'store'}"
    for name, more in (("one", ["mapping=uniform"]), ("two", ["mapping=recommended"])):
        rapidun.run([
            "debug=fast", "resources.num_threads=1", "stages=[data,poison,influence,mapping]", "seed=1", store,
            f"run_dir={sweep / name}", *more,
        ])  # fmt: skip
    arms = {"uniform": {"mapping.method": "uniform"}, "other": {"mapping.method": "recommended"}}
    spec = SPEC | {"arms": arms}
    (studies.STUDIES / "small.json").write_text(json.dumps(spec))
    study = studies.read_study("small")
    # without the baseline's numbers there is nothing to take
    taken, refused = studies.collect(study, sweep)
    assert taken == 0 and len(refused) == 2 and "lacks recovered" in refused[0]
    digest = studies.weights_digest(sweep / "two")
    base = {
        "group": "clean", "arm": "uniform", "seed": "1", "recovered": "0.5", "asr_seen": "0.1", "ppl_clean": "3",
        "before.ppl_clean": "3", "seconds": "1", "weights_sha256": digest,
    }  # fmt: skip
    studies.write_lines(study, {studies.key_of(study, base): base})
    # six rows are too few for a split: recommended is uniform
    assert studies.weights_digest(sweep / "one") == digest
    taken, _ = studies.collect(study, sweep)
    assert studies.read_lines(study)["clean", "other", "1"] == base | {"arm": "other"}
    # other weights are no twin
    studies.write_lines(study, {studies.key_of(study, base): base | {"weights_sha256": "0123"}})
    assert studies.collect(study, sweep)[0] == 0


def test_results_are_what_the_committed_data_gives():
    """docs/RESULTS.md and docs/studies, as they stand."""
    spec = importlib.util.spec_from_file_location("studies_as_committed", ROOT / "benchmarks" / "studies.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        assert module.results() == module.RESULTS.read_text(encoding="utf-8")
        for name in module.study_names():
            study = module.read_study(name)
            assert (module.STUDIES / f"{name}.md").is_file()
            assert (ROOT / "conf" / "experiment" / f"{study.preset}.yaml").is_file()
            for line in module.read_lines(study).values():
                assert set(csv_columns(module, study)) == set(line)
    finally:
        del sys.modules[spec.name]


def csv_columns(module, study):
    with (module.STUDIES / f"{study.name}.csv").open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file))


def test_the_cells_of_a_preset_are_those_of_its_study():
    """The preset's axes and the study's labels are written twice: each cell has one group, one arm, one pair."""

    spec = importlib.util.spec_from_file_location("studies_and_presets", ROOT / "benchmarks" / "studies.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        study = module.read_study("weights_smollm2")
        cells = compose_cells([f"+experiment={study.preset}", "data.dir=pack"])
        settings = [plain(cell.cfg) for cell in cells]
        labels = {
            (module.label_of(study.groups, one), module.label_of(study.arms, one), one["seed"]) for one in settings
        }
        assert len(cells) == len(labels) == study.num_planned
        assert not any(None in label for label in labels)
    finally:
        del sys.modules[spec.name]
