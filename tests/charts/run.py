#!/usr/bin/env python3
"""Tests of the Helm chart, without a cluster: what it makes of values, and what it refuses.

    tests/charts/run.py [NAME...]     all, or those whose name has one of the words

Environment: V6_HELM, the program helm; V6_NODE, the v6-node whose words count. Needs PyYAML,
which the Python of `tests/services/python.sh hq` has. That the chart is installed, and what
is then there runs, is seen end to end (tests/end-to-end, `Deployed`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CHART = HERE.parent.parent / "charts" / "v6-node"
sys.path.insert(0, str(HERE.parent / "report"))

import cases  # noqa: E402

LEAST, ALL = ("least.yaml",), ("all.yaml",)
# What a node of vantage6 5.x has, and what it needs beside that to be one of ours.
V6 = ("v6-5.yaml", "v6-5-here.yaml")
RIGHTS = ("ServiceAccount", "Role", "RoleBinding", "NetworkPolicy")
RELEASE, NAMESPACE = "here", "v6-runs"


def call(*command: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    # Neither reads what the one who runs these tests has at home, least of all a cluster's address.
    surroundings = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | environment
    return subprocess.run([str(word) for word in command], env=surroundings, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60)


def helm(verb: str, *options: Any, values: tuple[str, ...] = (), given: Any = None
         ) -> subprocess.CompletedProcess[str]:
    """A command of helm's on the chart, with files of values and more values."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as more:
        json.dump(given or {}, more)
        more.flush()
        files = [*(HERE / name for name in values), more.name]
        return call(os.environ["V6_HELM"], verb, *options, CHART, "--namespace", NAMESPACE,
                    *(word for file in files for word in ("--values", file)))


def rendered(values: tuple[str, ...], given: Any = None) -> dict[str, dict]:
    """The chart's objects by their kind, of which there is one each."""
    done = helm("template", RELEASE, values=values, given=given)
    if done.returncode:
        raise AssertionError(done.stderr)
    objects = [made for made in yaml.safe_load_all(done.stdout) if made]
    by_kind = {made["kind"]: made for made in objects}
    assert len(by_kind) == len(objects), done.stdout
    return by_kind


def configuration(objects: dict[str, dict]) -> dict:
    return yaml.safe_load(objects["Secret"]["stringData"]["node.yaml"])


def pod(objects: dict[str, dict]) -> dict:
    return objects["Deployment"]["spec"]["template"]["spec"]


def node(objects: dict[str, dict]) -> dict:
    (container,) = (one for one in pod(objects)["containers"] if one["name"] == "v6-node")
    return container


