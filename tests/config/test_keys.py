"""Which keys exist, what they take, which name is nearest."""

import pytest

from rapidun.config import keys
from rapidun.config.run import STAGES


def test_find_walks_sections_lists_and_free_entries() -> None:
    assert keys.find("seed") is int
    assert keys.find("mapping.forget.w_min") is float
    assert keys.find("mapping.top_k") == (int | None)
    assert keys.find("data.families.any_name.seen") == list[str]
    assert keys.find("cluster.sbatch.nice") is str
    assert keys.dict_above("cluster.sbatch.nice") == "cluster.sbatch"
    for missing in ("sed", "mapping.tauf", "seed.x", "data.families.D.sen", "mapping.", "", "mapping.top_k.x"):
        assert keys.find(missing) is None, missing


def test_every_listed_key_exists_and_every_stage_is_a_section() -> None:
    known = list(keys.all_keys())
    assert len(known) == len(set(known)) > 100
    assert all(keys.find(key) is not None for key in known)
    assert set(STAGES) <= set(known)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("mapping.tauf", "did you mean mapping.tau_f?"),
        ("tau_f", "did you mean mapping.tau_f?"),
        ("learning_rate", "did you mean poison.learning_rate or unlearning.learning_rate or"),
        ("mapping.forget.wmin", "did you mean mapping.forget.w_min?"),
        ("unlerning.lora.r", "did you mean"),
        ("data.families.D.sen", "did you mean data.families.D.seen?"),
        ("model.scrach.hidden_size", "did you mean model.scratch.hidden_size?"),
        ("mapping.zzzzzz", "mapping has method, alpha"),
        ("zzzzzz", "the configuration has name, stages"),
    ],
)
def test_unknown_keys_name_the_nearest(wrong: str, meant: str) -> None:
    message = keys.unknown_key(wrong)
    assert message.startswith(f"{wrong}: no such key")
    assert meant in message


def test_nearest_takes_a_name_cut_short() -> None:
    assert keys.nearest("dolly", ["x", "dolly_smollm2"]) == "dolly_smollm2"
    assert keys.nearest("qqq", ["rapidun"]) is None


def test_describe_says_what_a_key_takes() -> None:
    assert keys.describe(keys.find("seed")) == "a whole number"
    assert keys.describe(keys.find("mapping.top_k")) == "a whole number, or null"
    assert keys.describe(keys.find("model.quantisation")) == "one of none, 8bit, 4bit"
    assert keys.describe(keys.find("stages")) == "a list such as [a,b]"
    assert keys.describe(keys.find("sweep.zip")) == "a list of lists such as [[a,b],[c,d]]"
    assert "w_min" in keys.describe(keys.find("mapping.forget"))
