"""Differential privacy: how much noise, what it costs, and who has spent what.

`mechanisms` says what a private version is made with, `accounting` what that costs, `ledger` whether it may still
be spent. `DifferentialPrivacy` clips and noises one torch model's gradients, for notebooks.
"""

from .notebook import DifferentialPrivacy

__all__ = ["DifferentialPrivacy"]
