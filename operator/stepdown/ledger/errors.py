"""What can go wrong with a ledger, as a tree. Everything the ledger raises is here; `sync`, `local` and `cli` translate it.

LedgerError
├── LedgerMissing       no file, or traces of one that is gone: never silently a new one
├── LedgerCorrupt       truncated, or its pages do not add up
├── LedgerForeign       a file, but not a ledger
├── LedgerNewer         written by a newer Stepdown
├── LedgerOld           needs a migration that a read-only opener may not make
├── LedgerMoved         imported into another, which is the ledger now
├── LedgerBusy          another process keeps it
├── LedgerFenced        another process has taken the epoch since: whoever gets this leads no more
├── LedgerFull          the disk is full
├── LedgerReadOnly      the file or its filesystem cannot be written
├── LedgerUnavailable   any other failure of the disk or the database
│   └── LedgerInterrupted   the database gave the transaction up, or the connection broke: the next may do
└── LedgerRefused       the request itself is not acceptable; the ledger is well
"""


class LedgerError(Exception):
    """The ledger did not do what it was asked; nothing of it has happened, unless it says that it may have."""


class LedgerMissing(LedgerError):
    """There is no ledger here, or there was one and its file is gone."""


class LedgerCorrupt(LedgerError):
    """The file is damaged."""


class LedgerForeign(LedgerError):
    """The file is not a Stepdown ledger."""


class LedgerNewer(LedgerError):
    """The file's schema is newer than this build knows."""


class LedgerOld(LedgerError):
    """The file's schema is older than this build needs, and the opener only reads."""


class LedgerMoved(LedgerError):
    """It is kept elsewhere now."""


class LedgerBusy(LedgerError):
    """Another keeper has the ledger."""


class LedgerFenced(LedgerError):
    """Another keeper has taken the epoch: this one may not write any more."""


class LedgerFull(LedgerError):
    """No room on the disk: nothing can be granted."""


class LedgerReadOnly(LedgerError):
    """The ledger cannot be written."""


class LedgerUnavailable(LedgerError):
    """The disk or the database failed."""


class LedgerInterrupted(LedgerUnavailable):
    """A conflict with another transaction, a lost connection, a database that restarts. Tried again a few times already."""

    def __init__(self, message: str, *, unsure: bool = False) -> None:
        """`unsure`: it broke while it was being committed, so that it may have happened."""
        super().__init__(message)
        self.unsure = unsure


class LedgerRefused(LedgerError):
    """A message or a statement that cannot be true, such as a negative sum."""
