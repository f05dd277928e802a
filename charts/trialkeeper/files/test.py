"""What `helm test` runs: is the operator there, and does an Experiment of one trial succeed with a checkpoint?

Needs nothing but Python: the API server is asked with the pod's own service account.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
NAMESPACE, NAME, EPOCHS = os.environ["TEST_NAMESPACE"], "trialkeeper-test", 3
DEADLINE = time.monotonic() + float(os.environ["TEST_SECONDS"])
OURS = f"/apis/trialkeeper.dev/v1alpha1/namespaces/{NAMESPACE}"


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def call(method, path, body=None):
    """The API server's answer; None for 404."""
    with open(f"{ACCOUNT}/token") as file:
        headers = {"Authorization": f"Bearer {file.read()}", "Content-Type": "application/json"}
    host = "https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}".format_map(os.environ)
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(host + path, data, headers, method=method)
    trust = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    try:
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )
        return json.load(direct.open(request, timeout=15))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        sys.exit(f"{method} {path}: {error.code} {error.read(2000).decode(errors='replace')}")


def experiment():
    closed = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "trialkeeper.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": NAME},
        "spec": {
            "objectives": [{"metric": "val/loss", "direction": "Minimize"}],
            "parameters": [{"name": "epochs", "fixed": EPOCHS}, {"name": "hidden", "fixed": 128}],
            "search": {"algorithm": "Random", "seed": 1},
            "maxTrials": 1,
            "parallelism": 1,
            "checkpoint": {"frequency": 1},
            "template": {
                "spec": {
                    "automountServiceAccountToken": False,
                    "imagePullSecrets": json.loads(os.environ["TEST_PULL_SECRETS"]),
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": 65532,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": "trainer",
                            "image": os.environ["TEST_IMAGE"],
                            "imagePullPolicy": os.environ["TEST_PULL_POLICY"],
                            "command": ["python", "digits.py"],
                            "env": [{"name": "OPENBLAS_NUM_THREADS", "value": "1"}],
                            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
                            "securityContext": closed,
                        }
                    ],
                }
            },
        },
    }


def ready():
    """Wait until an operator answers."""
    problem = None
    while time.monotonic() < DEADLINE:
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            if opener.open(os.environ["TEST_READY"], timeout=5).status == 200:
                return say("the operator is ready")
        except OSError as error:
            problem = error
        time.sleep(1)
    sys.exit(f"no operator answers at {os.environ['TEST_READY']}: {problem}")


def condition(obj, kind):
    found = [c for c in obj.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {"status": "Unknown"}


def finished():
    """The Experiment's last word."""
    said = ""
    while time.monotonic() < DEADLINE:
        obj = call("GET", f"{OURS}/experiments/{NAME}")
        trial = call("GET", f"{OURS}/trials/{NAME}-0") or {}
        status = trial.get("status", {})
        line = f"trial: {status.get('phase', 'not there yet')}, iteration {status.get('iteration', 0)}"
        if line != said:
            say(line)
        said = line
        if obj is not None:
            over, accepted = condition(obj, "Succeeded"), condition(obj, "Accepted")
            if accepted["status"] == "False":
                sys.exit(f"the Experiment was not accepted: {accepted.get('reason')}: {accepted.get('message')}")
            if over["status"] != "Unknown":
                return over, status
        time.sleep(2)
    pods = call("GET", f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=trialkeeper.dev/experiment%3D{NAME}")
    for pod in (pods or {}).get("items", []):
        say(f"pod {pod['metadata']['name']}: {json.dumps(pod['status'])[:1500]}")
    return sys.exit(f"the Experiment is not over after {os.environ['TEST_SECONDS']} s")


def remove():
    call("DELETE", f"{OURS}/experiments/{NAME}")
    call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}-snapshot")


def main():
    ready()
    if os.environ["TEST_STORE"] == "none":
        return say("there is no store, so no Experiment was tried")
    remove()
    while call("GET", f"{OURS}/experiments/{NAME}") is not None:
        time.sleep(1)
    say(f"created {call('POST', f'{OURS}/experiments', experiment())['metadata']['name']} in {NAMESPACE}")
    try:
        over, status = finished()
        reached = (status.get("checkpoint") or {}).get("iteration")
        if over["status"] != "True":
            sys.exit(f"the Experiment has not succeeded: {over.get('reason')}: {over.get('message')}; trial: {status}")
        if reached != EPOCHS:
            sys.exit(f"the newest checkpoint is of iteration {reached}, not {EPOCHS}: {json.dumps(status)}")
        say(f"succeeded, with a checkpoint at iteration {reached}")
    finally:
        remove()


if __name__ == "__main__":
    main()
