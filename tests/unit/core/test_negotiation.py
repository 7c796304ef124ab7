"""The header `Accept`, as RFC 9110 has it."""

from __future__ import annotations

import pytest

from primespark.core.web.negotiation import negotiate
from primespark.errors import NotAcceptableError

OFFERED = ("application/json", "text/csv", "application/vnd.apache.parquet")


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/csv", "text/csv"),
        ("TEXT/CSV; charset=utf-8", "text/csv"),
        ("text/*", "text/csv"),
        ("text/html, application/vnd.apache.parquet", "application/vnd.apache.parquet"),
        ("application/json;q=0.5, text/csv", "text/csv"),
        ("text/csv;q=0.5, */*;q=0.1", "text/csv"),
        ("*/*, application/json;q=0", "text/csv"),
        ("text/csv;q=0.2, application/json;q=0.9", "application/json"),
        ("nonsense, text/csv", "text/csv"),
    ],
)
def test_the_best_liked_is_chosen(accepted: str | None, chosen: str) -> None:
    assert negotiate(accepted, OFFERED) == chosen


@pytest.mark.parametrize("accepted", ["text/html", "text/csv;q=0", "nonsense", ",", "[a-z]*/*"])
def test_what_takes_none_is_refused(accepted: str) -> None:
    with pytest.raises(NotAcceptableError, match="no format of") as refused:
        negotiate(accepted, OFFERED)
    assert refused.value.remedy == f"accept {', '.join(OFFERED)}"
