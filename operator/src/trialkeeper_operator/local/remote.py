"""Results of an Experiment in a cluster: where its store is, who has the keys, and the way there from this machine.

Everything is asked with the rights of whoever asks, through kubectl.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from trialkeeper import contract
from trialkeeper.results.finding import trials
from trialkeeper.results.known import BadPlace, Known, NotThere, Source
from trialkeeper.store.address import DEFAULT_REGION, Bucket
from trialkeeper_operator.api import names
from trialkeeper_operator.api.experiment import Experiment, S3Storage
from trialkeeper_operator.api.trial import Trial
from trialkeeper_operator.local import kubectl
from trialkeeper_operator.local.kubectl import Forward, Refusal
from trialkeeper_operator.local.reading import known
from trialkeeper_operator.state.cache import owner_uid

if TYPE_CHECKING:
    from trialkeeper.results.places import BucketPlace

    Object = dict[str, Any]

PAUSE = 5.0  # seconds between two looks of somebody who follows
EXPERIMENTS, TRIALS = f"experiments.{names.GROUP}", f"trials.{names.GROUP}"
SYSTEM = "trialkeeper-system"  # where the operator is, if nothing else says
LEASE = "trialkeeper-serves"  # in a namespace: whose it is
OPERATOR = "app.kubernetes.io/name=trialkeeper,app.kubernetes.io/component=operator"

_WHERE = re.compile(r"exp/(?:(?P<namespace>[a-z0-9][-a-z0-9]*)/)?(?P<name>[a-z0-9][-a-z0-9]*)")
_SERVICE = re.compile(r"(?P<name>[a-z0-9][-a-z0-9]*)\.(?P<namespace>[a-z0-9][-a-z0-9]*)\.svc(?:\..+)?")


@dataclass(frozen=True)
class _Store:
    """A bucket as pods see it, its keys if there are any to be looked up, and PEM of whom to trust."""

    bucket: Bucket
    keys: tuple[str, str] | None
    ca: str


def open_experiment(where: str) -> Source:
    """The results of `exp/NAME` or `exp/NAMESPACE/NAME`, of the cluster that kubectl speaks to.

    :raises BadPlace: if it is neither.
    :raises NotThere: if there is no such Experiment, or nothing can be read of it from here.
    :raises OSError: if kubectl or the store refuse.
    """
    match = _WHERE.fullmatch(where)
    if match is None:
        raise BadPlace(f"{where[:200]!r} is neither exp/NAME nor exp/NAMESPACE/NAME")
    raw = _experiment(match["name"], match["namespace"])
    experiment = Experiment.from_object(raw)
    place = _place(experiment)
    folder = contract.prefix(experiment.namespace, experiment.name, experiment.uid, 0).rpartition("/")[0]

    return Source(place, lambda: trials(place, folder), _knowing(experiment), PAUSE)


def _experiment(name: str, namespace: str | None) -> Object:
    found = kubectl.find(EXPERIMENTS, name, namespace)
    if found is None:
        there = f" in namespace {namespace}" if namespace else " in the namespace of kubectl's context"
        raise NotThere(f"there is no Experiment {name}{there}: write exp/NAMESPACE/{name} for another one")
    return found


def _knowing(experiment: Experiment) -> Callable[[], Known]:
    """Whoever asks the cluster again; what it said last is the end of an Experiment that is deleted."""
    last: list[Known] = []

    def know() -> Known:
        try:
            now = Experiment.from_object(kubectl.get(EXPERIMENTS, experiment.name, experiment.namespace))
            if now.uid != experiment.uid:
                return replace(last[0], finished=True) if last else known(experiment, [])
            label = f"--selector={names.LABEL_EXPERIMENT}={experiment.name}"
            items = kubectl.get(TRIALS, "", experiment.namespace, label).get("items") or []
        except Refusal as refusal:
            if last and refusal.missing:
                return replace(last[0], finished=True)
            raise
        last[:] = [known(now, [Trial.from_object(obj) for obj in items if owner_uid(obj) == experiment.uid])]
        return last[0]

    return know


def _place(experiment: Experiment) -> BucketPlace:
    try:
        from trialkeeper.results.buckets import open_bucket
    except ImportError as missing:
        raise ImportError(f"a bucket needs a few more packages: pip install 'trialkeeper[s3]' ({missing})") from None
    storage = experiment.spec.storage
    if storage is not None and storage.volume is not None:
        volume = storage.volume
        raise NotThere(
            f"{experiment.name} keeps everything on the volume claim {volume.claim_name} in namespace "
            f"{experiment.namespace}, which only pods reach: run one that mounts it at {volume.path}, with "
            f"trialkeeper in it, and say there: trialkeeper results {volume.path}/{experiment.namespace}"
        )
    if storage is not None and storage.s3 is not None:
        store = _own(storage.s3, experiment.namespace)
    else:
        store = _installations(experiment.namespace)
    bucket, after = _reached(store.bucket)
    return open_bucket(bucket, store.keys, store.ca, after)


def _own(storage: S3Storage, namespace: str) -> _Store:
    """An experiment's own bucket; without a Secret its pods have an identity, and whoever reads has keys of his own."""
    bucket = Bucket(storage.bucket, endpoint=storage.endpoint or "", region=storage.region)
    keys = _keys(storage.secret_name, namespace) if storage.secret_name else None
    ca = ""
    if storage.ca_config_map:
        ca = _asked("configmap", storage.ca_config_map, namespace)["data"].get("ca.crt", "")
    return _Store(bucket, keys, ca)


