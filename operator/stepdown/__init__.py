"""Stepdown keeps LLM spending under its ceiling without taking the answer away."""

__version__ = "0.1.0"
