#!/usr/bin/env python3
"""Storage for the tests' cluster: a folder of its machine for each claim of class v6-tests.

    volumes.py ADDRESS:PORT FOLDER

ADDRESS:PORT is the API without a login. A folder is root's, as a new disk is, and goes
with its claim. Runs until it is ended; what happened meanwhile is made up for.
"""

import http.client
import json
import os
import shutil
import sys
import time

CLASS = "v6-tests"
CLAIMS = "/api/v1/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"


def call(api, method, path, body=None, done=(200, 201, 202)):
    connection = http.client.HTTPConnection(api, timeout=30)
    text = None if body is None else json.dumps(body)
    connection.request(method, path, text, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    if answer.status not in done:
        raise OSError(f"{method} {path}: {answer.status} {said[:300]!r}")
    return json.loads(said)


def machine(api):
    return call(api, "GET", "/api/v1/nodes")["items"][0]["metadata"]["labels"]["kubernetes.io/hostname"]


def give(api, folder, claim):
    """Makes the volume of a claim that waits for one."""
    about, spec = claim["metadata"], claim["spec"]
    name = f"{CLASS}-{about['uid']}"
    path = os.path.join(folder, name)
    os.makedirs(path, mode=0o755, exist_ok=True)
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [machine(api)]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"v6-tests": "volume"}},
        "spec": {
            "storageClassName": CLASS,
            "accessModes": spec["accessModes"],
            "capacity": spec["resources"]["requests"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": path},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            "claimRef": {key: about[key] for key in ("namespace", "name", "uid")},
        },
    }
    call(api, "POST", VOLUMES, volume, done=(201, 409))


def take(api, folder, name):
    """Removes a volume whose claim is gone."""
    call(api, "DELETE", f"{VOLUMES}/{name}", done=(200, 202, 404))
    shutil.rmtree(os.path.join(folder, name), ignore_errors=True)


def see(api, folder, kind, claim):
    if claim["spec"].get("storageClassName") != CLASS:
        return
    if kind == "DELETED":
        take(api, folder, f"{CLASS}-{claim['metadata']['uid']}")
    elif claim["status"].get("phase") == "Pending" and not claim["metadata"].get("deletionTimestamp"):
        give(api, folder, claim)


def serve(api, folder):
    listed = call(api, "GET", CLAIMS)
    there = {f"{CLASS}-{claim['metadata']['uid']}" for claim in listed["items"]}
    for volume in call(api, "GET", f"{VOLUMES}?labelSelector=v6-tests%3Dvolume")["items"]:
        if volume["metadata"]["name"] not in there:
            take(api, folder, volume["metadata"]["name"])
    for claim in listed["items"]:
        see(api, folder, "ADDED", claim)
    version = listed["metadata"]["resourceVersion"]
    connection = http.client.HTTPConnection(api, timeout=330)
    connection.request("GET", f"{CLAIMS}?watch=true&timeoutSeconds=300&resourceVersion={version}")
    for line in connection.getresponse():
        event = json.loads(line)
        if event["type"] == "ERROR":
            break
        see(api, folder, event["type"], event["object"])
    connection.close()


def main():
    api, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    made = False
    while True:
        try:
            if not made:
                about = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": CLASS}}
                call(api, "POST", CLASSES, {**about, "provisioner": "v6-tests/folders"}, done=(201, 409))
                made = True
            serve(api, folder)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The API server is away: it comes back, or we are ended.
            print(error, flush=True)
            time.sleep(0.5)


main()
