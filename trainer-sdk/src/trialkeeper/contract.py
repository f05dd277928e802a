"""What the trainer's side and the operator's side must agree on: variables, messages, exit codes, keys.

Both packages import this module and nothing of it may be written down a second time. It reads no
environment, opens no file, and needs the standard library only, since it lives in training pods.
Whatever arrives from the other side is untrusted: `Message.decode` answers None, never an exception.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

VERSION = 1

# Variables that the operator sets in a trainer's environment.
ENV_NAMESPACE = "TRIALKEEPER_NAMESPACE"
ENV_EXPERIMENT = "TRIALKEEPER_EXPERIMENT"
ENV_TRIAL = "TRIALKEEPER_TRIAL"
ENV_INDEX = "TRIALKEEPER_INDEX"
ENV_ATTEMPT = "TRIALKEEPER_ATTEMPT"
ENV_POD_UID = "TRIALKEEPER_POD_UID"
ENV_SEED = "TRIALKEEPER_SEED"
ENV_PARAMS = "TRIALKEEPER_PARAMS"  # a JSON object; each value also as ENV_PARAM_PREFIX + NAME
ENV_PARAM_PREFIX = "TRIALKEEPER_PARAM_"
ENV_SETTINGS = "TRIALKEEPER_SETTINGS"  # JSON: objectives, onNonFinite, stop, checkpoint
ENV_STORE = "TRIALKEEPER_STORE"  # a URL: file:///folder, or s3://bucket?endpoint=http://host:port&region=name
ENV_STORE_CA = "TRIALKEEPER_STORE_CA"  # PEM: whom to trust for the store's certificate, absent: the system's
ENV_PREFIX = "TRIALKEEPER_PREFIX"  # the trial's keys begin with it, see `prefix`
ENV_BASE = "TRIALKEEPER_BASE"  # where the first attempt begins: `inherited_key`s, the nearest first, joined by commas
ENV_FORK = "TRIALKEEPER_FORK"  # the `inherited_key` that a trial was forked at; attempt 0: whichever wrote it
ENV_SCRATCH = "TRIALKEEPER_SCRATCH"  # a folder that lives as long as the pod
ENV_SCRATCH_BYTES = "TRIALKEEPER_SCRATCH_BYTES"  # that may lie in it before the pod is evicted; absent: not known
ENV_TERMINATION_LOG = "TRIALKEEPER_TERMINATION_LOG"  # default /dev/termination-log
ENV_REPORT = "TRIALKEEPER_REPORT"  # where live values go: file:///path of a file to replace, or https://host:port
ENV_REPORT_CA = "TRIALKEEPER_REPORT_CA"  # PEM: whom to trust for the report service's certificate
ENV_TOKEN_FILE = "TRIALKEEPER_TOKEN_FILE"  # the pod's token for the report service; the kubelet renews it in place
ENV_GRACE_SECONDS = "TRIALKEEPER_GRACE_SECONDS"  # from SIGTERM to SIGKILL
ENV_SPOT_NOTICE = "TRIALKEEPER_SPOT_NOTICE"  # set by people: aws, gcp or azure, whose spot notices are asked for
ENV_SPOT_NOTICE_URL = "TRIALKEEPER_SPOT_NOTICE_URL"  # instead of the cloud's own address
ENV_MTBF_SECONDS = "TRIALKEEPER_MTBF_SECONDS"  # mean time between disruptions of a pod, as observed
ENV_HOLD = "TRIALKEEPER_HOLD"  # the drill: iterations, one for each attempt, at which report() waits for the kill
ENV_RESUME = "TRIALKEEPER_RESUME"  # 1: a plain run resumes from its folder

# The report service: both take a POST with `Authorization: Bearer <token>`.
AUDIENCE = "trialkeeper.dev/report"  # of the token, so that it opens nothing else
REPORT_PATH = "/v1/report"  # body: a Message; answer: {"settings": {...}} as in ENV_SETTINGS, and mtbfSeconds in them
CREDENTIALS_PATH = (
    "/v1/credentials"  # answer: {"accessKey", "secretKey", "sessionToken", "expires": epoch seconds or 0}
)

PRIOR_MTBF_SECONDS = 6 * 3600.0  # what is believed of disruptions before any was seen

NOTIFY_FILE = "preempted"  # in the scratch folder: its appearance means what SIGTERM means

# Exit codes of a trainer that uses the SDK.
EXIT_COMPLETE = 0
EXIT_RESCHEDULE = 75
EXIT_USER_ERROR = 78
EXIT_PREEMPTED = 143

# Message.end: how far the owner of the pod came.
END_RUNNING = "running"
END_COMPLETE = "complete"
END_PREEMPTED = "preempted"
END_STOPPED = "stopped"
END_PAUSED = "paused"
END_ERROR = "error"
END_USER_ERROR = "userError"
END_FENCED = "fenced"
ENDS = frozenset(
    {END_RUNNING, END_COMPLETE, END_PREEMPTED, END_STOPPED, END_PAUSED, END_ERROR, END_USER_ERROR, END_FENCED}
)

# Reasons that the SDK gives with an end.
REASON_MAX_ITERATIONS = "MaxIterations"
REASON_METRIC = "MetricReached"
REASON_TIMEOUT = "Timeout"
REASON_PLATEAU = "Plateau"
REASON_NON_FINITE = "NonFinite"
REASON_OOM = "OutOfMemory"
REASON_DEVICE = "DeviceFailure"
REASON_STORE = "StoreUnreachable"
REASON_EXCEPTION = "Exception"
REASON_INTERRUPTED = "Interrupted"
REASON_STALE_ATTEMPT = "StaleAttempt"
REASON_WORLD_SIZE = "WorldSizeChanged"
REASON_BASE = "BaseMissing"
REASON_RANK = "RankDied"

MESSAGE_LIMIT = 3072  # bytes; the kubelet cuts a termination message at 4,096
KEY_LIMIT = 256  # characters
METRICS_LIMIT = 64  # that a status holds
ERROR_LIMIT = 1024  # bytes of an exception's text
TIME_LIMIT = 1e11  # seconds: a time or a duration beyond it is none, and no calendar has it


@dataclass(frozen=True)
class MetricSummary:
    """One metric over the visible history of a trial; every value is finite."""

    last: float
    min: float
    max: float


@dataclass(frozen=True)
class CheckpointRef:
    """A committed checkpoint: the attempt and the iteration that wrote it, and its manifest's key."""

    attempt: int
    iteration: int
    key: str
    time: float  # seconds since the epoch, when its iteration was reported


