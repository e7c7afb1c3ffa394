"""Moved to experiments/theory.py; here until exponents.py imports it from there."""

from experiments.theory import log_growth

__all__ = ["log_growth"]
