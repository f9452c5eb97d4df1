"""Alembic's entry point. It runs inside the keeper's own transaction: a migration happens whole or not at all."""

from alembic import context

from stepdown.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True, render_as_batch=True
)
context.run_migrations()
