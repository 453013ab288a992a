"""What can go wrong, and the exit code each kind of failure has.

Every error a user can cause is one of these, with a message of one line that says what to do. The
command line prints the message and leaves with `exit_code`; anything else is a bug in graphopt
(exit code 1).
"""

from __future__ import annotations

from typing import ClassVar


class GraphoptError(Exception):
    """Base of all errors graphopt raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(GraphoptError):
    """The command line, the model or the data cannot be used as given."""

    exit_code: ClassVar[int] = 2


class VerificationError(GraphoptError):
    """The result could not be shown to compute what the original computes; nothing was written."""

    exit_code: ClassVar[int] = 3


class BudgetError(GraphoptError):
    """The budget that was asked for cannot be met; nothing was written."""

    exit_code: ClassVar[int] = 4


class InterruptError(GraphoptError):
    """The user stopped a run that had kept something to go on from; no model was written."""

    exit_code: ClassVar[int] = 130
