"""What a person sees and does in Dagster's UI, in a real browser; the screenshots stay in `.artifacts/`."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from primespark.cli.demo.clients import until
from primespark.cli.demo.dagster_client import DagsterClient
from primespark.cli.demo.loop import EDGE_CLASSES, STAGES
from primespark.core.settings import Settings
from primespark.embedded.stack import DEFAULT_AGENTS, AgentSpec, Stack

ARTIFACTS = Path(__file__).parents[2] / ".artifacts"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUICK = {
    "PRIMESPARK_EDGE__TELEMETRY__REPLAY_RECORDING": "true",
    "PRIMESPARK_SYNC__BATCH_WAIT_S": "0.2",
}
UI_TIMEOUT_MS = 30_000
GROUPS = ("analytics", "edge", "ml")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    agents = (AgentSpec(DEFAULT_AGENTS[0].device_id, environment=QUICK),)
    home = tmp_path_factory.mktemp("ui") / "home"
    stack = Stack(Settings(), home, agents=agents, only=("postgres", "broker", "cloud", "edge", "dagster"))
    try:
        await stack.start()
        yield stack
    finally:
        await stack.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, stack: Stack) -> AsyncIterator[Page]:
    page = await browser.new_page(base_url=stack.endpoints["dagster"], viewport={"width": 3200, "height": 1400})
    page.set_default_timeout(UI_TIMEOUT_MS)
    yield page
    await page.close()


async def test_the_asset_graph_shows_batches_rollups_and_the_eight_stages(page: Page, stack: Stack) -> None:
    client = DagsterClient(stack.endpoints["dagster"])

    async def batches_arrived() -> bool:
        made = (await client.history()).materializations
        return made.get("edge/telemetry", 0) > 0 and made.get("edge/inference_results", 0) > 0

    await until("edge batches in Dagster", batches_arrived, 60)
    await client.aclose()
    unfolded = ",".join(f"global@global:{group}" for group in GROUPS)
    await page.goto(f"/asset-groups?{urlencode({'expanded': unfolded})}")
    for name in (*EDGE_CLASSES, "hourly_rollup", *STAGES):
        await expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=UI_TIMEOUT_MS)
    await _keep(page, "asset-graph")


async def test_a_rollup_launched_from_the_ui_runs(page: Page, stack: Stack) -> None:
    await page.goto("/assets/analytics/hourly_rollup")
    await page.get_by_role("button", name="Materialize").first.click()
    await page.get_by_role("button", name="Latest").first.click()
    await page.get_by_role("button", name="Launch 1 run").click()
    client = DagsterClient(stack.endpoints["dagster"])

    async def rolled_up() -> bool:
        history = await client.history()
        return history.failed_runs == 0 and history.materializations.get("analytics/hourly_rollup", 0) > 0

    await until("the rollup to be materialised", rolled_up, 90)
    await client.aclose()
    await page.goto("/runs")
    await expect(page.get_by_text("Success").first).to_be_visible(timeout=UI_TIMEOUT_MS)
    await _keep(page, "rollup-run")


async def _keep(page: Page, name: str) -> None:
    await asyncio.to_thread(os.makedirs, ARTIFACTS, exist_ok=True)
    await page.screenshot(path=ARTIFACTS / f"{name}.png")
