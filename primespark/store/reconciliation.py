"""Where what a device wrote meets what the cloud holds of a document.

The version vectors decide first. `desired` and `reported` have one owner each, so only the rest can be in conflict:
where the device wrote it without having seen the last write of another replica to it. Then the strategy of the key
decides, and the version that lost goes into the conflict log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from primespark.core.clock import Timestamp, wall_clock_ms
from primespark.core.values import storable_json
from primespark.errors import InvalidInputError
from primespark.store import conflicts, documents, server
from primespark.store.documents import CLOUD, Stored
from primespark.store.groups import FLEET
from primespark.sync.documents import (
    MAX_LEAVES,
    Document,
    changed_pointers,
    check_value,
    flatten,
    join,
    merge,
    unflatten,
)
from primespark.sync.records import DocumentChange, ResultStatus
from primespark.sync.regions import Region, assemble, region_of, restrict
from primespark.sync.strategies import Strategy, StrategyRule, resolve, strategy_of

# A device's clock may run ahead this far; its stamps beyond are replaced by the cloud's.
MAX_CLOCK_AHEAD_MS = 60_000


@dataclass(frozen=True, slots=True)
class DocumentRules:
    """What decides over documents.

    Attributes:
        strategies: For concurrent versions, by class and prefix of the key.
        fleet_writable: Prefixes of keys whose documents of the fleet devices may write.
    """

    strategies: Sequence[StrategyRule] = ()
    fleet_writable: Sequence[str] = ()

    def lets_write(self, device_id: str, scope: str, key: str) -> bool:
        """Whether a device may write a document at all."""
        return scope == device_id or (scope == FLEET and any(map(key.startswith, self.fleet_writable)))


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What became of a document a device pushed; `change` is the state that stands, where the device has another."""

    status: ResultStatus
    code: str | None = None
    change: DocumentChange | None = None


@dataclass(frozen=True, slots=True)
class _Pushed:
    """What a device says of a document, stamped anew where its clock runs ahead.

    Attributes:
        whole: All of it; leaves that the cloud knows otherwise count as the device's.
        own: The leaves that bear the device's timestamps: the cloud is the hub, what others wrote came from here.
        counter: Of the write.
        shared_hlc: Of its last own leaf that both sides may write; empty without one.
    """

    whole: Document
    own: Document
    counter: int
    shared_hlc: str
    is_restamped: bool


def reconcile(connection: Connection, device_id: str, change: DocumentChange, rules: DocumentRules) -> Reconciled:
    """Take what `device_id` wrote, once, under the lock of the log until commit."""
    if not rules.lets_write(device_id, change.scope, change.key):
        return Reconciled(ResultStatus.REJECTED, "not_owner")
    known = documents.read_stored(connection, change.scope, change.key, for_update=True)
    if change.vv.get(device_id, 0) <= known.document.vv.get(device_id, 0):
        return Reconciled(ResultStatus.DUPLICATE)
    try:
        pushed = _check(connection, device_id, change, known.document)
    except InvalidInputError as error:
        return Reconciled(ResultStatus.REJECTED, error.code)
    allowed = {Region.SHARED} if change.scope == FLEET else {Region.SHARED, Region.REPORTED}
    if any(region_of(pointer) not in allowed for pointer in pushed.own.leaf_hlc):
        return Reconciled(ResultStatus.REJECTED, "not_owner")
    wrote_shared = pushed.shared_hlc > _last_shared(known, device_id)
    judged = _judge(connection, device_id, change, rules, known, pushed) if wrote_shared else _Judged(_shared(known))
    reported = merge(restrict(known.document, Region.REPORTED), restrict(pushed.own, Region.REPORTED))
    after = assemble(
        [restrict(known.document, Region.DESIRED), reported, judged.shared],
        join(known.document.vv, {device_id: pushed.counter}),
        max(known.document.hlc, pushed.whole.hlc),
    )
    # Stamps of removed leaves stay, so they are bounded here too.
    if len(after.leaf_hlc) > MAX_LEAVES:
        return Reconciled(ResultStatus.REJECTED, "document_too_large")
    for version, strategy, winner in judged.lost:
        version = replace(version, vv=dict(change.vv), written_hlc=pushed.shared_hlc)
        conflicts.note(connection, change, strategy, device_id, _shared(known), version, winner)
    writer = device_id if wrote_shared else None
    stands = documents.store_write(
        connection, change.scope, change.key, known, after, writer, pushed.counter, pushed.shared_hlc
    )
    status = _status(change, after, pushed.is_restamped, judged.is_frozen)
    code = "record_frozen" if judged.is_frozen else None
    return Reconciled(status, code, None if status is ResultStatus.OK else stands)


@dataclass(frozen=True, slots=True)
class _Judged:
    """What stands of the part that both sides may write, and what goes into the conflict log for it."""

    shared: Document
    lost: list[tuple[Document, Strategy, str | None]] = field(default_factory=list)
    is_frozen: bool = False


