"""What a budget will have cost at its period's end, if things go on as they do. `status` calls this; nothing decides by it.

The rate is what has been spent over the time gone by, that time counted as a day at least: a burst in a month's first hour is a
burst, not 720 of them. Integers only; time is taken by the full hour, so that a forecast changes when spend does.
"""

from dataclasses import dataclass

from stepdown.budget.months import Period

HOUR_S = 3600
DAMPING_S = 24 * HOUR_S
"""The shortest time that a rate is taken over."""


@dataclass(frozen=True, slots=True)
class Forecast:
    month_end_nusd: int
    exhausted_at_s: int | None
    """The full hour in which the limit will be reached; None: not in this period, or reached already."""

    def over(self, limit_nusd: int) -> bool:
        return self.month_end_nusd > limit_nusd


def forecast(period: Period, spent_nusd: int, limit_nusd: int, now_s: float) -> Forecast:
    """The spend at the period's end by a linear rate, and when the limit will be reached."""
    elapsed_s = max(0, int(now_s) - period.start_s) // HOUR_S * HOUR_S
    over_s = max(elapsed_s, DAMPING_S)
    left_s = max(0, period.end_s - period.start_s - elapsed_s)
    month_end_nusd = spent_nusd + spent_nusd * left_s // over_s
    if spent_nusd >= limit_nusd or month_end_nusd < limit_nusd:
        return Forecast(month_end_nusd, None)
    until_s = -(-(limit_nusd - spent_nusd) * over_s // spent_nusd)
    at_s = (period.start_s + elapsed_s + until_s) // HOUR_S * HOUR_S
    return Forecast(month_end_nusd, max(at_s, period.start_s) if at_s < period.end_s else None)
