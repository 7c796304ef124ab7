"""Alembic's entry: runs on the connection `database.migrate` hands over."""

from __future__ import annotations

from alembic import context

from primespark.store.schema import SCHEMAS, metadata


def run() -> None:
    """Run the migrations inside one transaction."""
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_schemas=True,
        include_name=lambda name, kind, _parents: kind != "schema" or name in SCHEMAS,
        version_table_schema="public",
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
