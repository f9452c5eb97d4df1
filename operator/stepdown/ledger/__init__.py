"""The spend ledger. `Ledger` is the door; its errors are in `stepdown.ledger.errors`."""

from stepdown.ledger.ledger import Ledger
from stepdown.ledger.traffic import RouteTotal
from stepdown.ledger.views import InstanceView, LeaseView

__all__ = ["InstanceView", "LeaseView", "Ledger", "RouteTotal"]
