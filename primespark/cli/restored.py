"""`primespark store restored`: the cloud begins a new life after a backup."""

from __future__ import annotations

from primespark.cli.store import connect_store
from primespark.core.clock import utc_now
from primespark.core.settings import Settings
from primespark.core.values import check_text
from primespark.store import database, server
from primespark.store.database import available

_MAX_WHY = 500


def begin_epoch(settings: Settings, why: str) -> str:
    """Begin a new epoch of the cloud; what to tell who asked for it.

    Raises:
        InvalidInputError: The reason cannot be kept.
    """
    check_text(why)
    engine = connect_store(settings)
    # The backup may be of an older version.
    database.migrate(engine)
    with available(), engine.begin() as connection:
        epoch = server.begin_epoch(connection, utc_now(), why[:_MAX_WHY])
    return f"the cloud is in epoch {epoch}; each device offers what it has when it next reaches it"
