"""What the SDK raises: three ways to leave that a trainer need not catch, and what can be wrong."""

from __future__ import annotations

from trialkeeper import contract


class TrialStopped(SystemExit):
    """Raised by `report` when the trial is over: a stop rule holds, or it was told to stop. Exit code 0."""

    def __init__(self, reason: str) -> None:
        super().__init__(contract.EXIT_COMPLETE)
        self.reason = reason


class TrialPreempted(SystemExit):
    """Raised by `report` once everything is saved and the pod is to go. Exit code 143."""

    def __init__(self) -> None:
        super().__init__(contract.EXIT_PREEMPTED)


class StaleAttempt(SystemExit):
    """Raised when a later attempt, or another pod of this one, has taken over. Exit code 75."""

    def __init__(self) -> None:
        super().__init__(contract.EXIT_RESCHEDULE)


class RankZeroGone(SystemExit):
    """Raised in another rank when rank 0, which decides for all, is not there any more. Exit code 75."""

    def __init__(self) -> None:
        super().__init__(contract.EXIT_RESCHEDULE)


class CannotBegin(SystemExit):
    """Raised when a trial cannot begin where it is meant to, and another try would not help. Exit code 78."""

    reason = ""

    def __init__(self, text: str) -> None:
        super().__init__(contract.EXIT_USER_ERROR)
        self.text = text

    def __str__(self) -> str:
        return self.text


class WorldSizeChanged(CannotBegin):
    """Raised when a checkpoint was saved by another number of processes, and not for any number. Exit code 78."""

    reason = contract.REASON_WORLD_SIZE


class BaseMissing(CannotBegin):
    """Raised when the checkpoint that a trial was forked at is not in the store. Exit code 78."""

    reason = contract.REASON_BASE


class CheckpointCorrupt(ValueError):
    """Raised when a checkpoint's files are not those that were committed."""


class NotTheOwner(RuntimeError):
    """Raised when a worker process reports: only the first process of a pod that used the SDK may."""

    def __init__(self, call: str) -> None:
        super().__init__(
            f"{call} was called in a worker process: call it in the process that called trialkeeper first, "
            "and send it what the workers found"
        )
