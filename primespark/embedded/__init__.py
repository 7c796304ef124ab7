"""Everything on one machine: PostgreSQL, Valkey, a broker, Dagster and our own services under one supervisor."""
