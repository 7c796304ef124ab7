"""Dagster as a user of its GraphQL API sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx2

from primespark.embedded.probes import PLAIN_HTTP
from primespark.errors import UnavailableError

LOCATION = "primespark"
REPOSITORY = "__repository__"
_FINAL = {"SUCCESS", "FAILURE", "CANCELED"}

_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
_RUN = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
_HISTORY = """
query History {
  runsOrError { ... on Runs { results { runId status jobName } } }
  assetsOrError {
    ... on AssetConnection { nodes { key { path } assetMaterializations(limit: 1000) { runId } } }
  }
}
"""


@dataclass(frozen=True, slots=True)
class History:
    """Runs and materialisations so far."""

    runs: int
    failed_runs: int
    materializations: dict[str, int]


class DagsterClient:
    """Launches runs and reads history.

    Args:
        url: Of the webserver.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx2.AsyncClient(base_url=url, timeout=30, verify=PLAIN_HTTP)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def launch(self, job: str, tags: dict[str, str]) -> str:
        """Start a run of `job`; its id."""
        params = {
            "selector": {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "jobName": job},
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        outcome = (await self._query(_LAUNCH, {"params": params}))["launchRun"]
        if outcome["__typename"] != "LaunchRunSuccess":
            raise UnavailableError(f"Dagster did not start {job}: {outcome}")
        return str(outcome["run"]["runId"])

    async def wait(self, run_id: str) -> str:
        """Wait for a run to end; its status."""
        while True:
            status = str((await self._query(_RUN, {"id": run_id}))["runOrError"]["status"])
            if status in _FINAL:
                return status
            await asyncio.sleep(0.1)

    async def history(self) -> History:
        """All runs and materialisations."""
        data = await self._query(_HISTORY, {})
        runs = data["runsOrError"]["results"]
        nodes = data["assetsOrError"]["nodes"]
        return History(
            runs=len(runs),
            failed_runs=sum(run["status"] in {"FAILURE", "CANCELED"} for run in runs),
            materializations={"/".join(node["key"]["path"]): len(node["assetMaterializations"]) for node in nodes},
        )

    async def _query(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        answer = await self._client.post("/graphql", json={"query": query, "variables": variables})
        body = answer.json()
        if "errors" in body:
            raise UnavailableError(f"Dagster refused a query: {body['errors'][0].get('message')}")
        data: dict[str, Any] = body["data"]
        return data
