"""`primespark streams rules`: live rules, asked of the cloud on this machine with its admin key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import typer
from rich.console import Console
from rich.table import Table

from primespark.cli.cells import plain
from primespark.core.paths import home
from primespark.core.settings import Settings, read_yaml_document
from primespark.embedded.probes import PLAIN_HTTP
from primespark.errors import NotFoundError, PrimeSparkError, UnavailableError

_TIMEOUT_S = 30.0
_RULES = "/api/v1/streams/rules"


def list_rules(settings: Settings, as_json: bool) -> None:
    """Print the rules of the file, then live ones."""
    answer = _ask(settings, "GET", _RULES)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    table = Table(title="Rules of the stream workers")
    table.add_column("rule", no_wrap=True)
    for heading in ("from", "version", "reads", "computes", "of", "writes"):
        table.add_column(heading, overflow="fold")
    for item in answer["items"]:
        rule = item["rule"]
        origin = "file" if item["origin"] == "file" else item["changed_by"]
        table.add_row(
            plain(item["rule_id"]), plain(origin), str(item["version"] or ""), rule["source_topic"],
            rule["aggregation_function"] if rule["enabled"] else "nothing, it is off",
            plain(rule["value_field"] or "rows"), rule["target_topic"],
        )  # fmt: skip
    Console().print(table)


def add_rules(settings: Settings, file: Path, replace: bool) -> None:
    """Add the rules of a file one by one; a rule that is there stays, unless it shall be replaced.

    Raises:
        PrimeSparkError: What the cloud refused; the rules before it are added.
    """
    for rule in _read(file):
        match = {}
        if replace:
            present = next((item for item in _ask(settings, "GET", _RULES)["items"] if _is(item, rule)), None)
            match = {"If-Match": f'"{present["version"]}"'} if present else {}
        stored = _ask(settings, "POST", _RULES, rule, match)
        typer.echo(f"{stored['rule_id']} is live, version {stored['version']}")


def remove_rule(settings: Settings, rule_id: str) -> None:
    """Delete a live rule."""
    _ask(settings, "DELETE", f"{_RULES}/{rule_id}")
    typer.echo(f"{rule_id} is deleted, and its windows")


def try_rules(settings: Settings, file: Path, records: int) -> None:
    """Print what the rules of a file would have said of what came lately, a JSON object a line."""
    for rule in _read(file):
        said = _ask(settings, "POST", f"{_RULES}/dry-run?records={records}", rule)
        for result in said.pop("results"):
            typer.echo(json.dumps(result))
        typer.echo(json.dumps(said))


def _is(item: dict[str, Any], rule: Any) -> bool:
    return isinstance(rule, dict) and item["rule_id"] == rule.get("rule_id") and item["origin"] == "live"


def _read(file: Path) -> list[Any]:
    document = read_yaml_document(file, "correct the file")
    return document if isinstance(document, list) else [document]


def _ask(
    settings: Settings, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """What the cloud on this machine answers.

    Raises:
        NotFoundError: There is none here.
        UnavailableError: It does not run.
        PrimeSparkError: It refused.
    """
    try:
        key = (home() / "cloud" / "admin.key").read_text().strip()
    except OSError as error:
        raise NotFoundError(
            f"no admin key of a cloud here: {error.strerror}",
            remedy="run this on the cloud's machine, with its settings, as the user it runs as",
        ) from None
    host = settings.cloud.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.cloud.port}"
    try:
        answer = httpx2.request(
            method, f"{url}{path}", json=body, headers={"Authorization": f"Bearer {key}", **(headers or {})},
            timeout=_TIMEOUT_S, trust_env=False, verify=PLAIN_HTTP,
        )  # fmt: skip
    except httpx2.HTTPError as error:
        raise UnavailableError(
            f"the cloud does not answer at {url}: {error}",
            remedy="start it, or set cloud.port to its port",
        ) from None
    found: dict[str, Any] = answer.json() if answer.content else {}
    if answer.is_success:
        return found
    raise PrimeSparkError(
        found.get("detail", f"HTTP {answer.status_code}"), remedy=found.get("remedy", ""), code=found.get("code")
    )
