"""The one Alembic history."""
