"""What `fedmq bench strategies` compares; by themselves, so that the command's help needs no numpy."""

from typing import Final

__all__ = ["TOPICS"]

TOPICS: Final = ("accuracy", "speed", "dropout", "compression", "attackers")
"""In the order in which they run."""
