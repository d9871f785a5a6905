"""A labelled line of text, as `fedmq privacy` prints them."""

import textwrap

LABEL, WIDTH = 20, 100


def row(label: str, text: str) -> list[str]:
    """The text beside its label, over as many lines as it takes."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"  {label:<{LABEL}}", subsequent_indent=" " * (LABEL + 2)
    )
