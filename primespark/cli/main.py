"""The `primespark` command: its subcommands, and how every failure is told.

Subcommands import what they need when they run, so `--help` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.exceptions import TyperException

from primespark.errors import PrimeSparkError

if TYPE_CHECKING:
    from primespark.core.settings import Settings

app = typer.Typer(
    name="primespark",
    help="Run AI on a fleet of small computers, survive without a network, learn with a cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
device = typer.Typer(help="Enrol and manage devices (on the cloud's machine).", no_args_is_help=True)
device_group = typer.Typer(help="Groups of devices, which share documents.", no_args_is_help=True)
models = typer.Typer(help="Models: what ships, what can be fetched, and your own on devices.", no_args_is_help=True)
offline = typer.Typer(help="What this device holds for its cloud; the device must be running.", no_args_is_help=True)
sync = typer.Typer(help="Of a device how it stands; of the cloud, conflicts.", no_args_is_help=True)
streams = typer.Typer(help="Run stream workers, see how far they are, or try rules on recorded events.")
stream_rules = typer.Typer(help="Rules that change while workers run (on the cloud's machine).", no_args_is_help=True)
store = typer.Typer(help="The store behind the cloud (on the cloud's machine).", no_args_is_help=True)
config = typer.Typer(help="The settings in force.", no_args_is_help=True)
app.add_typer(device, name="device")
device.add_typer(device_group, name="group")
app.add_typer(models, name="models")
app.add_typer(offline, name="offline")
app.add_typer(sync, name="sync")
app.add_typer(streams, name="streams")
streams.add_typer(stream_rules, name="rules")
app.add_typer(store, name="store")
app.add_typer(config, name="config")

_MAX_SEQ = 2**62
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]
RulesFile = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="YAML or JSON: a rule, or a list of them.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


class _State:
    """Options given before the subcommand."""

    verbose = False
    config_file: Path | None = None


def _version(show: bool) -> None:
    if show:
        from primespark import __version__

        typer.echo(f"primespark {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file (YAML).")] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of every subcommand."""
    _State.verbose = verbose
    _State.config_file = config_file


@app.command()
def up(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Start these parts alone, comma separated: postgres, valkey, broker, cloud, streams, dagster, edge."
        ),
    ] = None,
) -> None:
    """Start everything on this machine under one supervisor, until Ctrl-C."""
    from primespark.cli.up import run_up

    run_up(_settings(), [part for group in only or [] for part in group.split(",")], _State.config_file)


@app.command()
def demo(
    as_json: Json = False,
    keep: Annotated[bool, typer.Option(help="Leave everything running until Ctrl-C, and show where.")] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="A folder of images or a video file the cameras show as well."),
    ] = None,
) -> None:
    """Run the closed loop once, from a camera frame to a better model, and print what was measured."""
    from primespark.cli.demo import run_demo

    raise typer.Exit(run_demo(as_json=as_json, keep=keep, images=images or []))


@app.command()
def edge() -> None:
    """Run the device service on this machine."""
    _run_room("edge", "edge")


@app.command()
def cloud() -> None:
    """Run the cloud API."""
    from primespark.cli.services import run_cloud

    run_cloud(_settings())


@streams.callback(invoke_without_command=True)
def streams_worker(
    context: typer.Context,
    workers: Annotated[int, typer.Option(min=1, max=64, help="So many, each a process on this machine.")] = 1,
) -> None:
    """Run stream workers; or, by a subcommand, see how far they are, or try rules."""
    if context.invoked_subcommand is not None:
        return
    if workers == 1:
        _run_room("streams", "streams")
        return
    from primespark.cli.stream_workers import run_workers

    run_workers(_settings(), workers, _State.config_file)


@streams.command("replay")
def streams_replay(
    rules: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="YAML or JSON list of rules.")],
    events: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A JSON object a line.")],
    manual_watermark: Annotated[
        bool, typer.Option("--manual-watermark", help="Only `advance_watermark` and `flush` move the watermark.")
    ] = False,
) -> None:
    """Run rules over recorded events, without a broker, and print what the windows say: a JSON object a line."""
    from primespark.cli.replay import replay_file

    replay_file(rules, events, manual_watermark=manual_watermark)


@streams.command("lag")
def streams_lag(as_json: Json = False) -> None:
    """Show how many messages the stream workers are behind, and who reads which partition."""
    from primespark.cli.stream_lag import show_lag

    show_lag(_settings(), as_json)


