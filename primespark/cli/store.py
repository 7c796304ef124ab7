"""The store as a command reaches it: by settings, else the one `primespark up` runs here."""

from __future__ import annotations

from sqlalchemy import Engine

from primespark.core.paths import home
from primespark.core.settings import Settings
from primespark.embedded.stack import running_on
from primespark.errors import ConfigurationError, UnavailableError
from primespark.store.database import connect


def connect_store(settings: Settings) -> Engine:
    """An engine on the store.

    Raises:
        ConfigurationError: No URL is set and `up` does not run.
    """
    return connect(store_url(settings))


def store_url(settings: Settings) -> str:
    """The store's URL; `up` leaves its own in a private file while it runs."""
    try:
        return settings.require_store_url()
    except ConfigurationError:
        if running_on(home()) is None:
            raise
        try:
            return (home() / "run" / "store.url").read_text(encoding="utf-8").strip()
        except OSError:
            raise UnavailableError(
                "the store of `primespark up` is not there yet", remedy="try again in a moment"
            ) from None