@dataclass(frozen=True)
class Resumed:
    """Where this attempt began, stated once it is known; iteration 0 means from the start.

    `attempt` is the one that wrote the checkpoint; 0 at a higher iteration: it was inherited from another prefix.

    `lostIterations` counts what the attempt before had reported beyond that point and what is run again,
    `lostBefore` the sum of all earlier such statements, so that one that is never heard is not missed.
    """

    attempt: int
    iteration: int
    time: float
    lostIterations: int
    lostBefore: int = 0


@dataclass(frozen=True)
class Message:
    """What a trainer says: as termination message, as `ended.json`, and as live report.

    Times are seconds since the epoch. `iteration` counts the reports of the visible history, this
    attempt's included. `trainedSeconds` is the time of that history, without what was lost.
    """

    end: str = END_RUNNING
    attempt: int = 0
    podUid: str = ""
    reason: str = ""
    text: str = ""  # one sentence for people, or type, message and last frames of an exception
    time: float = 0.0
    started: float = 0.0  # when the SDK came up in this pod
    firstReport: float = 0.0  # when this attempt's first iteration was reported, 0 before it
    iteration: int = 0
    trainedSeconds: float = 0.0
    saveInterval: float = 0.0  # seconds between this attempt's last two saves, 0 before them
    resumed: Resumed | None = None
    checkpoint: CheckpointRef | None = None
    metrics: Mapping[str, MetricSummary] = field(default_factory=dict)
    v: int = VERSION

    def encode(self, limit: int = MESSAGE_LIMIT) -> str:
        """As JSON of at most `limit` bytes: metrics are dropped from the end, then the text is cut."""
        text = _cut(self.text, ERROR_LIMIT)
        metrics = dict(self.metrics)
        while True:
            encoded = json.dumps(asdict(replace(self, text=text, metrics=metrics)), separators=(",", ":"))
            if len(encoded) <= limit or not (metrics or text):
                return encoded
            if metrics:
                keep = min(len(metrics) - 1, int(len(metrics) * limit / len(encoded)))
                metrics = dict(list(metrics.items())[:keep])
            else:
                text = text[: len(text) // 2]

    @staticmethod
    def decode(raw: str | bytes | None) -> Message | None:
        """The message, or None for whatever is not one: the other side may write what it likes."""
        if not raw or len(raw) > 4 * MESSAGE_LIMIT:
            return None
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or value.get("v") != VERSION:
            return None
        try:
            return _message(value) if value["end"] in ENDS else None
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            return None


def plain(text: str) -> str:
    """Text without half surrogates, which JSON carries and nothing else takes."""
    return text.encode("utf-8", "replace").decode()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def _seconds(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= TIME_LIMIT:
        raise ValueError(value)
    return number


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(value)
    return value


def _string(value: Any, limit: int) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return _cut(plain(value), limit)


def _message(value: dict[str, Any]) -> Message:
    resumed, checkpoint = value.get("resumed"), value.get("checkpoint")
    return Message(
        end=value["end"],
        attempt=_count(value.get("attempt", 0)),
        podUid=_string(value.get("podUid", ""), 64),
        reason=_string(value.get("reason", ""), 64),
        text=_string(value.get("text", ""), ERROR_LIMIT),
        time=_seconds(value.get("time", 0)),
        started=_seconds(value.get("started", 0)),
        firstReport=_seconds(value.get("firstReport", 0)),
        iteration=_count(value.get("iteration", 0)),
        trainedSeconds=_seconds(value.get("trainedSeconds", 0)),
        saveInterval=_seconds(value.get("saveInterval", 0)),
        resumed=None
        if resumed is None
        else Resumed(
            attempt=_count(resumed["attempt"]),
            iteration=_count(resumed["iteration"]),
            time=_seconds(resumed["time"]),
            lostIterations=_count(resumed["lostIterations"]),
            lostBefore=_count(resumed.get("lostBefore", 0)),
        ),
        checkpoint=None
        if checkpoint is None
        else CheckpointRef(
            attempt=_count(checkpoint["attempt"]),
            iteration=_count(checkpoint["iteration"]),
            key=_string(checkpoint["key"], KEY_LIMIT),
            time=_seconds(checkpoint["time"]),
        ),
        metrics={
            _string(name, 256): MetricSummary(_number(m["last"]), _number(m["min"]), _number(m["max"]))
            for name, m in list(value.get("metrics", {}).items())[:METRICS_LIMIT]
        },
    )


# Keys of a store. Names of people never enter a key raw, so a key cannot leave its prefix.


def prefix(namespace: str, experiment: str, uid: str, index: int) -> str:
    """The folder of one trial. It belongs to that Experiment uid for ever."""
    return f"{namespace}/{experiment}-{uid[:8]}/{index:05d}"


def attempt_key(attempt: int) -> str:
    """Claimed by the attempt's first pod; names the checkpoint it began from."""
    return f"attempts/{attempt:06d}.json"


def results_key(attempt: int) -> str:
    """Raw results of one attempt, a JSON object a line."""
    return f"results/a{attempt:06d}.jsonl"


def manifest_key(attempt: int, iteration: int) -> str:
    """The commit of a checkpoint."""
    return f"manifests/a{attempt:06d}-i{iteration:012d}.json"


def data_key(attempt: int, iteration: int, nonce: str) -> str:
    """The folder of a checkpoint's files; the nonce keeps two writers apart."""
    return f"data/a{attempt:06d}-i{iteration:012d}-{nonce}"


def ranks_key(attempt: int, life: int) -> str:
    """Where an attempt's rank 0 listens, for processes in other pods; `life` counts a launcher's restarts."""
    return f"ranks/a{attempt:06d}-{life}.json"


def ended_key(attempt: int) -> str:
    """The owner's last words, the same message that it leaves to the kubelet."""
    return f"ended/a{attempt:06d}.json"


def inherited_key(donor: str, attempt: int, iteration: int) -> str:
    """A checkpoint under another trial's prefix; attempt and iteration 0 name none, and leave the choice open."""
    return f"{donor}/{manifest_key(attempt, iteration)}"


def pin_key(holder: str, holder_attempt: int, attempt: int, iteration: int) -> str:
    """Put below a prefix, it keeps a checkpoint there for an attempt of `holder`, a prefix that may be another."""
    return f"{pins_of(holder)}a{holder_attempt:06d}-a{attempt:06d}-i{iteration:012d}.json"


def pins_of(holder: str) -> str:
    """What the keys of all of a holder's pins begin with."""
    return f"pins/{holder.replace('/', '.')}."


def policy_key(generation: int) -> str:
    """What an Experiment wants to become of its part of the store, below its folder; the newest generation counts."""
    return f"experiment/{generation:012d}.json"


def doomed_key(attempt: int, iteration: int) -> str:
    """Put before a checkpoint is deleted, so that whoever pins it later learns that it was too late."""
    return f"doomed/a{attempt:06d}-i{iteration:012d}"


_SEGMENT = "[a-zA-Z0-9][-a-zA-Z0-9]*"  # never a dot, so that no key leaves the store
_INHERITED = re.compile(rf"({_SEGMENT}(?:/{_SEGMENT})*)/(manifests/a\d{{6}}-i\d{{12}}\.json)")
_MANIFEST = re.compile(r"manifests/a(\d{6})-i(\d{12})\.json")
_ATTEMPT = re.compile(r"attempts/(\d{6})\.json")
_PIN = re.compile(rf"pins/({_SEGMENT}(?:\.{_SEGMENT})*)\.a(\d{{6}})-a(\d{{6}})-i(\d{{12}})\.json")
_DOOMED = re.compile(r"doomed/a(\d{6})-i(\d{12})")


class Pin(NamedTuple):
    """A checkpoint, by attempt and iteration, that an attempt of another or the same trial holds on to."""

    holder: str  # a prefix
    holder_attempt: int
    attempt: int
    iteration: int


def parse_manifest_key(key: str) -> tuple[int, int] | None:
    """(attempt, iteration) of a manifest's key, None for any other key."""
    match = _MANIFEST.fullmatch(key)
    return (int(match[1]), int(match[2])) if match else None


def parse_inherited_key(key: str) -> tuple[str, int, int] | None:
    """(the donor's prefix, attempt, iteration) of a checkpoint's key under another prefix, None for any other key."""
    match = _INHERITED.fullmatch(key) if len(key) <= KEY_LIMIT else None
    found = parse_manifest_key(match[2]) if match else None
    return (match[1], *found) if match and found else None


def parse_attempt_key(key: str) -> int | None:
    """The number of an attempt's key, None for any other key."""
    match = _ATTEMPT.fullmatch(key)
    return int(match[1]) if match else None


def parse_pin_key(key: str) -> Pin | None:
    """What a pin's key says, None for any other key."""
    match = _PIN.fullmatch(key)
    return Pin(match[1].replace(".", "/"), int(match[2]), int(match[3]), int(match[4])) if match else None


def parse_doomed_key(key: str) -> tuple[int, int] | None:
    """(attempt, iteration) of a checkpoint that is being deleted, None for any other key."""
    match = _DOOMED.fullmatch(key)
    return (int(match[1]), int(match[2])) if match else None
