"""The ledger's tables, for SQLite and PostgreSQL: no type or constraint here that only one of them has.

`create` makes them, `migrations/` brings older files here (a test compares the two), `store.py`, `traffic.py` and
`binding.py` read and write them. Integers are 64 bits and nano-USD unless a name says otherwise.
Names of routes, models and instances are numbers here (`names`, `instances`): a counter row is a few dozen bytes.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

REVISIONS = ("0001", "0002", "0003", "0004")
"""Every schema this build can bring up to date, oldest first; the last is what it works on."""

metadata = MetaData()

Key = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only where the type is exactly INTEGER."""

ZERO, NOTHING = text("0"), text("''")
"""Of columns that came later: a build of the schema before them may insert rows without."""

version = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))

meta = Table("meta", metadata, Column("name", String(64), primary_key=True), Column("value", Text, nullable=False))
"""`epoch` is always there: whoever writes looks at it first (`epoch`). `oldest`: see OLDEST (`migrate`)."""

names = Table(
    "names",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", String(512), nullable=False, unique=True),
)
"""Routes (`namespace/name`) and models."""

instances = Table(
    "instances",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("fleet", String(512), nullable=False),
    Column("state", String(8), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("first_s", Float, nullable=False),
    Column("last_s", Float, nullable=False),
    Column("longest_s", Float, nullable=False),
    Column("horizon_s", Float, nullable=False),
    Column("acked", Text, nullable=False),
    Column("born", BigInteger, nullable=False, server_default=ZERO),
    Column("unheard", Integer, nullable=False, server_default=ZERO),
    Column("pod", String(253), nullable=False, server_default=NOTHING),
    Column("pod_uid", String(64), nullable=False, server_default=NOTHING),
    Index("instances_by_state", "state"),
    Index("instances_by_pod", "pod_uid"),
)
"""`state`: open, lost or closed (a tombstone). `acked`: JSON, by shard the newest binding revision that the instance obeys.
`born`: the number under which the witness knows it; 0: it has not been granted anything under a witness, -1: not here.
`unheard`: flags of `terms`: what this ledger knows of the instance may be older than what was granted to it.
`pod` and `pod_uid`: in which pod it runs, or may still run though it cannot be heard; empty: in none, or it is not known. A
pod is that of one instance, the last that spoke from it.
Row 0 is nobody: what closed instances have left behind."""

accounts = Table(
    "accounts",
    metadata,
    Column("id", Key, primary_key=True),
    Column("name", String(512), nullable=False, unique=True),
    Column("budget", String(512), nullable=False),
    Column("start_s", BigInteger, nullable=False),
    Column("end_s", BigInteger, nullable=False),
    Column("limit_nusd", BigInteger, nullable=False),
    Column("hard", Boolean, nullable=False),
    Column("opening", BigInteger, nullable=False),
    Column("closed_consumed", BigInteger, nullable=False),
    Column("closed_estimated", BigInteger, nullable=False),
    Column("closed_excess", BigInteger, nullable=False),
    Column("closed_unmetered", BigInteger, nullable=False),
    Column("awaited", BigInteger, nullable=False, server_default=ZERO),
    Column("unaccounted", BigInteger, nullable=False, server_default=ZERO),
)
"""`opening` is the sum of the account's openings; `closed_…` is what closed instances consumed;
`closed_unmetered` the part that no counter tells of: stated by an administrator, or in flight at the closing.
`awaited` and `unaccounted` (see `terms`): what the witness says may have been granted beyond what this ledger knows."""

leases = Table(
    "leases",
    metadata,
    Column("account", ForeignKey("accounts.id"), primary_key=True, autoincrement=False),
    Column("instance", ForeignKey("instances.id"), primary_key=True, autoincrement=False),
    Column("granted", BigInteger, nullable=False),
    Column("returned", BigInteger, nullable=False),
    Column("consumed", BigInteger, nullable=False),
    Column("estimated", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("excess", BigInteger, nullable=False),
    Column("want", BigInteger, nullable=False),
    Index("leases_by_instance", "instance"),
    sqlite_with_rowid=False,
)
"""Of instances that are open or lost; a closed one's is folded into its account."""

tickets = Table(
    "tickets",
    metadata,
    Column("instance", ForeignKey("instances.id"), primary_key=True, autoincrement=False),
    Column("ask", BigInteger, primary_key=True, autoincrement=False),
    Column("rung", Integer, nullable=False),
    sqlite_with_rowid=False,
)
"""Granted asks that the instance still repeats."""

bindings = Table(
    "bindings",
    metadata,
    Column("account", ForeignKey("accounts.id"), primary_key=True, autoincrement=False),
    Column("route", ForeignKey("names.id"), primary_key=True, autoincrement=False),
    Column("shard", Integer, nullable=False),
    Column("bound", Boolean, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Index("bindings_by_route", "route"),
    sqlite_with_rowid=False,
)
"""Which routes an account holds, or has held (`bound` false). `revision`: of the change that bound it last."""

openings = Table(
    "openings",
    metadata,
    Column("account", ForeignKey("accounts.id"), primary_key=True, autoincrement=False),
    Column("route", ForeignKey("names.id"), primary_key=True, autoincrement=False),
    Column("instance", ForeignKey("instances.id"), primary_key=True, autoincrement=False),
    Column("opening", BigInteger, nullable=False),
    Column("seen", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Spend that a lease has not charged, since the instance did not obey the binding yet. `seen`: up to which cost of the
route's counters has been looked at."""

counters = Table(
    "counters",
    metadata,
    Column("route", ForeignKey("names.id"), primary_key=True, autoincrement=False),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("instance", ForeignKey("instances.id"), primary_key=True, autoincrement=False),
    Column("model", ForeignKey("names.id"), primary_key=True, autoincrement=False),
    Column("request_class", Integer, primary_key=True, autoincrement=False),
    Column("requests", BigInteger, nullable=False),
    Column("successes", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_nusd", BigInteger, nullable=False),
    Column("estimated_nusd", BigInteger, nullable=False),
    Column("unpriced", BigInteger, nullable=False),
    Index("counters_by_instance", "instance", "route"),
    sqlite_with_rowid=False,
)
"""`request_class` is an index into `model.config.CLASSES`."""

overruns = Table(
    "overruns",
    metadata,
    Column("route", ForeignKey("names.id"), primary_key=True, autoincrement=False),
    Column("model", ForeignKey("names.id"), primary_key=True, autoincrement=False),
    Column("day", Integer, nullable=False),
    Column("largest", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Where one request has cost more than its worst case: by how much at most, and the last UTC day on which that was seen."""

purchase_orders = Table(
    "purchase_orders",
    metadata,
    Column("route", ForeignKey("names.id"), primary_key=True, autoincrement=False),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("reference", String(63), nullable=False),
    sqlite_with_rowid=False,
)
"""What a route's spend is booked under from that UTC day on. It outlives the route: a statement is made after the month."""

accepted_specs = Table(
    "accepted_specs",
    metadata,
    Column("uid", String(512), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("spec", Text, nullable=False),
)
"""The last accepted spec of each object: what is in force while an object is invalid."""

FIRST_TABLES = frozenset({"alembic_version", "meta", "names", "instances", "accounts", "leases", "counters"})
"""Some of what every ledger has, however old."""

OLDEST = "0002"
"""The oldest schema whose builds can work on the newest: a release only adds to it, so that `helm rollback` works."""

FIRST_META = ({"name": "epoch", "value": "0"}, {"name": "oldest", "value": OLDEST})

NOBODY = {
    "id": 0,
    "name": "",
    "fleet": "",
    "state": "closed",
    "seq": 0,
    "first_s": 0.0,
    "last_s": 0.0,
    "longest_s": 0.0,
    "horizon_s": 0.0,
    "acked": "{}",
}


def create(connection: Connection) -> None:
    """The newest schema, with row 0 of the instances, nobody, and an epoch that nobody has taken."""
    metadata.create_all(connection)
    connection.execute(version.insert(), {"version_num": REVISIONS[-1]})
    connection.execute(instances.insert(), NOBODY)
    connection.execute(meta.insert(), FIRST_META)
