"""What goes wrong: with the configuration, and with one attempt on a standby."""

from __future__ import annotations


class Refused(Exception):
    """The module does not start: what is wrong, where, and what to do."""


class Fallback(Exception):
    """This interaction runs on the primary instead.

    :param outcome: why, as the metrics name it.
    :param learn: whether the interaction goes to the primary at once from now on.
    """

    def __init__(self, outcome: str, learn: bool = False) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.learn = learn
