"""A ledger and staging tables with years in them: orders in every state, in the proportions of a fleet at work.

Everything is written by the database itself, with constraints checked afterwards by building the indexes again.
"""

from sqlalchemy import Connection, text

from erp.port import Erp
from ledger.connection import Ledger
from ledger.migrate import migrate

SYSTEMS = ("cloudsuite", "doshii", "partner", "storeganise", "tastyigniter")
BIG = (
    "orders",
    "steps",
    "attempts",
    "documents",
    "events",
    "signals",
    "erp_order",
    "erp_order_line",
    "erp_event",
)
"""The tables that grow with the number of orders."""
IN_FLIGHT = 64
"""Queued and running orders of each system."""

# Of a thousand orders: 8 are ready, 3 wait for their next try, 20 for a signal, 3 for a person, 1 is in doubt, 10 ended
# otherwise, the rest is done. 7919 is prime: neighbours are in different states.
_FILL = (
    """
    CREATE TEMPORARY TABLE born AS
    SELECT id, id::text AS external_id, system,
      CASE system WHEN 'doshii' THEN 'store-' || id / 5 % 5 ELSE 'default' END AS account,
      CASE
        WHEN part < 8 THEN 'ready' WHEN part < 11 THEN 'retrying' WHEN part < 31 THEN 'waiting'
        WHEN part < 34 THEN 'parked' WHEN part = 34 THEN 'in_doubt' WHEN part < 40 THEN 'cancelled'
        WHEN part < 45 THEN 'ignored' ELSE 'done'
      END AS state,
      CASE WHEN part < 4 THEN 0 WHEN part < 8 THEN 1 WHEN part < 11 THEN 2 WHEN part < 28 THEN 5
        WHEN part < 31 THEN 3 WHEN part < 35 THEN 1 ELSE 6 END AS position,
      now() - (:orders - id) * interval '30 seconds' AS at
    FROM (
      SELECT id, (ARRAY['cloudsuite', 'doshii', 'partner', 'storeganise', 'tastyigniter'])[1 + id % 5] AS system,
        id / 5 % 1000 * 7919 % 1000 AS part
      FROM generate_series(1, CAST(:orders AS bigint)) AS id
    ) AS parts
    """,
    """
    CREATE TEMPORARY TABLE planned AS
    SELECT system, position, replace(name, '$', system) AS name, awaits
    FROM unnest(ARRAY['cloudsuite', 'doshii', 'partner', 'storeganise', 'tastyigniter']) AS system, (VALUES
      (0, '$.fetch', NULL), (1, 'erp.order', NULL), (2, '$.state', NULL), (3, '$.number', 'numbered'),
      (4, '$.lines', NULL), (5, '$.shipment', 'shipped')) AS step (position, name, awaits)
    """,
    "ANALYZE born",
    "ANALYZE planned",
    """
    INSERT INTO orders (system, account, external_id, reference, state, position, step, lane, awaits, signalled,
      tries, failures, wake_at, fence, claimed_at, error, facts, version, created_at, updated_at)
    SELECT system, account, external_id, 'R-' || id, state, position, name,
      CASE name WHEN 'erp.order' THEN 'erp' ELSE system || ':' || account END, awaits,
      CASE WHEN position > 5 THEN 'numbered|shipped|' WHEN position > 3 THEN 'numbered|' ELSE '' END,
      (state IN ('retrying', 'parked', 'in_doubt'))::int, (state = 'retrying')::int,
      CASE WHEN state = 'ready' THEN at WHEN state = 'retrying' THEN now() + (id % 200 - 100) * interval '1 second'
        WHEN state = 'waiting' AND id % 2 = 0 THEN now() + (id % 900) * interval '1 second' END,
      position, CASE WHEN position > 0 THEN at END,
      CASE WHEN state IN ('retrying', 'parked', 'in_doubt') THEN 'the remote answered 500: something is wrong' END,
      '{"erp_number": "SO-' || id || '", "erp_lines": {"1": 10, "2": 20}}', 2 * position, at, at
    FROM born LEFT JOIN planned USING (system, position) ORDER BY id
    """,
    """
    INSERT INTO steps (order_id, position, name, awaits)
    SELECT id, planned.position, name, awaits FROM born JOIN planned USING (system) ORDER BY id
    """,
    """
    INSERT INTO attempts (order_id, position, step, number, outcome, worker, started_at, finished_at)
    SELECT id, planned.position, name, 1, 'done', 'host:1:0a1b2c3d', at, at
    FROM born JOIN planned USING (system) WHERE planned.position < born.position ORDER BY id
    """,
    """
    INSERT INTO documents (order_id, raw, document, updated_at)
    SELECT id, '{"id": ' || id || ', "text": "' || repeat('as it came ', 40) || '"}',
      '{"reference": "R-' || id || '", "notes": "' || repeat('as we say it ', 20) || '"}', at
    FROM born WHERE position > 0 ORDER BY id
    """,
    """
    INSERT INTO events (system, account, dedupe_key, body_hash, kind, external_id, body, problem, received_at)
    SELECT system, account, 'row:' || id, md5(id::text) || md5(id::text), 'row', external_id,
      '{"id": ' || id || ', "text": "' || repeat('a webhook ', 20) || '"}',
      CASE WHEN id % 10000 = 0 THEN 'nobody knows what this means' END, at
    FROM born ORDER BY id
    """,
    """
    INSERT INTO signals (order_id, name, source, received_at)
    SELECT id, name, 'erp:' || 2 * id + place, at
    FROM born JOIN (VALUES (0, 3, 'numbered'), (1, 5, 'shipped')) AS told (place, after, name) ON position > after
    ORDER BY id
    """,
    """
    INSERT INTO erp_order (external_reference, system, account, external_id, reference, stage, ship_to, document,
      created_at, updated_at, taken_at)
    SELECT system || ':' || account || ':' || external_id, system, account, external_id, 'R-' || id, 'confirmed', '{}',
      '{"reference": "R-' || id || '"}', at, at, at
    FROM born WHERE position > 1 ORDER BY id
    """,
    """
    INSERT INTO erp_order_line (external_reference, line_key, position, product, description, quantity)
    SELECT system || ':' || account || ':' || external_id, line::text, line, 'CHAIR-01', 'Desk chair, black', 2
    FROM born, generate_series(1, 2) AS line WHERE born.position > 1 ORDER BY id
    """,
    """
    INSERT INTO erp_event (external_reference, kind, data, created_at)
    SELECT system || ':' || account || ':' || external_id, name, '{"order_number": "SO-' || id || '"}', at
    FROM born JOIN (VALUES (3, 'numbered'), (5, 'shipped')) AS told (after, name) ON position > after ORDER BY id
    """,
    """
    UPDATE orders SET state = CASE WHEN rank <= :in_flight - 16 THEN 'queued' ELSE 'running' END,
      worker = CASE WHEN rank > :in_flight - 16 THEN 'host:1:0a1b2c3d' END, wake_at = now() + interval '10 minutes',
      claimed_at = now()
    FROM (SELECT id, row_number() OVER (PARTITION BY system) AS rank FROM orders WHERE state = 'ready') AS ranked
    WHERE ranked.id = orders.id AND rank <= :in_flight
    """,
    """
    INSERT INTO cursors (name, value, updated_at)
    SELECT 'erp.events', '{"high":' || max(id) || ',"gaps":[]}', now() FROM erp_event
    """,
    "INSERT INTO workers (name, started_at, seen_at) VALUES ('host:1:0a1b2c3d', now(), now() + interval '1 day')",
)