def check(objects: dict[str, dict], **environment: str) -> list[dict]:
    """What `v6-node check` says of the configuration that the chart has made."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in objects["Secret"]["stringData"].items():
            (Path(folder) / name).write_text(text)
        done = call(os.environ["V6_NODE"], "check", "--json", "--config", f"{folder}/node.yaml",
                    **environment)
    # It may use neither HQ nor a cluster here, and says so; what counts are its other lines.
    return [line for line in json.loads(done.stdout)["checks"] if line["name"] == "configuration"]


class Chart(unittest.TestCase):
    maxDiff = None

    def test_lint(self):
        for values in (LEAST, ALL, V6):
            with self.subTest(values[0]):
                done = helm("lint", "--strict", values=values)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_rights_are_those_of_the_program(self):
        claims = {"runtime": {"kubernetes": {"outputs": "claim"}}}
        for option, objects in (((), rendered(LEAST)), (("--claims",), rendered(LEAST, claims))):
            printed = call(os.environ["V6_NODE"], "rbac", "--namespace", NAMESPACE, *option)
            self.assertEqual(printed.returncode, 0, printed.stderr)
            wanted = {made["kind"]: made for made in yaml.safe_load_all(printed.stdout)}
            self.assertEqual(tuple(wanted), RIGHTS)
            for kind, made in wanted.items():
                with self.subTest(option=option, kind=kind):
                    found = objects[kind]
                    del found["metadata"]["labels"]
                    self.assertEqual(found, made)

    def test_rights_of_somebody_else(self):
        self.assertEqual(set(rendered(ALL)) & set(RIGHTS), set())

    def test_runs_in_another_namespace(self):
        elsewhere = {"runtime": {"kubernetes": {"namespace": "others"}}}
        objects = rendered(LEAST, elsewhere)
        where = {kind: made["metadata"]["namespace"] for kind, made in objects.items()}
        for kind in ("Role", "RoleBinding", "NetworkPolicy"):
            self.assertEqual(where.pop(kind), "others")
        self.assertEqual(set(where.values()), {NAMESPACE})
        (subject,) = objects["RoleBinding"]["subjects"]
        self.assertEqual(subject["namespace"], NAMESPACE)
        self.assertEqual(configuration(objects)["runtime"]["kubernetes"]["namespace"], "others")

    def test_one_node_at_a_time(self):
        spec = rendered(LEAST)["Deployment"]["spec"]
        self.assertEqual(spec["replicas"], 1)
        self.assertEqual(spec["strategy"], {"type": "Recreate"})

    def test_a_change_of_the_configuration_makes_a_new_pod(self):
        def annotations(**given: Any) -> dict:
            template = rendered(LEAST, given)["Deployment"]["spec"]["template"]
            return template["metadata"]["annotations"]
        self.assertEqual(annotations(), annotations())
        self.assertNotEqual(annotations(), annotations(runtime={"max_concurrent_runs": 3}))
        self.assertNotEqual(annotations(), annotations(caCertificates="PEM"))

    def test_the_probes_ask_where_the_node_answers(self):
        own = node(rendered(LEAST))
        socket = own["args"][own["args"].index("--health") + 1]
        self.assertIn(socket.rsplit("/", 1)[0], [one["mountPath"] for one in own["volumeMounts"]])
        alive, ready = (own[f"{kind}Probe"] for kind in ("liveness", "readiness"))
        program = ["/usr/local/bin/v6-node", "health"]
        self.assertEqual(alive["exec"]["command"], [*program, socket])
        self.assertEqual(ready["exec"]["command"], [*program, "--ready", socket])
        for probe in (alive, ready):
            # The program has these words, and says itself, and sooner, that nobody answers.
            words = [os.environ["V6_NODE"], *probe["exec"]["command"][1:-1], "/nonexistent/socket"]
            self.assertEqual(call(*words).returncode, 1)
            self.assertGreater(probe["timeoutSeconds"], 5)

    def test_nothing_needs_more_than_restricted_pods_have(self):
        for values in (LEAST, V6):
            objects = rendered(values)
            spec = pod(objects)
            self.assertTrue(spec["securityContext"]["runAsNonRoot"])
            self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
            for sharing in ("hostNetwork", "hostPID", "hostIPC", "hostUsers"):
                self.assertNotIn(sharing, spec)
            own = node(objects)["securityContext"]
            self.assertEqual(own["capabilities"], {"drop": ["ALL"]})
            self.assertFalse(own["allowPrivilegeEscalation"])
            self.assertTrue(own["readOnlyRootFilesystem"])
            kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
            self.assertLessEqual(kinds, {"secret", "emptyDir", "persistentVolumeClaim"})

    def test_each_mount_is_a_volume(self):
        for values in (LEAST, ALL, V6):
            objects = rendered(values)
            volumes = {volume["name"] for volume in pod(objects)["volumes"]}
            self.assertEqual({mount["name"] for mount in node(objects)["volumeMounts"]}, volumes)


class OfVantage6(unittest.TestCase):
    """The values of a node of vantage6 5.x."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.objects = rendered(V6)
        cls.given = yaml.safe_load((HERE / V6[0]).read_text())["node"]
        cls.said = check(cls.objects, PRIVATE_KEY="/nonexistent")

    def test_they_have_every_key_that_there_is(self):
        schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["node"]
        self.assertEqual(set(self.given), set(schema["properties"]))

    def test_the_node_takes_them(self):
        first = self.said[0]
        self.assertEqual(first["verdict"], "ok", self.said)
        self.assertIn("node Hospital A, HQ https://hq.example.org/hq/, kubernetes",
                      first["message"])

    def test_they_are_handed_on_as_they_are(self):
        made = configuration(self.objects)["node"]
        for key, value in self.given.items():
            if key not in ("databases", "createSecrets"):
                self.assertEqual(made[key], value)
        self.assertEqual(made["databases"]["serviceBased"],
                         self.given["databases"]["serviceBased"])

    def test_what_has_no_effect_is_told_as_the_node_tells_it(self):
        done = helm("install", RELEASE, "--dry-run=client", values=V6)
        self.assertEqual(done.returncode, 0, done.stderr)
        _, listed = done.stdout.split("Without effect here, of what is under `node`:\n")
        notes = {line.split(":")[0].strip() for line in listed.splitlines() if line.strip()}
        (of_node,) = (line["message"].split(": ")[1] for line in self.said
                      if line["message"].startswith("without effect"))
        # Metrics have other keys, too, which mean nothing without that one.
        of_node = {key.removesuffix(".enabled") for key in of_node.split(", ")}
        self.assertEqual(notes - {"node.encryption.private_key"}, of_node)
        # The node does not know of it: a variable stands before.
        self.assertIn("node.encryption.private_key", notes)

    def test_a_file_is_where_its_claim_is(self):
        first, second = configuration(self.objects)["node"]["databases"]["fileBased"]
        self.assertEqual(first, {"name": "lung", "type": "csv",
                                 "uri": "/srv/databases/lung/lung.csv"})
        self.assertEqual(second, self.given["databases"]["fileBased"][1])
        claims = {volume["name"]: volume["persistentVolumeClaim"]
                  for volume in pod(self.objects)["volumes"] if "persistentVolumeClaim" in volume}
        self.assertEqual(claims, {"data": {"claimName": "hospital-a-data"},
                                  "database-lung": {"claimName": "lung", "readOnly": True}})
        self.assertIn({"name": "database-lung", "mountPath": "/srv/databases/lung",
                       "readOnly": True}, node(self.objects)["volumeMounts"])

    def test_the_key_is_in_its_secret(self):
        self.assertIn({"name": "PRIVATE_KEY", "value": "/etc/v6-node-key/privkey_hospital.pem"},
                      node(self.objects)["env"])

    def test_one_image_is_that_of_the_node_and_of_the_helper(self):
        image = configuration(self.objects)["runtime"]["kubernetes"]["helper_image"]
        self.assertEqual(image, node(self.objects)["image"])
        self.assertNotEqual(image, self.given["image"])


