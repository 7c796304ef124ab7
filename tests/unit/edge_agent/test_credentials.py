"""The files that open things: what is in them, and what is refused of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.credentials import LocalKey
from primespark.errors import AuthenticationError, ConfigurationError


async def test_the_local_key_is_made_once_and_opens(tmp_path: Path) -> None:
    LocalKey(tmp_path)
    key = (tmp_path / "local.key").read_text()
    (tmp_path / "local.key").write_text(f"{key}\n")  # as an editor leaves it
    assert (await LocalKey(tmp_path).authenticate(key)).name == "local"
    with pytest.raises(AuthenticationError):
        await LocalKey(tmp_path).authenticate("")


@pytest.mark.parametrize("content", ["", "\n", "short"])
def test_a_key_that_was_cut_off_opens_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "local.key").write_text(content)
    with pytest.raises(ConfigurationError, match="holds no whole key"):
        LocalKey(tmp_path)


@pytest.mark.parametrize("lay", [os.mkfifo, Path.mkdir])
def test_a_key_that_is_no_file_is_told(tmp_path: Path, lay: Callable[[Path], None]) -> None:
    lay(tmp_path / "local.key")
    with pytest.raises(ConfigurationError, match="no file") as caught:
        LocalKey(tmp_path)
    assert "remove it" in caught.value.remedy
