"""A simulator of the upstream LLM API with a bill of its own, for tests, the demo and the bench. It never imports stepdown."""

from tests.upstream.answers import Model
from tests.upstream.bill import Price, price_of
from tests.upstream.faults import Fault
from tests.upstream.process import SimulatorProcess
from tests.upstream.simulator import PRO_KEY, STANDARD_KEY, Entry, Simulator

__all__ = ["PRO_KEY", "STANDARD_KEY", "Entry", "Fault", "Model", "Price", "Simulator", "SimulatorProcess", "price_of"]
