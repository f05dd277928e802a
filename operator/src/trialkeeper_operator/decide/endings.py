"""Why an attempt ended: one pure function over the pod, our own intent, and the trainer's last words.

The order of judgement matters more than any single row. A complete marker wins even over a disruption
(the trainer was through), our own recorded intent over whatever the kill looked like, and evidence of a
disruption over exit codes, since a drained pod may end with any of them. Exit 0 alone proves nothing:
the kubelet calls a deleted pod whose trainer left politely "Succeeded".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trialkeeper import contract
from trialkeeper.contract import Message
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import FailureRule
from trialkeeper_operator.decide import evidence, policy
from trialkeeper_operator.decide.evidence import Evidence, Pod, node_of
from trialkeeper_operator.decide.table import (
    DISRUPTED,
    FAILED,
    INFRASTRUCTURE,
    KILLED,
    LOST,
    MEMORY,
    PREEMPTED,
    STOPPED,
    SUCCEEDED,
    TABLE,
    TERMINATED,
    USER_ERROR,
    Class,
    Verdict,
    complete,
)

__all__ = [
    "DISRUPTED",
    "FAILED",
    "INFRASTRUCTURE",
    "LOST",
    "MEMORY",
    "PREEMPTED",
    "STOPPED",
    "SUCCEEDED",
    "USER_ERROR",
    "Class",
    "Ending",
    "Verdict",
    "classify",
]


@dataclass(frozen=True)
class Ending:
    """Why an attempt ended. `message` is one sentence for people. `rank`: whose ending it was, of several pods."""

    class_: Class
    reason: str
    message: str
    exit_code: int | None = None
    time: str | None = None  # RFC 3339, when the container finished, where the pod says so
    node: str | None = None
    said: Message | None = None  # the trainer's last words, if they are this attempt's
    rank: int | None = None


def classify(
    pod: Pod | None,
    *,
    container: str,
    attempt: int,
    intent: Verdict | None,
    report: Message | None,
    reported: bool,
    gone: bool = False,
    silent: str = "",
    rules: Sequence[FailureRule] = (),
) -> Ending | None:
    """Why attempt `attempt` ended, or None while its pod has not.

    `gone` means that a live read has confirmed the pod's absence; `pod` is then its last known state, or
    None. `silent` says why a pod that is there will not be ended by anybody: its node is lost.
    `intent` is (class, reason, message) of what we ourselves recorded before ending the pod.
    `reported`: the trial has reported in this or an earlier attempt. `rules`: the user's, see `_ruled`.
    """
    if not gone and not silent and (pod is None or not evidence.ended(pod, container)):
        return None
    found = evidence.gather(pod, container, attempt, report, reported=reported, silent=silent)
    class_, reason, message = _judge(found, intent, rules)
    finished = (evidence.terminated(pod, container) or {}).get("finishedAt")
    return Ending(
        class_=class_,
        reason=contract.plain(reason[:64]),
        message=contract.plain(message[:1024]),
        exit_code=found.exit_code,
        time=finished if isinstance(finished, str) else None,
        node=node_of(pod),
        said=found.said or _plain(found, attempt),
    )


def _plain(found: Evidence, attempt: int) -> Message | None:
    return Message(attempt=attempt, metrics=found.metrics) if found.metrics else None


def _judge(e: Evidence, intent: Verdict | None, rules: Sequence[FailureRule]) -> Verdict:
    if e.end == contract.END_COMPLETE and e.exit_code in (0, KILLED, TERMINATED, None):
        return complete(e)
    if intent is not None:
        return intent
    class_, reason, message = next(verdict(e) for _, applies, verdict in TABLE if applies(e))
    if reason == names.FAIL_EXPERIMENT:
        reason = class_  # that is a rule's to say, and no trainer's
    return _ruled(e, (class_, reason, message), rules)


# What the actions of failurePolicy.rules make of an ending; a disruption that is to be ignored is one already.
_ACTIONS: Final[dict[str, Class]] = {
    "Ignore": PREEMPTED,
    "Count": FAILED,
    "FailTrial": USER_ERROR,
    "FailExperiment": USER_ERROR,
}


def _ruled(e: Evidence, verdict: Verdict, rules: Sequence[FailureRule]) -> Verdict:
    """A verdict as the user's rules want it: the class is theirs, the reason and the sentence stay the evidence's.

    What has succeeded, or has been stopped, is no failure that a rule could be about.
    """
    class_, reason, sentence = verdict
    found = policy.first(rules, e) if class_ not in (SUCCEEDED, STOPPED) else None
    if found is None:
        return verdict
    number, rule = found
    ruled = class_ if rule.action == "Ignore" and class_ in DISRUPTED else _ACTIONS[rule.action]
    by = f"failurePolicy.rules[{number}]: {rule.action}"
    # The experiment looks for this reason.
    reason = names.FAIL_EXPERIMENT if rule.action == names.FAIL_EXPERIMENT else reason
    return ruled, reason, f"{sentence[: 1021 - len(by)]} ({by})"
