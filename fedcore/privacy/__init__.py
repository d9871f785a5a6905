"""Differential privacy: how much noise, and what it costs.

`mechanisms` says what a private version is made with, `accounting` what that costs. What has been spent stands in
the broker's journal, in the row of the version that spent it. `DifferentialPrivacy` clips and noises one torch
model's gradients, for notebooks.
"""

from .notebook import DifferentialPrivacy

__all__ = ["DifferentialPrivacy"]
