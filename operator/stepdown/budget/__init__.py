"""Budgets as pure functions: months in time zones, steps, verdicts, forecasts. No clock, no I/O; `now` is an input."""
