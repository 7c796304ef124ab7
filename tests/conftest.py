"""Settings of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers import IS_PROOF, rounds

pytest_plugins = ["tests.language_model", "tests.postgres"]

# The machines that run the suite are shared: how long an example takes says nothing about the code.
settings.register_profile(
    "shared", deadline=None, max_examples=rounds(100, 2000), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")

# A developer's own settings must not reach the tests.
for name in [name for name in os.environ if name.startswith("PRIMESPARK_")]:
    del os.environ[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-all", action="store_true", help="fail what would be skipped for want of a program")
    parser.addoption(
        "--timescaledb", type=Path, help="keep stores in the TimescaleDB whose programs are in this folder"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if IS_PROOF:
        return
    is_left = {item: any(mark.kwargs.get("only") for mark in item.iter_markers("prove")) for item in items}
    config.hook.pytest_deselected(items=[item for item, left in is_left.items() if left])
    items[:] = [item for item, left in is_left.items() if not left]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--require-all"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and nothing may be: {report.longrepr}"
    return report
