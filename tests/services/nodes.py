#!/usr/bin/env python3
"""Write what a v6-node needs for each node of a seed: its configuration and environment.

    nodes.py --seed seed.json --out FOLDER --database FILE.csv... \\
             [--docker-host unix:///...] [--allow PATTERN...] [--owner NAME]

For node number N (from 1) there are FOLDER/node-N.yaml, a configuration as vantage6 5's
nodes read it; FOLDER/node-N.env, shell assignments of the variables with the secrets in
it (mode 0600); and, in an encrypted collaboration, the organization's private key,
FOLDER/node-N.pem, made here unless it is there. Database number N is node N's `default`.
JSON is YAML, too. Needs: vantage6-common, in an encrypted collaboration.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from urllib.parse import urlsplit


def private_key(path: Path) -> Path:
    from vantage6.common.encryption import RSACryptor

    if not path.exists():
        os.umask(0o077)
        RSACryptor.create_new_rsa_key(path)
    return path


def configuration(seed: dict, folder: Path, number: int, given: argparse.Namespace) -> dict:
    hq = urlsplit(seed["hq_url"])
    encryption = {"enabled": seed["collaboration"]["encrypted"]}
    if encryption["enabled"]:
        encryption["private_key"] = str(private_key(folder / f"node-{number}.pem"))
    runtime = {
        "kind": "docker",
        "data_dir": str(folder / f"node-{number}" / "data"),
        "runtime_dir": str(folder / f"node-{number}" / "run"),
    }
    if given.owner:
        runtime["owner"] = f"{given.owner}-{number}"
    if given.docker_host:
        runtime["docker"] = {"host": given.docker_host}
    # The images were made on this machine: there is nothing to pull them from.
    policies = {"require_algorithm_pull": False}
    if given.allow:
        policies["allowed_algorithms"] = given.allow
    return {
        "hq_url": f"{hq.scheme}://{hq.hostname}", "port": hq.port, "api_path": hq.path,
        "encryption": encryption, "policies": policies, "runtime": runtime,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seed", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--database", type=Path, nargs="+", required=True)
    arguments.add_argument("--docker-host")
    arguments.add_argument("--allow", nargs="+", help="images that may run")
    arguments.add_argument("--owner", help="marks the nodes' runs in a shared engine")
    given = arguments.parse_args()
    seed = json.loads(given.seed.read_text())
    if len(given.database) != len(seed["nodes"]):
        arguments.error(f"{len(given.database)} databases for {len(seed['nodes'])} nodes")
    given.out.mkdir(parents=True, exist_ok=True)
    folder = given.out.resolve()
    for number, (node, database) in enumerate(zip(seed["nodes"], given.database), start=1):
        (folder / f"node-{number}.yaml").write_text(
            json.dumps(configuration(seed, folder, number, given), indent=2) + "\n")
        variables = {
            **node["env"], "DATABASE_LABELS": "default",
            "DATABASE_DEFAULT_URI": str(database.resolve()), "DATABASE_DEFAULT_TYPE": "csv",
        }
        path = folder / f"node-{number}.env"
        path.touch(mode=0o600)
        path.write_text(
            "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))


if __name__ == "__main__":
    main()
