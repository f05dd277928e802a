"""Each document of tests/endings comes to the class, the reason and the sentence that it names."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from builders import experiment
from endings.rows import TABLE, Row, Told, read, told
from faults import Call, FaultyCluster
from stage import Stage, bare
from trialkeeper_operator.cluster.answers import error
from trialkeeper_operator.reconcile import experiment as experiments
from trialkeeper_operator.reconcile import trial as trials
from trialkeeper_operator.reconcile.ports import ClusterError

ROWS = read()


SEEN = [row for row in ROWS if row.refusal is None]
REFUSED = [row for row in ROWS if row.refusal is not None]


def name(row: Row) -> str:
    return f"{row.row}: {row.title}"


def agrees(row: Row, found: Told) -> None:
    expected = dict(row.expect)
    sentence = expected.pop("sentence")
    assert re.search(sentence, found.sentence), found.sentence
    seen = found._asdict() | {"class": found.class_}
    assert {key: seen[key] for key in expected} == expected


@pytest.mark.parametrize("row", SEEN, ids=name)
def test_what_is_seen_comes_to_this(row: Row) -> None:
    agrees(row, told(row))


@pytest.mark.parametrize("row", REFUSED, ids=name)
def test_a_pod_that_cannot_be_made_comes_to_this(row: Row) -> None:
    assert row.refusal is not None
    refused = error("POST", row.refusal["code"], row.refusal["body"])
    assert refused is not None
    agrees(row, asyncio.run(_refused(refused)))


class Refusing(FaultyCluster):
    """Lets no pod in."""

    def __init__(self, memory: Any, refusal: ClusterError) -> None:
        super().__init__(memory, self._harmless)
        self._refusal = refusal

    @staticmethod
    def _harmless(_: Call) -> None:
        return None

    async def create(self, obj: Any, *, dry_run: bool = False) -> Any:
        if obj["kind"] == "Pod":
            raise self._refusal
        return await super().create(obj, dry_run=dry_run)


async def _refused(refusal: ClusterError) -> Told:
    """What becomes of a first trial whose pod is refused like this."""
    stage = Stage()
    world = stage.operator()
    world.cluster = Refusing(stage.memory, refusal)
    await stage.memory.create(bare(experiment(maxTrials=1)))
    await stage.show(world)
    await experiments.reconcile(world, ("default", "exp"))
    for _ in range(3):
        await stage.show(world)
        try:
            await trials.reconcile(world, ("default", "exp-0"))
        except ClusterError as error:
            assert error is refusal
    found = await stage.memory.get("Trial", "default", "exp-0")
    assert found is not None
    status = found["status"]
    assert status["attempt"] == 1
    last = (status.get("history") or [{}])[-1]
    return Told(last.get("class", ""), status.get("reason", ""), status.get("message", ""), status["phase"])


def test_each_row_of_the_table_has_a_document_and_each_document_its_source() -> None:
    assert {row.row for row in ROWS} == set(TABLE)
    wrong = [row.title for row in ROWS if not re.match(r"recorded|kwok|code \(.+\)$", row.source)]
    assert not wrong
    titles = [name(row) for row in ROWS]
    assert sorted(set(titles)) == sorted(titles)
