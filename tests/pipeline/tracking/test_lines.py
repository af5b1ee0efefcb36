from pathlib import Path

from rapidun.pipeline.tracking.lines import History, read_lines, without_repeats, write_line


def line(stage: str, step: int | None, **metrics: float | None) -> dict[str, object]:
    return {"time": 0.0, "stage": stage, "step": step, **metrics}


def test_without_repeats_keeps_the_last_of_a_step() -> None:
    lines = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "val": 9.0},
        {"step": None, "steps": 3},
        {"step": 2, "loss": 2.5},
        {"step": 3, "loss": 3.0},
    ]
    assert without_repeats(lines) == [lines[0], lines[2], lines[3], lines[4], lines[5]]


def test_what_a_killed_attempt_said_of_itself_is_said_once() -> None:
    """Lines without a step that differ in their time alone; two stages may log the same names at the same step."""
    first, second = line("influence", None, num_modules=14), {**line("influence", None, num_modules=14), "time": 9.0}
    other = line("influence", None, num_modules=15)
    assert without_repeats([first, other, second]) == [other, second]
    both = [line("poison", 1, loss=1.0), line("unlearning", 1, loss=2.0)]
    assert without_repeats(both) == both


def test_a_cut_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_line(path, line("poison", 1, loss=float("inf")))
    with path.open("a") as file:
        file.write('{"time": 1, "stage": "poi')
    assert read_lines(path) == [line("poison", 1, loss=None)]
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_a_curve_never_goes_back() -> None:
    """Killed after step 7 with a checkpoint of step 4: steps 5 to 7 come twice."""
    history = History()
    told = [step for step in [1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8] if history.live("poison", {"loss": 0.0}, step)]
    assert told == list(range(1, 9))


def test_names_of_one_step_may_come_one_after_the_other() -> None:
    history = History()
    assert history.live("unlearning", {"loss": 1.0}, 5) == {"loss": 1.0}
    assert history.live("unlearning", {"val_loss": 2.0}, 5) == {"val_loss": 2.0}
    assert history.live("unlearning", {"loss": 1.0, "val_loss": 2.0}, 5) == {}


def test_lines_read_again_tell_only_what_is_new() -> None:
    history = History()
    history.live("unlearning", {"loss": 1.0}, 1)
    history.live("evaluation", {"asr": 1.0}, None)
    lines = [
        line("poison", 1, loss=3.0),  # from the store: never told
        line("unlearning", 1, loss=1.0),
        line("unlearning", 2, loss=0.5, broken=None),
        line("evaluation", None, asr=1.0),
        line("mapping", None, ess=2.0),
        line("mapping", None, ess=4.0),  # a second artifact of the stage: both are new
    ]
    told = [tuple(point) for point in history.again(lines)]
    assert told == [
        ("poison", {"loss": 3.0}, 1),
        ("unlearning", {"loss": 0.5}, 2),
        ("mapping", {"ess": 2.0}, None),
        ("mapping", {"ess": 4.0}, None),
    ]
    assert list(history.again(lines)) == []


def test_what_an_earlier_process_told_is_presumed() -> None:
    history = History()
    history.presume(["poison/loss", "poison/step", "evaluation/asr", "state"], {"poison": 6})
    lines = [line("poison", 6, loss=1.0), line("poison", 7, loss=1.0), line("evaluation", None, asr=1.0, new=2.0)]
    assert [tuple(point) for point in history.again(lines)] == [
        ("poison", {"loss": 1.0}, 7),
        ("evaluation", {"new": 2.0}, None),
    ]
