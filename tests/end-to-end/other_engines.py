"""Nodes on other engines than Docker, and collaborations of nodes that have one each."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import deployed
from bed import PYTHON, RUST, UNRULY, Collaboration, Engine, Node, bed

ALGORITHMS = {PYTHON: "average-python", RUST: "average-rust", UNRULY: "unruly"}
UNLIMITED = {"cpus": "none", "memory": "none"}


def need(**services: str) -> None:
    """Skip, unless tests/run has started these: what they are, by the variable that tells."""
    for variable, what in services.items():
        if variable not in os.environ:
            raise unittest.SkipTest(f"it needs {what}, which tests/run starts")


def apptainer(kind: str = "singularity", **settings: Any) -> Engine:
    """Apptainer with the algorithms in archives of this machine, as the user who has it."""
    folder = bed().services.work / "images"
    images = {name: folder / f"{what}.tar" for name, what in ALGORITHMS.items()}
    if not all(archive.exists() for archive in images.values()):
        folder.mkdir(exist_ok=True)
        bed().services.build_images("--to", folder, *ALGORITHMS.values())
    own = {
        "program": os.environ["V6_APPTAINER"],
        "images": {name: str(archive) for name, archive in images.items()},
    }
    return Engine(kind, {"singularity": own} | settings, os.environ["V6_APPTAINER_USER"])


def slurm_commands() -> Path:
    """Slurm's commands, of which `sbatch` takes its time while there is a file `slow` beside it, and
    `sacct` writes a line into the file `asked` for each call."""
    folder = bed().services.work / "commands"
    if not folder.exists():
        folder.mkdir()
        for name in ("squeue", "scancel", "scontrol"):
            (folder / name).symlink_to(shutil.which(name))
        (folder / "asked").touch()
        (folder / "asked").chmod(0o666)
        before = {"sbatch": f"[ ! -e {folder}/slow ] || /bin/sleep 4",
                  "sacct": f'echo "$*" >>{folder}/asked'}
        for name, what in before.items():
            command = folder / name
            command.write_text(f'#!/bin/sh\n{what}\nexec {shutil.which(name)} "$@"\n')
            command.chmod(0o755)
    return folder


def slurm() -> Engine:
    """Apptainer in jobs; what misbehaves is in the partition whose jobs are preempted."""
    settings = {
        "commands": str(slurm_commands()),
        "conf": os.environ["V6_SLURM_CONF"],
        "listen": {"address": "127.0.0.1"},
        "images": {UNRULY: {"partition": "low"}},
        "steps": {"federated_compute": {"partition": "main", "cpus": 2, "arguments": ["--nice=7"]}},
    }
    limits = {"cpus": "none", "memory": "1GiB",
              "images": {UNRULY: {"memory": "700MiB"}},
              "steps": {"federated_compute": {"memory": "1GiB", "deadline": "1h"}}}
    return apptainer("slurm", slurm=settings, run=limits)


def changed(at: Collaboration, name: str, own: bool = False, **settings: Any) -> Node:
    """A collaboration's first node with other settings of its runtime; under its own owner, if it
    does not take the first one's place."""
    config = json.loads(at.node.config.read_text())
    for key, value in settings.items():
        if isinstance(value, dict):
            config["runtime"].setdefault(key, {}).update(value)
        else:
            config["runtime"][key] = value
    if own:
        config["runtime"]["owner"] += "-other"
    path = at.folder / f"{name}.yaml"
    path.write_text(json.dumps(config))
    return Node(path, at.folder / "node-1.env", path.with_suffix(".log"), at.node.engine)


def with_mounts(node: Node, script: str) -> Node:
    """Has a node see other file systems than everybody else, which this script of root's mounts."""
    user = pwd.getpwnam(node.engine.user)
    become = f"exec setpriv --reuid={user.pw_uid} --regid={user.pw_gid} --clear-groups"
    node.prefix = ["unshare", "--mount", "sh", "-c", f'set -e; {script}; {become} -- "$@"', "sh"]
    node.identity = {"cwd": node.identity["cwd"]}
    return node