def _judge(
    connection: Connection,
    device_id: str,
    change: DocumentChange,
    rules: DocumentRules,
    known: Stored,
    pushed: _Pushed,
) -> _Judged:
    strategy = strategy_of(rules.strategies, change.data_class, change.key)
    ours, theirs = _shared(known), replace(restrict(pushed.whole, Region.SHARED), written_hlc=pushed.shared_hlc)
    is_frozen = documents.is_frozen(connection, change.scope, change.key)
    is_concurrent = any(
        write.counter > change.vv.get(replica, 0)
        for replica, write in known.shared_writes.items()
        if replica != device_id
    )
    if is_frozen or (is_concurrent and strategy is Strategy.MANUAL and ours.value != theirs.value):
        return _Judged(ours, [(theirs, Strategy.MANUAL, None)], is_frozen=True)
    if strategy is Strategy.MERGE:
        own = restrict(pushed.own, Region.SHARED)
        stands = merge(ours, own)
        lost = is_concurrent and _overlap(device_id, ours, own)
        return _Judged(stands, [(own, strategy, strategy.value)] if lost else [])
    if not is_concurrent:
        return _Judged(theirs)
    stands = resolve(strategy, ours, theirs)
    if ours.value == theirs.value:
        return _Judged(stands)
    winner = CLOUD if stands.value == ours.value else device_id
    return _Judged(stands, [(theirs, strategy, winner)])


def _overlap(device_id: str, ours: Document, own: Document) -> bool:
    """Whether both wrote one leaf differently."""
    both = {p for p, stamp in ours.leaf_hlc.items() if p in own.leaf_hlc and _replica(stamp) != device_id}
    return bool(both & changed_pointers(ours, own))


def _check(connection: Connection, device_id: str, change: DocumentChange, known: Document) -> _Pushed:
    """What a device pushed, checked.

    Raises:
        InvalidInputError: Not a document.
    """
    value = {} if change.op == "del" else change.value
    if not isinstance(value, dict) or len(change.leaf_hlc) > MAX_LEAVES:
        raise InvalidInputError("not an object of at most 10,000 leaves", code="bad_document")
    check_value(value)
    storable_json(change.leaf_hlc)
    leaves = flatten(value)
    if not leaves.keys() <= change.leaf_hlc.keys():
        raise InvalidInputError("a leaf without a timestamp", code="bad_document")
    stamps = {pointer: Timestamp.parse(hlc) for pointer, hlc in change.leaf_hlc.items()}
    own = {pointer: stamp for pointer, stamp in stamps.items() if stamp.replica == device_id}
    if not own:
        raise InvalidInputError("no leaf has a timestamp of the device", code="bad_document")
    written_at = max([*own.values(), *([told] if (told := Timestamp.parse(change.hlc)).replica == device_id else [])])
    latest = wall_clock_ms() + MAX_CLOCK_AHEAD_MS
    seen = max((stamp for stamp in (*own.values(), written_at) if stamp.unix_ms <= latest), default=None)
    here = Timestamp.parse(server.stamp_after(connection, seen))
    restamped = str(Timestamp(here.unix_ms, here.counter, device_id))

    def stamped(stamp: Timestamp) -> str:
        return restamped if stamp.unix_ms > latest else str(stamp)

    own_hlc = {pointer: stamped(stamp) for pointer, stamp in own.items()}
    written_hlc = stamped(written_at)
    foreign = stamps.keys() - own.keys()
    kept = {p for p in foreign if known.leaf_hlc.get(p) == change.leaf_hlc[p]} - changed_pointers(
        known, Document(value)
    )
    whole_hlc = {p: change.leaf_hlc[p] if p in kept else written_hlc for p in foreign} | own_hlc
    written = unflatten({pointer: leaves[pointer] for pointer in own if pointer in leaves})
    return _Pushed(
        whole=Document(value, dict(change.vv), whole_hlc, written_hlc),
        own=Document(written, dict(change.vv), own_hlc, written_hlc),
        counter=change.vv[device_id],
        shared_hlc=max((hlc for p, hlc in own_hlc.items() if region_of(p) is Region.SHARED), default=""),
        is_restamped=any(stamp.unix_ms > latest for stamp in own.values()),
    )


def _shared(known: Stored) -> Document:
    """What both sides may write of it, as of the last write to that."""
    last = max((write.hlc for write in known.shared_writes.values()), default="")
    return replace(restrict(known.document, Region.SHARED), vv=dict(known.document.vv), written_hlc=last)


def _last_shared(known: Stored, device_id: str) -> str:
    write = known.shared_writes.get(device_id)
    return write.hlc if write else ""


def _replica(hlc: str) -> str:
    return hlc.split("-", 2)[2]


def _status(change: DocumentChange, stands: Document, is_restamped: bool, is_frozen: bool) -> ResultStatus:
    if is_frozen:
        return ResultStatus.CONFLICT
    if is_restamped:
        return ResultStatus.RESTAMPED
    pushed = Document({} if change.op == "del" else change.value)
    return ResultStatus.MERGED if changed_pointers(pushed, stands) else ResultStatus.OK