# Those that no constraint needs; the primary keys and unique constraints stay and are checked row by row.
_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
WHERE schemaname = current_schema() AND tablename = ANY(:tables)
  AND indexname NOT IN (SELECT conname FROM pg_constraint)
"""


def fill(ledger: Ledger, erp: Erp, orders: int) -> None:
    """Make the tables in an empty PostgreSQL database and put so many orders into them, with what belongs to them."""
    migrate(ledger)
    erp.prepare()
    with ledger.reading() as connection:
        connection.execute(text("SET synchronous_commit = off"))
        connection.execute(text("SET session_replication_role = replica"))  # the foreign keys are right by making
        connection.execute(text("SET maintenance_work_mem = '512MB'"))
        indexes = connection.execute(text(_INDEXES), {"tables": list(BIG)}).all()
        _run(connection, *(f"DROP INDEX {index.indexname}" for index in indexes))
        for statement in _FILL:
            names = {name: value for name, value in _values(orders).items() if f":{name}" in statement}
            connection.execute(text(statement), names)
        _run(connection, *(index.indexdef for index in indexes))
        _run(connection, "VACUUM ANALYZE", "CHECKPOINT", "RESET ALL", "DROP TABLE born, planned")


def _values(orders: int) -> dict[str, int]:
    return {"orders": orders, "in_flight": IN_FLIGHT}


def _run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)