@contextmanager
def in_place_of_first(at: Collaboration, node: Node) -> Iterator[None]:
    """Has this node run, and not the first one."""
    at.node.stop()
    try:
        node.start()
        yield
    finally:
        node.stop()
        at.node.start()


def three_engines() -> Collaboration:
    """Apptainer, Docker and root's Podman."""
    need(V6_APPTAINER="Apptainer", V6_PODMAN_HOST="root's Podman")
    podman = os.environ["V6_PODMAN_HOST"]
    bed().services.build_images(*ALGORITHMS.values(), DOCKER_HOST=podman)
    return bed().collaboration("engines", engines=(
        apptainer(run=UNLIMITED), Engine(), Engine("podman", {"podman": {"host": podman}})))


def jobs() -> Collaboration:
    """Slurm, Docker and Apptainer."""
    need(V6_APPTAINER="Apptainer", V6_SLURM_CONF="Slurm")
    return bed().collaboration("jobs", engines=(slurm(), Engine(), apptainer(run=UNLIMITED)))


# Outputs on storage of the cluster's, not in pods.
CLAIMS = {"outputs": "claim", "storage_class": "v6-tests"}


def kubernetes(variable: str = "V6_KUBERNETES_CONFIG", **more: str) -> Engine:
    """A namespace of a cluster, from outside of it."""
    return _of_cluster(kubeconfig=os.environ[variable],
                       helper_image=os.environ["V6_KUBERNETES_HELPER"], **more)


def inside(**more: str) -> Engine:
    """The same with the node in there."""
    need(V6_HELM="Helm")
    deployed.images()
    return replace(_of_cluster(**more), node=deployed.Deployed)


def _of_cluster(**own: str) -> Engine:
    # Of a machine with two processors, on which everything else is at work, too.
    own |= {"booked_cpus": "20m"}
    return Engine("kubernetes", {"kubernetes": own, "run": {"pids": "none", "memory": "512MiB"}})


def cluster_image() -> str:
    """The algorithm in the registry from which the cluster fetches, and all others."""
    folder = bed().services.work / "images"
    folder.mkdir(exist_ok=True)
    bed().services.build_images("--to", folder, ALGORITHMS[RUST])
    name = "v6-tests/average-rust:1"
    bed().services.run("kubernetes", "push", str(folder / f"{ALGORITHMS[RUST]}.tar"), name)
    return f"{os.environ['V6_REGISTRY_OPEN']}/{name}"


def podman_or(other: Engine) -> Engine:
    """Root's Podman, if it is there."""
    host = os.environ.get("V6_PODMAN_HOST")
    return Engine("podman", {"podman": {"host": host}}) if host else other


def cluster() -> tuple[Collaboration, str]:
    """A node that drives a cluster from outside, one at Docker, one at Podman; and an image that
    all fetch."""
    need(V6_KUBERNETES_CONFIG="Kubernetes", V6_REGISTRY_OPEN="the image registries")
    engines = (kubernetes(), Engine(), podman_or(kubernetes()))
    return bed().collaboration("cluster", engines=engines), cluster_image()


def in_cluster() -> tuple[Collaboration, str]:
    """The same with a node that is in the cluster."""
    need(V6_KUBERNETES_CONFIG="Kubernetes", V6_REGISTRY_OPEN="the image registries")
    engines = (inside(), Engine(), podman_or(Engine()))
    return bed().collaboration("in-cluster", engines=engines), cluster_image()


def sealed_cluster() -> tuple[Collaboration, str]:
    """An encrypted collaboration: a node in the cluster, one at Docker, one that drives another namespace
    from outside; outputs in the cluster are on claims."""
    need(V6_KUBERNETES_CLAIMS_CONFIG="Kubernetes", V6_REGISTRY_OPEN="the image registries")
    engines = (inside(**CLAIMS), Engine(), kubernetes("V6_KUBERNETES_CLAIMS_CONFIG", **CLAIMS))
    return bed().collaboration("sealed-cluster", encrypted=True, engines=engines), cluster_image()
