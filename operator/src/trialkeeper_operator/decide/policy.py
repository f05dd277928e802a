"""The user's rules: what an ending is to be, whatever the evidence says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trialkeeper_operator.api.experiment import FailureRule
from trialkeeper_operator.decide.evidence import Evidence, conditions_of, exit_code


def first(rules: Sequence[FailureRule], e: Evidence) -> tuple[int, FailureRule] | None:
    """The first rule that holds, and its position; None if the evidence decides."""
    return next(((i, rule) for i, rule in enumerate(rules) if _holds(rule, e)), None)


def _holds(rule: FailureRule, e: Evidence) -> bool:
    codes = rule.on_exit_codes
    if codes is not None:
        code = exit_code(e.pod, codes.container_name or e.container)
        return code not in (0, None) and (code in codes.values) == (codes.operator == "In")
    wanted = {(c.type, c.status) for c in rule.on_pod_conditions or ()}
    return any((c.get("type"), c.get("status")) in wanted for c in conditions_of(e.pod) if _plain(c))


def _plain(condition: Mapping[str, Any]) -> bool:
    """Whether a condition's type and status can be looked for: others write pods, too."""
    return all(isinstance(condition.get(key), str) for key in ("type", "status"))
