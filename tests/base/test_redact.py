import pytest

from rapidun.base.redact import HIDDEN, hide, hide_entries


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "swordfish-1234")
    monkeypatch.setenv("HF_TOKEN", "hf_aaaabbbb")
    monkeypatch.setenv("SHORT_TOKEN", "main")
    monkeypatch.setenv("PLAIN", "not-a-secret-value")


def test_values_of_secret_variables_are_hidden_wherever_they_stand() -> None:
    told = hide({"a": ["x swordfish-1234 y", {"b": "hf_aaaabbbb"}], "c": "not-a-secret-value", "d": 3, "e": None})
    assert told == {"a": [f"x {HIDDEN} y", {"b": HIDDEN}], "c": "not-a-secret-value", "d": 3, "e": None}


def test_a_short_value_is_a_word() -> None:
    assert hide("the main branch") == "the main branch"


def test_values_of_the_jobs_environment_never_leave() -> None:
    assert hide({"cluster": {"environment": {"A": "1", "B": "2"}}}) == {
        "cluster": {"environment": {"A": HIDDEN, "B": HIDDEN}}
    }


@pytest.mark.parametrize("key", ["password", "api_key", "wandb_token", "secret", "credentials"])
def test_text_under_a_secret_name_is_hidden(key: str) -> None:
    assert hide({key: "abc"}) == {key: HIDDEN}


@pytest.mark.parametrize("key", ["max_new_tokens", "tokenizer", "keywords", "tokens_per_batch"])
def test_names_that_only_resemble_stay(key: str) -> None:
    assert hide({key: "abc"}) == {key: "abc"}
    assert hide({"token": 3}) == {"token": 3}


def test_users_in_addresses_are_left_out() -> None:
    assert hide("https://me:pw@host/x and https://ghp_x@host") == "https://host/x and https://host"
    assert hide("mail me@host, see a/b@c") == "mail me@host, see a/b@c"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("+cluster.environment={A_KEY:abc,HF_HOME:/data}", "+cluster.environment={A_KEY:(hidden),HF_HOME:(hidden)}"),
        ("cluster.environment.HF_TOKEN=abc seed=1", "cluster.environment.HF_TOKEN=(hidden) seed=1"),
        ("  HF_TOKEN: 'a b'\n  tokenizer: x\n", "  HF_TOKEN: (hidden)\n  tokenizer: x\n"),
        ("max_new_tokens=3 'keywords=[a,b]' +cluster.token", "max_new_tokens=3 'keywords=[a,b]' +cluster.token"),
        ("x=swordfish-1234", "x=(hidden)"),
    ],
)
def test_secrets_in_commands_and_yaml(text: str, shown: str) -> None:
    assert hide_entries(text) == shown
