"""What of the vendor's package cannot be released is logged, and ends nothing."""

from __future__ import annotations

from structlog.testing import capture_logs

from primespark.inference.hailo_errors import let_go


def test_what_refuses_its_release_is_logged() -> None:
    def refuse() -> None:
        raise RuntimeError("not configured")

    calls: list[int] = []
    with capture_logs() as logs:
        let_go(lambda: calls.append(1))
        let_go(refuse)
    assert calls == [1]
    assert [(log["event"], log["cause"]) for log in logs] == [
        ("accelerator_release_refused", "RuntimeError: not configured")
    ]
