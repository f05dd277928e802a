"""`python -m testbed`: clusters in a shell."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys

from testbed import images, packages, programs
from testbed.cluster import Cluster, down, up
from testbed.plan import ClusterRefused, Wishes, find
from testbed.shell import CommandFailed

SENTENCES = (ClusterRefused, programs.GoMissing, CommandFailed, FileNotFoundError, RuntimeError, TimeoutError)


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked; 1 and a sentence if that cannot be done."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = _parser().parse_args(arguments)
    try:
        options.do(options)
    except (*SENTENCES, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"testbed: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="testbed", description="a real Kubernetes cluster on a bare Linux machine")
    commands = parser.add_subparsers(required=True)
    begin = commands.add_parser("up", help="bring a cluster up; the last line tells the shell how to reach it")
    begin.set_defaults(do=_up)
    begin.add_argument("--nodes", type=int, default=1, choices=range(1, 16), help="real nodes", metavar="N")
    begin.add_argument("--control-plane", action="store_true", help="no real nodes")
    begin.add_argument("--kwok", type=int, default=0, help="fake nodes of a control plane", metavar="N")
    begin.add_argument("--no-storage-class", action="store_true", help="no default StorageClass")
    begin.add_argument("--node-grace", type=int, default=40, help="seconds after which a silent node is Unknown")
    end = commands.add_parser("down", help="take a cluster down")
    end.set_defaults(do=_down)
    load = commands.add_parser("images", help="build the project's images and load them into a running cluster")
    load.set_defaults(do=_images)
    for command in (begin, end, load):
        command.add_argument("--name", default="dev", help="the cluster's name")
    install = commands.add_parser("install", help="install the packages of the distribution that are missing")
    install.set_defaults(do=lambda _: packages.install())
    build = commands.add_parser("build", help="build every program and every image that is not in the cache")
    build.set_defaults(do=_build)
    build.add_argument("--no-project", action="store_true", help="not the images of the project itself")
    return parser


def _up(options: argparse.Namespace) -> None:
    if options.kwok and not options.control_plane:
        raise ClusterRefused("--kwok is for --control-plane: real pods would be sent to fake nodes")
    cluster = up(
        options.name,
        Wishes(
            nodes=0 if options.control_plane else options.nodes,
            kwok=options.kwok,
            storage_class=not options.no_storage_class,
            node_grace=options.node_grace,
        ),
    )
    folders = ":".join(str(programs.program(name).parent) for name in ("kubectl", "helm"))
    sys.stdout.write(f'export PATH="{folders}:$PATH"\nexport KUBECONFIG={cluster.kubeconfig}\n')


def _down(options: argparse.Namespace) -> None:
    down(options.name)


def _images(options: argparse.Namespace) -> None:
    plan = find(options.name)
    if plan is None:
        raise ClusterRefused(f"there is no cluster {options.name}: bring it up first")
    for target in images.TARGETS:
        Cluster(plan).load(images.project(target))


def _build(options: argparse.Namespace) -> None:
    packages.install()
    programs.build()
    images.pause()
    images.base()
    for target in () if options.no_project else images.TARGETS:
        images.project(target)


if __name__ == "__main__":
    sys.exit(main())