class SecretsOfSomebodyElse(unittest.TestCase):
    """`createSecrets: false`, and each value of the chart's own."""

    @classmethod
    def setUpClass(cls):
        cls.objects = rendered(ALL)

    def test_the_node_has_them_from_where_vantage6_has_them(self):
        sources = [source["secretRef"]["name"] for source in node(self.objects)["envFrom"]]
        self.assertEqual(sources, [f"{RELEASE}-secrets", "more"])
        said = check(self.objects, V6_NODE_NAME="hospital-b", V6_API_KEY="key",
                     DATABASE_LABELS="lung-b", DATABASE_LUNG_B_TYPE="csv",
                     **{item["name"]: item["value"] for item in node(self.objects)["env"]})
        self.assertIn("node hospital-b", said[0]["message"], said)
        self.assertNotIn("fail", {line["verdict"] for line in said}, said)

    def test_a_file_is_where_its_claim_is(self):
        self.assertIn({"name": "DATABASE_LUNG_B_URI",
                       "value": "/srv/databases/lung-b/2026/lung.csv"}, node(self.objects)["env"])

    def test_each_value_is_heeded(self):
        values = yaml.safe_load((HERE / ALL[0]).read_text())
        spec, own = pod(self.objects), node(self.objects)
        self.assertEqual(self.objects["Deployment"]["metadata"]["name"], "node-b")
        self.assertEqual({made["metadata"]["namespace"] for made in self.objects.values()},
                         {"elsewhere"})
        for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "hostAliases"):
            self.assertEqual(spec[key], values[key])
        self.assertEqual([secret["name"] for secret in spec["imagePullSecrets"]], ["one", "two"])
        self.assertIn(values["extraContainers"][0], spec["containers"])
        self.assertEqual(own["imagePullPolicy"], "Always")
        self.assertEqual(own["args"][-1], "human")
        self.assertEqual(own["resources"]["limits"], {"memory": "2Gi"})
        self.assertIn(values["env"][0], own["env"])
        meta = self.objects["Deployment"]["spec"]["template"]["metadata"]
        self.assertEqual((meta["labels"]["team"], meta["annotations"]["note"]), ("data", "text"))
        self.assertNotIn("PersistentVolumeClaim", self.objects)
        self.assertIn({"name": "data", "emptyDir": {}}, spec["volumes"])

    def test_settings_of_the_runtime_are_the_nodes(self):
        runtime = configuration(self.objects)["runtime"]
        self.assertEqual(runtime["ca_certificates"], ["/etc/ssl/certs/other.pem", "ca.pem"])
        self.assertEqual(runtime["kubernetes"], {
            "namespace": "v6-runs", "helper_image": "registry.example.org/v6-helper:0.1.0",
            "labels": {"queue": "night"}})
        self.assertEqual(runtime["run"], {"pids": "none", "memory": "8GiB"})


