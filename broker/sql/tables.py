"""The tables in a service's own database, and how they come there.

===================  ==================================================================================
``broker_inbox``     what was handled: service, source and id of the event; when; a digest of its data
``broker_outbox``    what is to be published, encoded; with a reason, what never can be
``broker_lanes``     PostgreSQL: a row for each share of the outbox that one relay takes at a time
``broker_version``   the version of these tables
===================  ==================================================================================

``BROKER_DATABASE_SCHEMA`` puts them into a schema of PostgreSQL; it is read when this module is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    Uuid,
    event,
    func,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, UOWTransaction
from sqlalchemy.schema import CreateIndex, CreateSchema, CreateTable

from broker.envelope import Envelope, Story, encode
from broker.errors import ContractError, DatabaseUnusable
from broker.events import Event, id_of, subject_of
from broker.publisher import Publication, check_event, check_source
from broker.settings import SchemaSettings

SCHEMA = SchemaSettings().database_schema
VERSION = 1
LANES = 16
"""Shares of the outbox; as many relays at most work side by side on PostgreSQL."""
CHANNEL = "broker_outbox"
"""PostgreSQL's NOTIFY channel that wakes relays."""


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, aware and UTC in Python. SQLite keeps no time zone, so it is put on here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


metadata = MetaData(schema=SCHEMA)
inbox = Table(
    "broker_inbox",
    metadata,
    Column("service", String(100), primary_key=True),
    Column("source", String(255), primary_key=True),
    Column("event_id", Uuid, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("handled_at", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)
Index("broker_inbox_handled_at", inbox.c.service, inbox.c.handled_at)
outbox = Table(
    "broker_outbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("lane", SmallInteger, nullable=False),
    Column("subject_hash", BigInteger, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("source", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("correlation_id", Uuid, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),
    Column("added_at", UtcDateTime, nullable=False),
    Column("set_aside_at", UtcDateTime),
    Column("reason", Text),
    sqlite_autoincrement=True,
)
waiting = outbox.c.set_aside_at.is_(None)
for _index in (
    Index("broker_outbox_waiting", outbox.c.lane, outbox.c.id, postgresql_where=waiting, info={"only": "postgresql"}),
    Index("broker_outbox_waiting", outbox.c.id, sqlite_where=waiting, info={"only": "sqlite"}),
):
    _index.ddl_if(_index.info["only"])
lanes = Table("broker_lanes", metadata, Column("lane", SmallInteger, primary_key=True, autoincrement=False))
version = Table("broker_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

UPGRADES: dict[int, tuple[str, ...]] = {}
"""The statements that make a version of the next lower one, by version. The first version has none below it."""


class Base(DeclarativeBase):
    """Its registry holds `Outgoing` alone."""

    metadata = metadata


class Outgoing(Base):
    """An event to be published when the session's transaction is committed: a row of the outbox.

    ::

        session.add(Outgoing(OrderPlaced(...), source="web"))

    Works with any SQLAlchemy session, sync or async, on the database that holds the tables. A relay publishes it:
    that of a service with this database, or ``broker relay``.

    Args:
        event: what happened.
        source: who publishes: the name of the service or program.
        id: its id. Unsaid: the event object's own.
        correlation_id: the story it belongs to. Unsaid: that of the event being handled, if it is added to a handler's
            ``context.transaction``; else it begins one, under its own id.

    Raises:
        ContractError: it is not an event, cannot be written as JSON, or the source is empty or too long.
    """

    __table__ = outbox
    if TYPE_CHECKING:
        event_id: Mapped[UUID]

    def __init__(
        self,
        event: Event,
        *,
        source: str,
        id: UUID | None = None,  # noqa: A002
        correlation_id: UUID | None = None,
    ) -> None:
        check_event(event)
        check_source(source)
        self._publication = Publication(event, id or id_of(event), Story(correlation_id or id or id_of(event)))
        self._source = source
        self._begins = correlation_id is None
        super().__init__(**self._row())

    def caused_by(self, cause: Envelope) -> None:
        """Tell that another event caused this one, unless it was said which story it belongs to."""
        if self._begins:
            self._publication.story = Story(cause.story.correlation_id, cause.id, cause.story.traceparent)
            for name, value in self._row().items():
                setattr(self, name, value)

    def _row(self) -> dict[str, Any]:
        its, now = self._publication, datetime.now(UTC)
        try:
            body, _ = encode(its.event, event_id=its.id, source=self._source, time=now, story=its.story)
        except ValueError as error:
            name = its.event.__contract__.name
            raise ContractError(f"{name!r} {its.id} cannot be written as JSON: {error}") from None
        return row(its, self._source, body, now)


CAUSE = "broker_cause"
"""Under this name a handler's session knows the event it handles."""


ADDED = "broker_added"
"""Under this name a session knows that it has added events, until it commits."""


@event.listens_for(Session, "before_flush")
def _note_what_is_added(session: Session, context: UOWTransaction, instances: object) -> None:
    cause = session.info.get(CAUSE)
    for new in session.new:
        if isinstance(new, Outgoing):
            session.info[ADDED] = True
            if cause is not None:
                new.caused_by(cause)


def row(publication: Publication, source: str, body: bytes, now: datetime) -> dict[str, Any]:
    """An event as a row of the outbox."""
    event, event_id = publication.event, publication.id
    return {
        **place(str(subject_of(event) or event_id)),
        "event_id": event_id,
        "source": source,
        "name": event.__contract__.name,
        "key": event.__contract__.key,
        "correlation_id": publication.story.correlation_id,
        "body": body,
        "size": len(body),
        "added_at": now,
    }


def place(subject: str) -> dict[str, int]:
    """Where in the outbox the events about one subject stand: one lane, in the order they were added."""
    number = int.from_bytes(hashlib.blake2b(subject.encode("utf-8", "replace"), digest_size=8).digest(), signed=True)
    return {"lane": number % LANES, "subject_hash": number}


def known_as(source: str) -> str:
    """A source as the inbox knows it. One from elsewhere may be of any length, or hold what PostgreSQL does not."""
    plain = source.encode("utf-8", "replace")
    if len(plain) <= 255 and "\0" not in source and plain.decode() == source:
        return source
    return f"sha256:{hashlib.sha256(source.encode('utf-8', 'replace')).hexdigest()}"


# -- making them ---------------------------------------------------------------------------------------------------


def statements(dialect: Dialect) -> list[str]:
    """All that makes the tables, for a person to read or a migration to run."""
    parts: list[Any] = [CreateSchema(SCHEMA, if_not_exists=True)] if SCHEMA else []
    for table in metadata.sorted_tables:
        parts.append(CreateTable(table, if_not_exists=True))
        parts += [
            CreateIndex(index, if_not_exists=True)
            for index in sorted(table.indexes, key=lambda it: it.name or "")
            if index.info.get("only") in (None, dialect.name)
        ]
    made = [str(part.compile(dialect=dialect)).strip() for part in parts]
    for number in range(LANES):
        made.append(f"INSERT INTO {lanes.fullname} (lane) VALUES ({number}) ON CONFLICT DO NOTHING")  # noqa: S608
    if dialect.name == "postgresql":
        made += _waking(outbox.fullname)
    made.append(f"INSERT INTO {version.fullname} (version) VALUES ({VERSION}) ON CONFLICT DO NOTHING")  # noqa: S608
    return made


def _waking(table: str) -> Iterable[str]:
    """PostgreSQL tells relays of every insert, whoever made it."""
    function = f"{f'{SCHEMA}.' if SCHEMA else ''}broker_wake_relays"
    yield (
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_notify('{CHANNEL}', ''); RETURN NULL; END $$"
    )
    yield f"DROP TRIGGER IF EXISTS broker_wake_relays ON {table}"
    yield f"CREATE TRIGGER broker_wake_relays AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {function}()"


DIALECTS: Mapping[str, type[Dialect]] = {"postgresql": postgresql.dialect, "sqlite": sqlite.dialect}


def found_version(connection: Connection) -> int | None:
    """The version of the tables in a database; None if there are none."""
    if not inspect(connection).has_table(version.name, schema=SCHEMA):
        return None
    found: int | None = connection.execute(select(func.max(version.c.version))).scalar()
    return found


def make(connection: Connection) -> int | None:
    """Create the tables, or bring older ones up to date; returns the version found. Two at once do no harm.

    Raises:
        DatabaseUnusable: they are newer than this package.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('broker_version'))"))
    found = found_version(connection)
    if found is None:
        for statement in statements(connection.dialect):
            connection.exec_driver_sql(statement)
        return None
    check_version(found, upgradable=True)
    for step in range(found + 1, VERSION + 1):
        for statement in UPGRADES[step]:
            connection.exec_driver_sql(statement)
        connection.execute(update(version).values(version=step))
    return found


def check_version(found: int | None, *, upgradable: bool = False) -> None:
    """Refuse tables that this package cannot work with.

    Raises:
        DatabaseUnusable: with what helps.
    """
    if found is None:
        raise DatabaseUnusable("its tables of broker are missing. Create them: broker database init")
    if found < 1:
        raise DatabaseUnusable(f"its table {version.fullname} says {found}, a version that there never was")
    if found > VERSION:
        raise DatabaseUnusable(
            f"its tables of broker are of version {found}; this package knows {VERSION}. "
            "Install a newer business-events"
        )
    if found < VERSION and not upgradable:
        raise DatabaseUnusable(
            f"its tables of broker are of version {found}, this package needs {VERSION}. "
            "Upgrade them: broker database init"
        )
