"""How much money may lie idle at the proxies, and at which: pure integers. `desk` calls this after it has served every ask.

Idle headroom saves a request the way to the keeper; money that lies idle at one proxy is missing at another. So all idle
leases of an account together stay under half a percent of what remains: ten minutes at ten times a month's average rate.
"""

from collections.abc import Mapping

IDLE_PER_MILLE = 5


def idle_cap(remaining_nusd: int) -> int:
    """What may lie idle of an account, over all instances, when so much is neither spent, reserved nor held for the lost."""
    return max(0, remaining_nusd) * IDLE_PER_MILLE // 1000


def fair_shares(cap_nusd: int, wants: Mapping[int, int]) -> dict[int, int]:
    """Divides the cap over instances by what each wants (its rate says how much): max-min fair, never more than wanted.

    Who wants less than an even share gets it all; what is left is shared evenly by the others.
    """
    shares: dict[int, int] = {}
    left, open_ = cap_nusd, len(wants)
    for instance, want in sorted(wants.items(), key=lambda item: (item[1], item[0])):
        shares[instance] = min(max(0, want), left // open_)
        left -= shares[instance]
        open_ -= 1
    return shares