@stream_rules.command("list")
def stream_rules_list(as_json: Json = False) -> None:
    """Show the rules of the file and the live ones."""
    from primespark.cli.stream_rules import list_rules

    list_rules(_settings(), as_json)


@stream_rules.command("add")
def stream_rules_add(
    file: RulesFile,
    replace: Annotated[bool, typer.Option(help="Change what is there; it starts empty.")] = False,
) -> None:
    """Add rules, which every worker takes up at once."""
    from primespark.cli.stream_rules import add_rules

    add_rules(_settings(), file, replace)


@stream_rules.command("remove")
def stream_rules_remove(rule_id: str) -> None:
    """Delete a live rule and its windows."""
    from primespark.cli.stream_rules import remove_rule

    remove_rule(_settings(), rule_id)


@stream_rules.command("try")
def stream_rules_try(
    file: RulesFile, records: Annotated[int, typer.Option(min=1, max=10_000, help="Of each rule's topic.")] = 1000
) -> None:
    """Show what rules would have said of the newest records, a JSON object a line; nothing is stored."""
    from primespark.cli.stream_rules import try_rules

    try_rules(_settings(), file, records)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Explain what is wrong here, and how to put it right."""
    from primespark.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(_settings(), as_json))


@app.command()
def lineage(
    device_id: Annotated[str, typer.Argument(metavar="DEVICE")],
    stream: Annotated[str, typer.Argument(help="As the device names it: inference_results, events, telemetry …")],
    seq: Annotated[int, typer.Argument(min=1, max=_MAX_SEQ, help="Of the fact.")],
    epoch: Annotated[int | None, typer.Option(min=1, max=_MAX_SEQ, help="The newest that has it unless given.")] = None,
    as_json: Json = False,
) -> None:
    """Show where a stored fact comes from: its batch, frame and model (on the cloud's machine)."""
    from primespark.cli.lineage import show

    show(_settings(), device_id, stream, seq, epoch, as_json)


@app.command()
def query(
    metrics: Annotated[list[str] | None, typer.Argument(metavar="METRIC", help="What there is unless given.")] = None,
    aggregations: Annotated[
        list[str] | None,
        typer.Option("--agg", help="sum, avg, min, max, count, stddev, variance, or p95; avg unless given."),
    ] = None,
    last: Annotated[str | None, typer.Option(help="How far back: 90s, 15m, 7d; 24h unless given.")] = None,
    start: Annotated[
        datetime | None,
        typer.Option(
            "--from", formats=_TIMES, metavar="TIME", help="2026-03-28 or 2026-03-28T12:00, instead of --last."
        ),
    ] = None,
    end: Annotated[
        datetime | None, typer.Option("--to", formats=_TIMES, metavar="TIME", help="Now unless given.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="second … month, a duration such as 15m, or none; what fits a line unless given.")
    ] = None,
    zone: Annotated[str, typer.Option("--tz", help="Whose days, and of times without a zone.")] = "UTC",
    group_by: Annotated[list[str] | None, typer.Option(help="device_id, source or labels.NAME.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="labels.room=hall, device_id!=edge-1, or labels.room: it has one.")
    ] = None,
    output: Annotated[Literal["table", "csv", "json"], typer.Option("--format", help="Of the answer.")] = "table",
) -> None:
    """Ask the metrics store, with the course of each group as a line (on the cloud's machine).

    For example: primespark query cpu_percent --agg avg --agg p95 --last 7d --group-by device_id
    """
    from primespark.cli.query import Asked, show_query

    asked = Asked(
        metrics or [], aggregations or ["avg"], last, start, end, by, zone, group_by or [], where or []
    )  # fmt: skip
    show_query(_settings(), asked, output)


@store.command("restored")
def store_restored(
    why: Annotated[str, typer.Option(help="For the record.")] = "restored from a backup",
) -> None:
    """Say that the store was restored from a backup, before its services start: devices offer everything again."""
    from primespark.cli.restored import begin_epoch

    typer.echo(begin_epoch(_settings(), why))


@sync.command("status")
def sync_status(as_json: Json = False) -> None:
    """Show how the device here stands with its cloud, and what waits."""
    from primespark.cli.sync_status import show_sync

    show_sync(_settings(), as_json)


@sync.command("conflicts")
def sync_conflicts(
    include_resolved: Annotated[bool, typer.Option("--all", help="Those that are decided, too.")] = False,
    as_json: Json = False,
) -> None:
    """List documents that wait for somebody to decide between two versions."""
    from primespark.cli.conflicts import list_conflicts

    list_conflicts(_settings(), include_resolved, as_json)


@sync.command("resolve")
def sync_resolve(
    number: Annotated[int, typer.Argument(min=1, max=_MAX_SEQ, help="Of the conflict.")],
    winner: Annotated[str | None, typer.Option(help="`cloud`, or the device whose version shall stand.")] = None,
    value: Annotated[str | None, typer.Option(help="What shall stand instead: a JSON object, or @FILE.")] = None,
) -> None:
    """Decide a conflict; the decision travels to every device."""
    from primespark.cli.conflicts import resolve_conflict

    resolve_conflict(_settings(), number, winner, value)


@offline.command("status")
def offline_status(as_json: Json = False) -> None:
    """Show what waits for the cloud, by stream."""
    from primespark.cli.offline import show_status

    show_status(_settings(), as_json)


@offline.command("dead-letters")
def offline_dead_letters(as_json: Json = False) -> None:
    """List what the cloud refused for good."""
    from primespark.cli.offline import list_dead_letters

    list_dead_letters(_settings(), as_json)


@offline.command("show")
def offline_show(number: Annotated[int, typer.Argument(min=1, help="Of the dead letter.")]) -> None:
    """Print a dead letter with its record, as JSON."""
    from primespark.cli.offline import show_dead_letter

    show_dead_letter(_settings(), number)


@offline.command("replay")
def offline_replay(number: Annotated[int, typer.Argument(min=1, help="Of the dead letter.")]) -> None:
    """Send a dead letter once more, as a new fact."""
    from primespark.cli.offline import replay_dead_letter

    replay_dead_letter(_settings(), number)


@offline.command("discard")
def offline_discard(number: Annotated[int, typer.Argument(min=1, help="Of the dead letter.")]) -> None:
    """Drop a dead letter."""
    from primespark.cli.offline import discard_dead_letter

    discard_dead_letter(_settings(), number)


@device.command("token")
def device_token(
    uses: Annotated[int, typer.Option(min=1, max=10_000, help="How many devices may enrol with it.")] = 1,
    ttl: Annotated[str, typer.Option(help="How long it is valid: 90s, 15m, 1h, 7d.")] = "1h",
) -> None:
    """Print a new enrolment token; it is shown this once."""
    from primespark.cli.devices import make_token

    typer.echo(make_token(_settings(), uses, ttl))


@device.command("list")
def device_list(as_json: Json = False) -> None:
    """List the enrolled devices."""
    from primespark.cli.devices import list_devices

    list_devices(_settings(), as_json)


@device.command("forget")
def device_forget(device_id: str) -> None:
    """Revoke a device's key; its data stay."""
    from primespark.cli.devices import forget_device

    forget_device(_settings(), device_id)


@device_group.command("add")
def device_group_add(device_id: Annotated[str, typer.Argument(metavar="DEVICE")], group: str) -> None:
    """Make a device a member of a group: it reads the group's documents, and applies them over the fleet's."""
    from primespark.cli.devices import join_group

    join_group(_settings(), device_id, group)


@device_group.command("remove")
def device_group_remove(device_id: Annotated[str, typer.Argument(metavar="DEVICE")], group: str) -> None:
    """End a membership; the device drops the group's documents."""
    from primespark.cli.devices import leave_group

    leave_group(_settings(), device_id, group)


@device.command("rotate")
def device_rotate(device_id: str) -> None:
    """Give a device a new key, printed this once, for `key` in its device.key; the old one opens nothing more."""
    from primespark.cli.devices import rotate_device

    typer.echo(rotate_device(_settings(), device_id))


@device.command("command")
def device_command(
    device_id: str,
    name: Annotated[str, typer.Argument(help="Of the command; the device says which it knows and allows.")],
    argument: Annotated[list[str] | None, typer.Option(help="KEY=VALUE; the value is JSON, or else text.")] = None,
    expires: Annotated[str, typer.Option(help="Until when it may be run: 90s, 15m, 1h, 7d.")] = "1h",
    wait: Annotated[bool, typer.Option("--wait", help="Until it is answered, or expired.")] = False,
) -> None:
    """Tell a device to do something, once; print the command's id, and with --wait what it gave."""
    from primespark.cli.device_commands import send_command

    send_command(_settings(), device_id, name, argument or [], expires, wait)


@device.command("commands")
def device_commands(device_id: str, as_json: Json = False) -> None:
    """List what a device was told to do, and what came of it."""
    from primespark.cli.device_commands import list_commands

    list_commands(_settings(), device_id, as_json)


@models.command("list")
def models_list(as_json: Json = False) -> None:
    """List the models, their types, digests and whether they are here."""
    from primespark.cli.models import list_models

    list_models(as_json)


@models.command("fetch")
def models_fetch(name: str) -> None:
    """Fetch a model that does not ship with the package, and check its digest."""
    from primespark.cli.models import fetch_model

    fetch_model(name)


@models.command("hailo")
def models_hailo(
    as_json: Json = False,
    folder: Annotated[Path | None, typer.Option(help="Where to look, instead of the folder in the settings.")] = None,
) -> None:
    """List the HEF files for a Hailo chip, what each can serve, and whether it runs on the chip here."""
    from primespark.cli.hailo_models import list_hefs

    accelerator = _settings().edge.inference.accelerator
    list_hefs(folder or accelerator.models_folder, as_json, accelerator.system_root)


@models.command("publish")
def models_publish(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="An ONNX file.")],
    name: Annotated[str, typer.Option(help="What the model is asked for by: a-z, 0-9, `_`, `.` and `-`.")],
    model_type: Annotated[str, typer.Option("--type", help="classification, object_detection, pose or tabular.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            readable=True,
            help="Names of the classes, one a line, by class id; of a pose's points.",
        ),
    ] = None,
    golden: Annotated[
        tuple[Path, str] | None,
        typer.Option(
            metavar="IMAGE LABEL", help="An image of at most 48 KiB that must get this label before it serves."
        ),
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="One more than the highest desired unless given.")] = None,
    device_ids: Annotated[
        list[str] | None, typer.Option("--device", help="Who is to serve it; may be repeated. All unless given.")
    ] = None,
) -> None:
    """Sign your own ONNX model and deploy it to devices (on the cloud's machine)."""
    from primespark.cli.publication import Publication, publish

    publish(_settings(), Publication(file, name, model_type, labels, golden, version, device_ids or ()))


