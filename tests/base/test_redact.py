import pytest

from rapidun.base import redact
from rapidun.base.redact import HIDDEN, hide, hide_entries, keep_secret


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


@pytest.mark.parametrize("name", ["PWD", "OLDPWD"])
def test_the_working_directory_is_no_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every shell sets PWD: paths below it stand in settings and messages."""
    monkeypatch.setenv(name, "/home/me/project")
    monkeypatch.setenv("DB_PWD", "long-enough-55")
    assert hide({"dir": "/home/me/project/packs"}) == {"dir": "/home/me/project/packs"}
    assert hide("x long-enough-55 y") == f"x {HIDDEN} y"


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


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "token",
    [
        "hf_QwErTyUiOpAsDfGh", "sk-proj-abcdEFGH1234ijklMNOP", "sk-ant-api03-abcdefghijklmnop",
        "ghp_0123456789abcdefABCD",
        "github_pat_11ABCDEFG0123456789_abcdef", "glpat-abcdefghij0123456789", "AKIAIOSFODNN7EXAMPLE",
        "xoxb-123456789012-abcdefghij", "wandb_v1_abcdefghij0123456789", COMMIT,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nabc\n-----END RSA PRIVATE KEY-----",
    ],
)  # fmt: skip
def test_tokens_are_known_by_their_shape(token: str) -> None:
    assert hide(f"error: {token}, try again") == f"error: {HIDDEN}, try again"
    assert hide({"note": [f"got {token}"]}) == {"note": [f"got {HIDDEN}"]}


def test_headers_and_assignments_in_a_sentence() -> None:
    assert hide("Authorization: Bearer abc.def-123456789") == f"Authorization: Bearer {HIDDEN}"
    assert hide("with SITE_TOKEN=abc and api_key='x y'") == f"with SITE_TOKEN={HIDDEN} and api_key={HIDDEN}"


@pytest.mark.parametrize(
    "text",
    [
        f"made by commit {COMMIT}", f"snapshots/{COMMIT}/config.json", f"revision: {COMMIT}", f"{COMMIT}{COMMIT[:24]}",
        "key: unknown, did you mean", "token = next(tokens)", "task-hf_x sk-learn bearer of news",
        "unlearning.token_weights=x",
    ],
)  # fmt: skip
def test_what_only_resembles_a_token_stays(text: str) -> None:
    assert hide(text) == text


def test_names_of_commits_stay() -> None:
    told = {"git_commit": f"{COMMIT}-dirty", "model": {"revision": COMMIT}, "git": {"commit": COMMIT}}
    assert hide(told) == told


def test_values_of_the_jobs_environment_are_known_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_known", set())
    monkeypatch.setenv("SITE_B", "value-of-this-process")
    keep_secret({"SITE_A": "value-as-given", "SITE_B": HIDDEN, "SITE_C": "1"})
    assert hide("value-as-given, value-of-this-process, 1") == f"{HIDDEN}, {HIDDEN}, 1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cluster.environment.PLACE=abc seed=1", "cluster.environment.PLACE=(hidden) seed=1"),
        ("a:\n  environment:\n    PLACE: abc\n    B: 'c d'\nseed: 1\n", "a:\n  environment: (hidden)\nseed: 1\n"),
        ("  environment: {PLACE: abc}\nseed: 1\n", "  environment: (hidden)\nseed: 1\n"),
        ("  environment: {}\nseed: 1\n", "  environment: {}\nseed: 1\n"),
    ],
)  # fmt: skip
def test_the_jobs_environment_in_text_by_any_name(text: str, shown: str) -> None:
    assert hide_entries(text) == shown
    assert hide({"overrides": [text]}) == {"overrides": [shown]}


@pytest.mark.parametrize("key", ["judge.api_key", "accessToken", "SITE_PASSPHRASE", "cluster.environment.PLACE"])
def test_dotted_and_joined_names(key: str) -> None:
    assert hide({key: "abc"}) == {key: HIDDEN}
