"""The images of a cluster, as archives in the cache: pause, a base with Python, and the project's own.

There is no registry to pull from, so the base comes from Debian's packages, and the project's Dockerfile is built
upon it. Where the Dockerfile says `FROM ${BASE}`, people get Python's official image and the testbed gets this one.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from testbed import archive, cache, packages
from testbed.programs import program
from testbed.shell import CommandFailed, run

log = logging.getLogger("testbed")

ROOT = Path(__file__).parents[2]
PAUSE = "localhost/pause:1"
BASE = "localhost/py:1"
VERSION = "0.1.0"
KEEP = 3  # images of one target: this code's, and those that somebody else may be working with
STORAGE_LIMIT = 8  # gigabytes; a storage that has grown beyond is begun anew
TARGETS = ("operator", "trainer", "store")

PACKAGES = "python3,python3-venv,ca-certificates"
# Nobody reads these in a container; without them an import into a node takes half the time.
UNREAD = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache", "var/lib/apt", "dev")

# What the Dockerfile may copy for a target: its build sees nothing else, so nothing else can make a difference.
_ALWAYS = ("Dockerfile", ".dockerignore", "operator/locks")
CONTEXT = {
    "operator": (*_ALWAYS, "operator", "trainer-sdk"),
    "trainer": (*_ALWAYS, "trainer-sdk", "examples"),
    "store": _ALWAYS,
}
LEFT_OUT = ("__pycache__", "*.egg-info", ".*_cache", ".venv*", "runs", "dist", "build")


def names() -> list[str]:
    """The project's images, as a pod names them."""
    return [f"trialkeeper-{target}:{VERSION}" for target in TARGETS]


def pause() -> Path:
    """The archive of the image that holds a pod's namespaces."""
    binary = program("pause")

    def make(folder: Path) -> None:
        archive.layer(folder / "layer.tar", {"pause": binary})
        archive.write(folder / "image.tar", PAUSE, folder / "layer.tar", {"Entrypoint": ["/pause"]})
        (folder / "layer.tar").unlink()

    return cache.once(f"images/pause-{cache.digest(binary.read_bytes())}", make) / "image.tar"


def base() -> Path:
    """The archive of this machine's own release, with Python and certificates and little else."""
    suite, mirror = packages.release()

    def make(folder: Path) -> None:
        log.info("making the base image from Debian's packages (once, two minutes)")
        began, root = time.monotonic(), folder / "root"
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, root, *mirror, timeout=1200)
        for name in UNREAD:
            for path in (root / name).iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        run("tar", "--numeric-owner", "-C", root, "-cf", folder / "layer.tar", ".", timeout=300)
        settings = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["python3"]}
        archive.write(folder / "image.tar", BASE, folder / "layer.tar", settings)
        (folder / "layer.tar").unlink()
        shutil.rmtree(root)
        log.info("made the base image in %.0f s", time.monotonic() - began)

    return cache.once(f"images/base-{cache.digest(suite, PACKAGES, *UNREAD)}", make) / "image.tar"


def project(target: str, tag: str | None = None) -> Path:
    """The archive of the image that the Dockerfile's `target` makes.

    :raises FileNotFoundError: if there is no Dockerfile.
    """
    tag = tag or f"trialkeeper-{target}:{VERSION}"
    parts = [part for path in _context(target) for part in (str(path.relative_to(ROOT)), path.read_bytes())]
    minio = program("minio") if target == "store" else None

    def make(folder: Path) -> None:
        log.info("building the image %s", tag)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder) as context:
            for path in _context(target):
                copy = Path(context) / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
            if minio:
                shutil.copy2(minio, Path(context) / "minio")
            _buildah(Path(context), target, tag, folder / "image.tar")
        log.info("built the image %s in %.0f s", tag, time.monotonic() - began)

    key = cache.digest(target, tag, str(base()), str(minio), *parts)
    image = cache.once(f"images/{target}-{key}", make) / "image.tar"
    cache.forget(f"images/{target}-*", keep=KEEP)
    return image


def _context(target: str) -> Iterator[Path]:
    if not (ROOT / "Dockerfile").is_file():
        raise FileNotFoundError(f"{ROOT / 'Dockerfile'}: the project has no Dockerfile to build images from")
    for name in CONTEXT[target]:
        path = ROOT / name
        if path.is_file():
            yield path
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(f for f in folders if not any(Path(f).match(pattern) for pattern in LEFT_OUT))
            yield from (Path(folder) / file for file in sorted(files) if not file.endswith(".pyc"))


def _buildah(context: Path, target: str, tag: str, image: Path) -> None:
    """Build one target without a daemon, in a storage of our own: the machine's own images are none of our business.

    Its mounts go with it, and what is known of them: who is killed half way leaves nothing to stumble on.
    """
    with cache.locked("buildah"), tempfile.TemporaryDirectory() as runtime:
        storage = cache.home() / "containers" / base().parent.name
        if storage.exists() and int(run("du", "-s", "--block-size=1G", storage).split()[0]) > STORAGE_LIMIT:
            cache.throw_away(storage)
        buildah = ("unshare", "--mount", "buildah", "--root", storage, "--runroot", runtime)
        options = ("--layers", "--isolation", "chroot", "--network", "host", "--pull-never")
        certificates = ("-v", "/etc/ssl/certs:/etc/ssl/certs:ro")
        arguments = ("--build-arg", f"BASE={BASE}", "--build-arg", "MINIO=minio")
        try:
            run(*buildah, "inspect", "--type", "image", BASE)
        except CommandFailed:
            run(*buildah, "pull", f"docker-archive:{base()}", timeout=300)
        run(*buildah, "rm", "--all")
        what = ("--target", target, "-t", tag, "-f", context / "Dockerfile", context)
        run(*buildah, "bud", *options, *certificates, *arguments, *what, timeout=1200)
        run(*buildah, "push", tag, f"docker-archive:{image}:{tag}", timeout=300)
