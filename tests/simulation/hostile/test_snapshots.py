"""Snapshots as anybody may apply them: taken over or refused with a sentence; one in the way is set aside."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from builders import experiment, trial
from simulation.hostile.garbage import TEXTS, VALUES, examples, spoiled
from simulation.hostile.neighbours import HEALTHY, HOSTILE, Neighbours, beside, sentence
from trialkeeper_operator.api import names
from trialkeeper_operator.reconcile.ports import Invalid, Object
from trialkeeper_operator.state import snapshot

AT = "2023-11-14T22:13:20Z"
_STATUS: dict[str, Any] = {
    "attempt": 2,
    "closed": 1,
    "failures": 1,
    "disruptions": 0,
    "iteration": 4,
    "trainedSeconds": 40.0,
    "runningSeconds": 41.0,
    "metrics": {"loss": {"last": 0.5, "min": 0.4, "max": 0.9}},
    "checkpoint": {"attempt": 1, "iteration": 4, "key": "manifests/a000001-i000000000004.json", "time": AT},
    "base": {"attempt": 1, "iteration": 2},
    "lostWork": {"iterations": 2, "seconds": 20.0, "restartSeconds": 3.0},
    "startTime": AT,
}
_ROWS = [
    trial("exp-0", index=0, **_STATUS, phase="Succeeded", completionTime=AT),
    trial("exp-1", index=1, **_STATUS, phase="Running"),
]
GOOD = snapshot.unpack(snapshot.encode({**experiment(), "status": {"trials": 2, "phase": "Running"}}, _ROWS))


def packed(document: Any) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(json.dumps(document).encode()) + packer.flush()


DATA = st.one_of(
    spoiled(GOOD).map(packed),
    VALUES.map(packed),
    st.binary(max_size=64),
    st.binary(max_size=64).map(lambda tail: packed(GOOD)[:-8] + tail),
)


def _config_map(name: str, data: bytes, annotations: dict[str, str]) -> Object:
    meta = {"name": name, "namespace": "default", "annotations": annotations}
    text = base64.b64encode(data).decode()
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "binaryData": {snapshot.DATA_KEY: text}}


def test_the_good_one_is_taken_over() -> None:
    donor, rows = snapshot.decode(packed(GOOD))
    assert (donor["name"], [row["status"]["phase"] for row in rows]) == ("exp", ["Succeeded", "Running"])


@examples(50)
@given(DATA)
def test_whatever_is_in_a_snapshot_to_go_on_from_it_is_taken_over_or_refused(data: bytes) -> None:
    async def tell(here: Neighbours) -> None:
        await here.memory.create(_config_map("kept", data, {}))
        await here.apply(HOSTILE, restoreFrom={"configMap": "kept"}, failurePolicy={"maxFailures": 0})

        def judged(obj: Object) -> bool:
            conditions = (obj.get("status") or {}).get("conditions", ())
            return any(c["type"] == names.ACCEPTED for c in conditions)

        found = await here.until(names.EXPERIMENT, HOSTILE, judged)
        accepted = next(c for c in found["status"]["conditions"] if c["type"] == names.ACCEPTED)
        assert accepted["status"] == "True" or sentence(accepted["message"]), accepted
        await asyncio.sleep(400.0)  # what was taken over is run, and nothing that it says is a trouble to anybody

    beside(tell)


ANNOTATIONS = st.dictionaries(
    st.sampled_from((snapshot.UID_ANNOTATION, snapshot.SHA_ANNOTATION, snapshot.VERSION_ANNOTATION)), TEXTS
)


@examples(25)
@given(DATA, ANNOTATIONS)
def test_whatever_has_the_snapshots_name_the_experiment_beside_it_ends_well(
    data: bytes, annotations: dict[str, str]
) -> None:
    async def tell(here: Neighbours) -> None:
        try:
            await here.memory.create(_config_map(snapshot.name_of(HEALTHY), data, annotations))
        except Invalid:
            return

    beside(tell)
