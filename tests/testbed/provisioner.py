"""A provisioner of volumes: a folder for each claim, which every node of the machine can see.

Run as a program of the control plane, it looks at all claims and volumes, puts right what it can, and waits for the
next change: whatever it misses, the next look shows.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from testbed.access import Api
from testbed.certificates import Authority

PROVISIONER = "testbed/folder"
CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
OURS = "pv.kubernetes.io/provisioned-by"
LOOK_AGAIN = 5  # seconds without any change after which it looks all the same: nobody tells of volumes


def volume(claim: dict[str, Any], storage_class: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The volume that a claim waits for."""
    metadata, spec = claim["metadata"], claim["spec"]
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": metadata["uid"]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": folder.name, "annotations": {OURS: PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "storageClassName": storage_class["metadata"]["name"],
            "persistentVolumeReclaimPolicy": storage_class["reclaimPolicy"],
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {**reference, "name": metadata["name"], "namespace": metadata["namespace"]},
        },
    }


def look(api: Api, folders: Path) -> str:
    """Give each claim that waits its volume, and remove each volume that nobody claims any longer.

    :return: the version of what it saw.
    """
    classes = {c["metadata"]["name"]: c for c in api.items(CLASSES) if c["provisioner"] == PROVISIONER}
    claims = api.get(CLAIMS)
    for claim in claims["items"]:
        storage_class = classes.get(claim["spec"].get("storageClassName", ""))
        if storage_class and claim["status"].get("phase") == "Pending" and "volumeName" not in claim["spec"]:
            folder = folders / f"pvc-{claim['metadata']['uid']}"
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)  # a container's user is not known to the machine
            with contextlib.suppress(OSError):  # it was made already, and only waits to be bound
                api.request("POST", VOLUMES, volume(claim, storage_class, folder))
    for found in api.items(VOLUMES):
        metadata = found["metadata"]
        if metadata.get("annotations", {}).get(OURS) == PROVISIONER and _unclaimed(found):
            shutil.rmtree(folders / metadata["name"], ignore_errors=True)
            api.request("DELETE", f"{VOLUMES}/{metadata['name']}")
    return str(claims["metadata"]["resourceVersion"])


def _unclaimed(found: dict[str, Any]) -> bool:
    reclaimed = found["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    return reclaimed and found["status"].get("phase") in ("Released", "Failed")


def main() -> None:
    server, certificates, folders = sys.argv[1:]
    api = Api(server, Authority(Path(certificates)), "admin")
    while True:
        try:
            api.wait_for_change(CLAIMS, look(api, Path(folders)), LOOK_AGAIN)
        except (OSError, http.client.HTTPException) as error:  # the API server is being restarted
            sys.stderr.write(f"{error}\n")
            time.sleep(1)


if __name__ == "__main__":
    main()