@models.command("withdraw")
def models_withdraw(
    name: Annotated[str, typer.Argument(help="Of a deployed model.")],
    device_ids: Annotated[
        list[str] | None, typer.Option("--device", help="Who is to drop it; may be repeated. All unless given.")
    ] = None,
) -> None:
    """Take a deployed model from devices (on the cloud's machine)."""
    from primespark.cli.publication import withdraw

    withdraw(_settings(), name, device_ids or ())


@models.command("deployed")
def models_deployed(as_json: Json = False) -> None:
    """Show where each deployed model is on each device, and why one was refused (on the cloud's machine)."""
    from primespark.cli.publication import list_deployed

    list_deployed(_settings(), as_json)


@config.command("show")
def config_show() -> None:
    """Print the settings in force as YAML; secrets are masked."""
    from primespark.cli.configuration import show

    show(_settings())


@config.command("check")
def config_check() -> None:
    """Check file and environment; say what is wrong, or that nothing is."""
    _settings()
    typer.echo("settings are valid")


def _settings() -> Settings:
    from primespark.core.settings import load_settings

    return load_settings(_State.config_file)


def _run_room(name: str, extra: str) -> None:
    from primespark.cli.services import run_room

    run_room(name, extra, _settings())


def main() -> None:
    """Entry point: one line of cause and one of remedy for every failure, exit status 1 (ours) or 2 (usage)."""
    try:
        status = app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except TyperException as error:
        sys.exit(_show_usage(error))
    except PrimeSparkError as error:
        _fail(error.message, error.remedy)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except ModuleNotFoundError as error:
        _fail(f"the Python package {error.name} is not installed", "primespark doctor names the extra that brings it")
    except Exception as error:  # noqa: BLE001 (the outermost place a command can fail)
        _fail(f"{type(error).__name__}: {error}", "run it again with -v for the traceback, and report it")


def _show_usage(error: TyperException) -> int:
    show = getattr(error, "show", None)
    if show is not None:
        show()
    return int(getattr(error, "exit_code", 2))


def _fail(cause: str, remedy: str) -> None:
    if _State.verbose:
        traceback.print_exc()
    typer.echo(f"error: {cause}", err=True)
    if remedy:
        typer.echo(f"  try: {remedy}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
