"""Generated Experiments: the real API server's CEL and schema say of each what the Python twins say."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cluster.conftest import Play
from cluster.plane import Plane
from simulation.hostile.specs import experiments
from trialkeeper_operator.api import names, rules
from trialkeeper_operator.api.validate import InvalidObject, Problem, check_experiment
from trialkeeper_operator.cluster.kube import Kube
from trialkeeper_operator.cluster.paths import path
from trialkeeper_operator.reconcile.ports import Invalid, Object

OBJECTS, AT_ONCE = 300, 16
DRY = {"dryRun": "All", "fieldValidation": "Strict"}

# What CEL cannot say, and what the schema cannot: values of no one type.
_WITHOUT_CEL = frozenset(rule.message for rule in rules.EXPERIMENT if rule.cel is None)
_UNTYPED = re.compile(
    r"spec\.(parameters\[\d+\]\.(fixed|choice\.values\[\d+\]|when\.in\[\d+\])|enqueue\[\d+\]\.parameters\..*"
    r"|search\.settings\..*)"
)


def drawn(number: int) -> list[Object]:
    """So many different ones, the same each time."""
    found: dict[str, Object] = {}

    @settings(
        max_examples=2 * number,
        database=None,
        derandomize=True,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(experiments(), min_size=1, max_size=3))
    def draw(several: list[Object]) -> None:
        for one in several:
            found.setdefault(json.dumps(one), one)

    draw()
    return list(found.values())[:number]


def operators_own(problem: Problem) -> bool:
    """Whether only the operator can say this."""
    return problem.sentence in _WITHOUT_CEL or bool(_UNTYPED.fullmatch(problem.path))


def twins(body: Object) -> list[Problem]:
    try:
        check_experiment(body)
    except InvalidObject as refusal:
        return refusal.problems
    return []


async def _server(kube: Kube, body: Object) -> str | None:
    try:
        await kube.call("POST", path(names.EXPERIMENT, "default"), body, DRY)
    except Invalid as refusal:
        return str(refusal)
    return None


@pytest.mark.timeout(120)
def test_of_generated_experiments_both_say_the_same(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = drawn(OBJECTS)
    assert len(bodies) == OBJECTS

    async def story(plane: Plane) -> None:
        kube, room = await plane.kube(), asyncio.Semaphore(AT_ONCE)

        async def one(body: Object) -> tuple[Object, str | None, list[Problem]]:
            async with room:
                return body["spec"], await _server(kube, body), twins(body)

        said = await asyncio.gather(*map(one, bodies))
        good = sum(server is None and not problems for _, server, problems in said)
        with capsys.disabled():
            print(f"\n  {len(bodies)} generated Experiments, {good} of them good")  # noqa: T201
        differ = [
            json.dumps([spec, server, [str(problem) for problem in problems]])
            for spec, server, problems in said
            if (server is None and not all(map(operators_own, problems))) or (server is not None and not problems)
        ]
        assert not differ, "\n".join(differ)
        assert OBJECTS // 6 < good < OBJECTS - OBJECTS // 6

    play(story)
