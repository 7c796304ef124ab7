"""PostgreSQL: schema, migrations, the gate's transaction, rollups, outbox, blobs; one dialect for every edition.

Functions take an open `Connection` and leave the transaction to their caller.
"""