class Refused(unittest.TestCase):
    """What cannot work is refused before anything of it is in the cluster, in words."""

    def refused(self, why: str, values: tuple[str, ...] = LEAST, **given: Any) -> None:
        done = helm("template", RELEASE, values=values, given=given)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        self.assertIn(why, done.stderr)

    def test_no_image(self):
        self.refused("image: name the image", image="")

    def test_another_engine(self):
        self.refused("runtime.kind is docker", runtime={"kind": "docker"})

    def test_folders_of_its_own(self):
        self.refused("runtime.data_dir: leave it out", runtime={"data_dir": "/data"})
        self.refused("runtime.runtime_dir: leave it out", runtime={"runtime_dir": "/data"})

    def test_a_way_to_another_cluster(self):
        self.refused("runtime.kubernetes.kubeconfig: leave it out",
                     runtime={"kubernetes": {"kubeconfig": "x"}})

    def test_no_name_and_no_key(self):
        self.refused("node.apiKey: give it", node={"apiKey": ""})
        self.refused("node.name: give it", node={"name": None})

    def test_encryption_without_a_key(self):
        self.refused("privateKey.secret: name the Secret", node={"encryption": {"enabled": True}})

    def test_a_file_that_no_pod_sees(self):
        self.refused("lung is a file, and a pod sees none of a machine", V6, databases=None)

    def test_a_claim_of_no_database(self):
        self.refused("databases.other: there is no database of this name", V6,
                     databases={"other": {"claim": "x"}})

    def test_a_claim_without_a_file(self):
        files = [{"name": "a", "type": "csv", "uri": "a.csv"}]
        self.refused("databases.a.path: say which file", databases={"a": {"claim": "x"}},
                     node={"databases": {"fileBased": files}})

    def test_words_that_mean_nothing(self):
        self.refused("polices", node={"polices": {}})
        self.refused("imagePullpolicy", imagePullpolicy="Always")


def main() -> int:
    words = sys.argv[1:]
    if any(word.startswith("-") for word in words):
        print(__doc__, file=sys.stderr)
        return 0 if words == ["--help"] else 64
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    chosen = unittest.TestSuite(
        test for group in suite for test in group
        if not words or any(word in test.id() for word in words))
    # Those of a class stay together, for what the class sets up.
    return cases.run(chosen)


if __name__ == "__main__":
    sys.exit(main())
