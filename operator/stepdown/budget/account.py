"""What a budget's account is, and how much of it is used: the words that the ledger, the plan and the status share.

An account is one period of one budget (docs/design.md, SpendBudget). The ledger holds accounts, the plan binds routes to
them, the status shows them; this is the frozen value that goes between.
"""

from dataclasses import dataclass
from fractions import Fraction

from stepdown.budget.serving import Unheard
from stepdown.model.config import account_id
from stepdown.model.traffic import Overrun


@dataclass(frozen=True, slots=True)
class Binding:
    """What the plan asks of the ledger for one account: its limit, and the routes whose spend it must hold."""

    budget: str
    """`namespace/name` of the SpendBudget."""
    start_s: int
    end_s: int
    """Exclusive. Unix seconds."""
    limit_nusd: int
    """In force now: the monthly limit plus an override that has not ended."""
    hard: bool
    routes: frozenset[str]
    """`namespace/name` of every route that the budget binds."""

    @property
    def account(self) -> str:
        return account_id(self.budget, self.start_s)


@dataclass(frozen=True, slots=True)
class Invoiced:
    """What the upstream's invoice of a month has come to, and what of it this account has."""

    month: str
    through: str
    """The last day in UTC that it covers."""
    billed_nusd: int
    metered_nusd: int
    """By the ledger, in the same days, whoever spent it."""
    excess_nusd: int
    """Billed beyond all that was metered or held."""
    short_nusd: int
    """Metered by its usage, and not billed."""
    slack_nusd: int
    """By how much the invoice may be rounded."""
    charged_nusd: int
    """To this account, of what it held unreconciled."""
    kept_nusd: int
    """Of it unreconciled still: it may have been billed."""
    released_nusd: int
    """Of it free again."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Where an account's money is, in nUSD, as the ledger saw it at one moment."""

    account: str
    budget: str
    start_s: int
    end_s: int
    limit_nusd: int
    opening_nusd: int = 0
    """Spent by the account's routes before the account bound them (created, renamed, retargeted in mid-period)."""
    settled_nusd: int = 0
    """Cost of requests that ended, estimates included."""
    estimated_nusd: int = 0
    """The part of `settled_nusd` that was charged at the reservation, for want of usage."""
    reserved_nusd: int = 0
    """Worst cases of requests in flight on instances that are open."""
    idle_nusd: int = 0
    """Leased to open instances and reserved by no request."""
    unreconciled_nusd: int = 0
    """Held for lost instances beyond what they reported, and what an older copy of the ledger cannot account for: charged until
    a statement or an administrator settles it."""
    awaited_nusd: int = 0
    """Perhaps granted before the keeper began, and not reported since: charged for the seconds until every proxy has spoken.
    Not in `used`, so that no step is taken for it; what does not come becomes `unreconciled_nusd`."""
    excess_nusd: int = 0
    """The part of `settled_nusd` beyond what was leased: an upstream charged more than a request's worst case."""
    unmetered_nusd: int = 0
    """The part of `settled_nusd` that no counter tells of: in flight when a proxy ended, or stated by an administrator."""
    invoiced_nusd: int = 0
    """The part of `settled_nusd` that the upstream's invoice charged, of what was unreconciled."""
    invoice: Invoiced | None = None
    """Of the month for which the account's period stands, once it was read."""
    overruns: tuple[Overrun, ...] = ()
    """Models that did not keep to their bounds on the account's routes, ever."""
    enforced: bool = False
    """Everybody who may serve has acknowledged the binding of every route: the ceiling holds from here on."""
    unheard: tuple[Unheard, ...] = ()
    """Who has not, and cannot be heard."""

    @property
    def spent_nusd(self) -> int:
        return self.opening_nusd + self.settled_nusd

    @property
    def committed_nusd(self) -> int:
        return self.spent_nusd + self.reserved_nusd + self.idle_nusd + self.unreconciled_nusd + self.awaited_nusd

    @property
    def headroom_nusd(self) -> int:
        """What a new grant could still take; negative when an edit or an upstream's excess pushed over the limit."""
        return self.limit_nusd - self.committed_nusd

    @property
    def remaining_nusd(self) -> int:
        """What is neither spent nor held for lost instances: limit less spent and unreconciled."""
        return self.limit_nusd - self.spent_nusd - self.unreconciled_nusd

    @property
    def used(self) -> Fraction:
        """The share of the limit that is gone, exact: spent and unreconciled over limit. Steps are taken from it."""
        return Fraction(self.spent_nusd + self.unreconciled_nusd, self.limit_nusd) if self.limit_nusd else Fraction(1)
