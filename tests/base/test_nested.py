"""Nested dicts by dotted keys: leaves, numbers, and where two of them differ."""

from typing import Any

import pytest

from rapidun.base.nested import at, changes, differences, leaves, numbers, with_changes

SETTINGS = {"seed": 1, "mapping": {"tau_f": 0.5, "forget": {"path": None, "bounded": True}}, "tags": [], "free": {}}


def test_leaves_and_numbers() -> None:
    flat = {"seed": 1, "mapping.tau_f": 0.5, "mapping.forget.path": None, "mapping.forget.bounded": True}
    assert dict(leaves(SETTINGS)) == {**flat, "tags": [], "free": {}}
    assert numbers(SETTINGS, "run.") == {"run.seed": 1, "run.mapping.tau_f": 0.5}


def test_what_stands_at_a_key() -> None:
    assert at(SETTINGS, "mapping.tau_f") == 0.5
    assert at(SETTINGS, "mapping.forget.path", "other") is None
    assert at(SETTINGS, "mapping.forget") == {"path": None, "bounded": True}
    for absent in ("seed.one", "mapping.tau", "mapping.tau_f.x", ""):
        assert at(SETTINGS, absent, "other") == "other"


def test_differences_name_the_deepest_key_in_order() -> None:
    other = {"seed": 2, "mapping": {"tau_f": 0.5, "forget": {"bounded": False}}, "free": {"a": 1}, "new": {"b": 2}}
    assert list(differences(SETTINGS, other)) == [
        ("free.a", None, 1),
        ("mapping.forget.bounded", True, False),
        ("new", None, {"b": 2}),
        ("seed", 1, 2),
        ("tags", [], None),
    ]
    assert list(differences(SETTINGS, SETTINGS)) == []


@pytest.mark.parametrize(
    ("other", "found"),
    [
        ({"mapping": {"tau_f": 0.7}}, {"mapping": {"tau_f": {"=": 0.7}}}),
        ({"free": {"b": 1}}, {"free": {"=": {"b": 1}}}),
        ({"tags": ["x"], "seed": None}, {"tags": {"=": ["x"]}, "seed": {"=": None}}),
        ({}, {}),
    ],
)
def test_changes_lead_from_one_to_the_other(other: dict[str, Any], found: dict[str, Any]) -> None:
    base = {"seed": 1, "mapping": {"tau_f": 0.5, "tau_r": 0.5}, "free": {"a": 1}, "tags": []}
    whole = {**base, **{k: {**base["mapping"], **v} if k == "mapping" else v for k, v in other.items()}}  # type: ignore[dict-item]
    assert changes(base, whole) == found
    assert with_changes(base, found) == whole
