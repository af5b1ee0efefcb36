"""A model of two layers and a tokenizer of characters, made in a second (tests/conftest.py)."""

from typing import Any

import pytest


@pytest.fixture(scope="session")
def tokenizer(character_tokenizer: Any) -> Any:
    return character_tokenizer


@pytest.fixture(scope="session")
def model(character_model: Any) -> Any:
    return character_model