def _installations(namespace: str) -> _Store:
    """The store of the installation that serves a namespace."""
    import yaml

    system, lease = _system(namespace)
    items = _asked("configmap", "", system, f"--selector={OPERATOR}").get("items") or []
    configs = [yaml.safe_load((obj.get("data") or {}).get("config.yaml", "")) or {} for obj in items]
    ours = [c for c in configs if lease in ("", c.get("lease"))] or configs
    if not ours:
        raise NotThere(f"there is no installation of Trialkeeper in namespace {system}: is it another cluster?")
    store = ours[0].get("store") or {}
    if store.get("mode", "none") == "none" or not store.get("bucket"):
        raise NotThere("the installation has no store, and the Experiment names none: there is nothing to read")
    bucket = Bucket(store["bucket"], endpoint=store.get("endpoint") or "", region=store.get("region") or DEFAULT_REGION)
    volumes = _volumes(system, lease.removesuffix("-leader"))
    secret, trusted = volumes.get("store", {}).get("secret"), volumes.get("store-ca", {}).get("configMap")
    keys = _keys(secret["secretName"], system) if secret else None
    ca = ""
    if trusted:
        data = _asked("configmap", trusted["name"], system).get("data") or {}
        ca = data.get((trusted.get("items") or [{"key": "ca.crt"}])[0]["key"], "")
    return _Store(bucket, keys, ca)


def _system(namespace: str) -> tuple[str, str]:
    """(namespace of the operator, name of its own Lease) by its claim to a namespace, which not everybody may read."""
    with suppress(Refusal):
        holder = kubectl.get("lease", LEASE, namespace)["spec"].get("holderIdentity") or ""
        if "/" in holder:
            system, _, lease = holder.partition("/")
            return system, lease
    with suppress(Refusal):
        found = kubectl.get("configmap", "", None, "--all-namespaces", f"--selector={OPERATOR}").get("items") or []
        places = {obj["metadata"]["namespace"] for obj in found}
        if len(places) == 1:
            return places.pop(), ""
    return SYSTEM, ""


def _volumes(system: str, name: str) -> dict[str, Any]:
    """The volumes of the operator's pods by name."""
    items = _asked("deployment", "", system, f"--selector={OPERATOR}").get("items") or []
    ours = [obj for obj in items if obj["metadata"]["name"] == name] or items
    found = ours[0]["spec"]["template"]["spec"].get("volumes") or [] if ours else []
    return {volume["name"]: volume for volume in found}


def _keys(secret: str, namespace: str) -> tuple[str, str]:
    data = _asked("secret", secret, namespace).get("data") or {}
    try:
        access, key = (base64.b64decode(data[name]).decode().strip() for name in ("access-key", "secret-key"))
    except (KeyError, ValueError):
        raise NotThere(f"the Secret {secret} in namespace {namespace} has no access-key and secret-key") from None
    return access, key


def _asked(kind: str, name: str, namespace: str, *more: str) -> Object:
    try:
        return kubectl.get(kind, name, namespace, *more)
    except Refusal as refusal:
        if refusal.forbidden:
            _ask_for(f"read {kind} {name}".strip(), namespace, refusal)
        raise


def _ask_for(what: str, namespace: str, refusal: Refusal) -> NoReturn:
    raise Refusal(
        f"you may not {what} in namespace {namespace}: ask for a Role there that may get secrets, configmaps, "
        f"deployments, services and pods, and create pods/portforward (kubectl says: {refusal})"
    ) from None


def _reached(bucket: Bucket) -> tuple[Bucket, Callable[[], object]]:
    """A bucket as this machine sees it: a Service of the cluster is reached by a forwarded port."""
    from urllib.parse import urlsplit

    parts = urlsplit(bucket.endpoint)
    match = _SERVICE.fullmatch(parts.hostname or "")
    if match is None:
        return bucket, lambda: None
    if parts.scheme == "https":
        raise NotThere(
            f"the store at {bucket.endpoint} is reached from inside of the cluster only, since its certificate is for "
            "that name: run trialkeeper in a pod there"
        )
    try:
        forward = Forward(match["namespace"], f"service/{match['name']}", parts.port or 80)
    except Refusal as refusal:
        if refusal.forbidden:
            _ask_for(f"forward a port of service {match['name']}", match["namespace"], refusal)
        raise
    return replace(bucket, endpoint=f"http://127.0.0.1:{forward.port}"), forward.close
