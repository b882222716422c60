"""The files that bring up clusters: Ray's own schema, KubeRay's field names, and the node types on a fake provider.

No cloud account and no Kubernetes is used here: what is checked is what can be checked without them.
"""

import copy
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import psutil
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
LAUNCHERS = [ROOT / "cluster.yaml", DEPLOY / "cluster.local.yaml"]
IN_DEPLOY = (
    "README.md cluster.local.yaml rayjob.yaml Dockerfile Dockerfile.dockerignore env.sh requirements.txt slurm.sh "
    "grafana_dashboard.json"
)
FILES = [ROOT / "cluster.yaml", *(DEPLOY / name for name in IN_DEPLOY.split())]


def launcher(path):
    return yaml.safe_load(path.read_text())


def job():
    return next(d for d in manifests() if d["kind"] == "RayJob")


def manifests():
    return list(yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text()))


def check(config):
    """What `ray up` checks before it starts anything, but without filling in what it asks the cloud for."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


# --- the launcher files


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.name)
def test_ray_accepts_the_launcher_file(path):
    check(launcher(path))


def test_ray_refuses_broken_launcher_files():
    """So the check above can fail."""
    from jsonschema import ValidationError

    def gpu(config):
        return config["available_node_types"]["gpu_spot"]

    for error, message, broken in (
        (ValidationError, "idle_timeout_minuets", lambda c: c.update(idle_timeout_minuets=5)),
        (ValidationError, "max_worker", lambda c: gpu(c).update(max_worker=3)),
        (ValidationError, "resources", lambda c: gpu(c).pop("resources")),
        (ValidationError, "not of type 'integer'", lambda c: gpu(c).update(max_workers="many")),
        (ValueError, "head_node_type", lambda c: c.update(head_node_type="haed")),
        (ValueError, "min_workers", lambda c: gpu(c).update(min_workers=99)),
        (KeyError, "type", lambda c: c["provider"].pop("type")),
    ):
        config = launcher(ROOT / "cluster.yaml")
        broken(config)
        with pytest.raises(error, match=message):
            check(config)
    local = launcher(DEPLOY / "cluster.local.yaml")
    local["docker"] = {"imgae": "x"}
    with pytest.raises(ValidationError, match="imgae"):
        check(local)


def test_gpus_come_on_demand_and_the_head_trains_nothing():
    config = launcher(ROOT / "cluster.yaml")
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    workers = {name: t for name, t in types.items() if name != config["head_node_type"]}
    assert all(t["min_workers"] == 0 and 0 < t["max_workers"] <= config["max_workers"] for t in workers.values())
    assert all(t["resources"]["GPU"] >= 1 for t in workers.values())
    spot = {n for n, t in workers.items() if t["node_config"]["InstanceMarketOptions"].get("MarketType") == "spot"}
    assert spot
    assert spot != set(workers)
    assert min(workers[n].get("priority", 0) for n in spot) > max(
        t.get("priority", 0) for n, t in workers.items() if n not in spot
    )
    for t in types.values():
        assert all(d["Ebs"]["VolumeSize"] >= 50 for d in t["node_config"]["BlockDeviceMappings"])
    assert config["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.name)
def test_every_node_gets_project_versions_token_and_environment(path):
    config = launcher(path)
    assert config["file_mounts"]["~/mgdet"] == "."
    assert config["file_mounts"]["~/.mgdet/ray_token"] == "~/.mgdet/ray_token"
    assert not any("deploy" in pattern for pattern in config["rsync_exclude"])
    setup = "\n".join(config["setup_commands"])
    assert "uv pip sync --compile-bytecode deploy/requirements.txt && uv pip install --no-deps --editable ." in setup
    assert "deploy/env.sh" in setup
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        start = next(c for c in commands if "ray start" in c)
        assert start.startswith("unset OMP_NUM_THREADS;")  # Ray's launcher exports 1


def test_shell_commands_parse():
    for path in LAUNCHERS:
        for key, commands in launcher(path).items():
            if key.endswith("_commands"):
                for command in commands:
                    subprocess.run(["bash", "-n", "-c", command], check=True)


def test_the_environment_is_that_of_mgdet_with_tokens_on():
    from mgdet.cluster.session import _ENVIRONMENT

    names = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "HOME", *_ENVIRONMENT}
    script = f". {shlex.quote(str(DEPLOY / 'env.sh'))} && env"
    out = subprocess.run(["bash", "-c", script], env={"HOME": "/h", "PATH": os.environ["PATH"]}, capture_output=True)
    found = dict(line.split("=", 1) for line in out.stdout.decode().splitlines() if line.split("=")[0] in names)
    assert found == {
        **_ENVIRONMENT,
        "HOME": "/h",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/h/.mgdet/ray_token",
    }
    image = (DEPLOY / "Dockerfile").read_text()
    assert all(f"{key}={value}" in image for key, value in _ENVIRONMENT.items())


# --- what holds for all of the files


def test_named_paths_exist():
    named = {}
    for path in FILES:
        for name in re.findall(r"\b(?:jobs|configs|deploy|docs)/[\w./-]*\w", path.read_text()):
            named[name] = path.name
    assert "jobs/train.py" in named
    missing = {name: where for name, where in named.items() if not (ROOT / name).exists()}
    assert not missing


def test_trainings_in_the_files_are_valid():
    """Each `jobs/train.py CONFIG key=value ...` loads: the configuration is there and every key is known."""
    from mgdet.config import load

    texts = [path.read_text() for path in FILES]
    # as a shell would join them: a backslash at the end of a line, or YAML's folded text
    joined = [re.sub(r"\\\n\s*", " ", t) for t in texts] + [job()["spec"]["entrypoint"]]
    found = 0
    for text in joined:
        for words in re.findall(r"python jobs/train\.py (configs/\S+\.yaml(?: +[\w.]+=[^\s`'\"]+)*)", text):
            config, *overrides = words.split()
            experiment = load(ROOT / config, overrides)
            if "cluster.workers=2" in overrides:
                assert experiment.cluster.workers == 2
            found += 1
    assert found >= 3


def test_what_scaling_trainings_ask_for_is_there():
    """What the trainings of a scaling cluster wait for is what a node has."""
    node = launcher(ROOT / "cluster.yaml")["available_node_types"]["gpu_spot"]["resources"]
    texts = [job()["spec"]["entrypoint"], re.sub(r"\\\n\s*", " ", (DEPLOY / "README.md").read_text())]
    pattern = r"cluster\.gpu=true cluster\.cpus_per_worker=(\d+) cluster\.scale_up_timeout_s=(\d+)"
    found = [m for text in texts for m in re.findall(pattern, text)]
    assert len(found) >= 2
    for cpus, seconds in found:
        assert int(cpus) <= node["CPU"]
        assert int(seconds) >= 600  # a cloud's node takes minutes


SECRET = [
    r"AKIA[0-9A-Z]{12,}",
    r"-----BEGIN",
    r"\b[0-9a-f]{32,}\b",
    r"(?i)(password|passwd|secret_access_key|auth_token|api_key)\s*[:=]\s*['\"]?(?!\$|/|YOUR-|\")[A-Za-z0-9+/]{6,}",
    r"://[^/\s:@]+:[^/\s@]+@",  # user:password@host
]


def test_no_secrets():
    for path in FILES:
        for pattern in SECRET:
            assert not re.search(pattern, path.read_text()), f"{path.name}: {pattern}"
    for sample in ("AKIA" + "A1B2C3D4E5F6G7H8", "password: hunter22", "http://me:pw@host", "0123456789abcdef" * 2):
        assert any(re.search(pattern, sample) for pattern in SECRET), sample
    for document in manifests():
        for container in containers(document):
            assert all(
                "value" not in e or not re.search("(?i)key|secret|token|pass", e["name"])
                for e in container.get("env", [])
            )
        assert document["kind"] != "Secret"


def test_dockerfile_copies_what_the_build_context_has():
    image = (DEPLOY / "Dockerfile").read_text()
    copied = [w for line in re.findall(r"^COPY (.+)$", image, re.M) for w in line.split()[:-1]]
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    assert sorted(set(copied)) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)
    assert "uv pip install -r deploy/requirements.txt" in image
    assert "uv pip install --no-deps ." in image
    assert re.search(r"^USER 1000", image, re.M)


# --- the versions that nodes and image install


def pins(python):
    """Version of every package in deploy/requirements.txt for a Python on Linux."""
    environment = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
    environment |= {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    environment |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    found = {}
    for line in (DEPLOY / "requirements.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            assert canonicalize_name(requirement.name) not in found, line
            found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_pinned_versions_satisfy_the_project(python):
    """Every dependency is pinned, within the ranges that are allowed and within those of the set that was tested."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = pins(python)
    required = [*settings["project"]["dependencies"], *settings["dependency-groups"]["deploy"]]
    for line in [*required, *settings["tool"]["uv"]["constraint-dependencies"]]:
        requirement = Requirement(line)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, line
    import ray

    assert str(pinned["ray"]).split(".")[:2] == ray.__version__.split(".")[:2] == rayjob_version().split(".")[:2]


def test_pinned_versions_name_no_host_and_no_build_of_one_machine():
    """Only names, versions and markers: no index, no URL, no path, no local version such as a CPU-only torch."""
    for line in (DEPLOY / "requirements.txt").read_text().splitlines():
        if line.startswith("#"):
            assert not re.search(r"://|--(extra-)?index|--find-links", line), line
            continue
        assert re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+( ; [\w\s.<>=!'()]+)?", line), line


def test_the_command_that_makes_the_pinned_versions_is_the_documented_one():
    command = re.search(r"^uv export (.+)$", (DEPLOY / "README.md").read_text(), re.M)[1].removeprefix("--quiet ")
    assert (DEPLOY / "requirements.txt").read_text().splitlines()[1] == f"#    uv export {command}"


def rayjob_version():
    return job()["spec"]["rayClusterSpec"]["rayVersion"]


# --- ports


def words(command):
    return [w.strip("()") for w in shlex.split(command)]


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.name)
def test_launcher_ports_are_bound_to_loopback_or_the_private_network(path):
    commands = launcher(path)["head_start_ray_commands"]
    start = words(next(c for c in commands if "ray start" in c))
    assert "--dashboard-host=127.0.0.1" in start
    server = words(next(c for c in commands if "mlflow server" in c))
    host = server[server.index("--host") + 1]
    assert host in ("$IP", "YOUR-HEAD-IP")
    assert f"{host}:*" in server[server.index("--allowed-hosts") + 1]
    assert not any("0.0.0.0" in c for c in commands)


def test_kubernetes_services_stay_inside():
    assert job()["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not job()["spec"]["rayClusterSpec"]["headGroupSpec"].get("enableIngress")
    for document in manifests():
        assert document["kind"] != "Ingress"
        if document["kind"] == "Service":
            assert document["spec"]["type"] == "ClusterIP"
        for container in containers(document):
            assert not any("hostPort" in port for port in container.get("ports", []))


# --- field names of the manifests: a misspelt one is silently dropped by some tools and refused by others

# KubeRay v1.7.0, docs/reference/api.md, ray.io/v1. Optional fields are all of them; what this project cannot need
# (`-`) is left out.
RAY_FIELDS = {
    "RayJobSpec": "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector "
    "submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
    "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished preRunningDeadlineSeconds shutdownAfterJobFinishes "
    "suspend",
    "SubmitterConfig": "backoffLimit",
    "RayClusterSpec": "upgradeStrategy authOptions suspend managedBy autoscalerOptions headServiceAnnotations "
    "enableInTreeAutoscaling gcsFaultToleranceOptions historyServerOptions networkPolicy tlsOptions headGroupSpec "
    "rayVersion workerGroupSpecs",
    "AuthOptions": "enableK8sTokenAuth secretName mode",
    "AutoscalerOptions": "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version "
    "env envFrom volumeMounts command args",
    "HeadGroupSpec": "template headService enableIngress ingressOptions resources labels rayStartParams serviceType",
    "WorkerGroupSpec": "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority resources "
    "labels rayStartParams template scaleStrategy numOfHosts",
}
# Kubernetes' core, apps and meta v1, for the objects that occur
CORE_FIELDS = {
    "ObjectMeta": "annotations generateName labels name namespace",
    "PodTemplateSpec": "metadata spec",
    "PodSpec": "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy "
    "enableServiceLinks hostAliases imagePullSecrets initContainers nodeName nodeSelector preemptionPolicy "
    "priorityClassName restartPolicy runtimeClassName schedulerName securityContext serviceAccountName "
    "shareProcessNamespace terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes",
    "Container": "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe "
    "resources securityContext startupProbe volumeDevices volumeMounts workingDir",
    "SecurityContext": "allowPrivilegeEscalation capabilities privileged procMount readOnlyRootFilesystem runAsGroup "
    "runAsNonRoot runAsUser seLinuxOptions seccompProfile",
    "PodSecurityContext": "fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxOptions "
    "seccompProfile supplementalGroups sysctls",
    "Capabilities": "add drop",
    "SeccompProfile": "localhostProfile type",
    "ResourceRequirements": "claims limits requests",
    "ContainerPort": "containerPort hostIP hostPort name protocol",
    "EnvVar": "name value valueFrom",
    "EnvFromSource": "configMapRef prefix secretRef",
    "SecretEnvSource": "name optional",
    "VolumeMount": "mountPath mountPropagation name readOnly subPath subPathExpr",
    "Volume": "configMap csi emptyDir ephemeral hostPath name nfs persistentVolumeClaim projected secret",
    "EmptyDirVolumeSource": "medium sizeLimit",
    "PersistentVolumeClaimVolumeSource": "claimName readOnly",
    "Toleration": "effect key operator tolerationSeconds value",
    "Probe": "exec failureThreshold grpc httpGet initialDelaySeconds periodSeconds successThreshold tcpSocket "
    "terminationGracePeriodSeconds timeoutSeconds",
    "HTTPGetAction": "host httpHeaders path port scheme",
    "DeploymentSpec": "minReadySeconds paused progressDeadlineSeconds replicas revisionHistoryLimit selector strategy "
    "template",
    "DeploymentStrategy": "rollingUpdate type",
    "LabelSelector": "matchExpressions matchLabels",
    "ServiceSpec": "clusterIP ports selector sessionAffinity type",
    "ServicePort": "appProtocol name nodePort port protocol targetPort",
    "PersistentVolumeClaimSpec": "accessModes resources selector storageClassName volumeMode volumeName",
}
FIELDS = {name: set(fields.split()) for name, fields in (RAY_FIELDS | CORE_FIELDS).items()}
# The type of a field that holds an object or a list of them; (owner, field) where the name alone does not say
TYPES = {
    "rayClusterSpec": "RayClusterSpec",
    "submitterPodTemplate": "PodTemplateSpec",
    "submitterConfig": "SubmitterConfig",
    "authOptions": "AuthOptions",
    "autoscalerOptions": "AutoscalerOptions",
    "headGroupSpec": "HeadGroupSpec",
    "workerGroupSpecs": "WorkerGroupSpec",
    "template": "PodTemplateSpec",
    ("PodTemplateSpec", "metadata"): "ObjectMeta",
    "spec": "PodSpec",
    "containers": "Container",
    "initContainers": "Container",
    "securityContext": "SecurityContext",
    ("PodSpec", "securityContext"): "PodSecurityContext",
    "capabilities": "Capabilities",
    "seccompProfile": "SeccompProfile",
    "resources": "ResourceRequirements",
    ("Container", "ports"): "ContainerPort",
    ("ServiceSpec", "ports"): "ServicePort",
    "env": "EnvVar",
    "envFrom": "EnvFromSource",
    "secretRef": "SecretEnvSource",
    "volumeMounts": "VolumeMount",
    "volumes": "Volume",
    "emptyDir": "EmptyDirVolumeSource",
    "persistentVolumeClaim": "PersistentVolumeClaimVolumeSource",
    "tolerations": "Toleration",
    "readinessProbe": "Probe",
    "livenessProbe": "Probe",
    "httpGet": "HTTPGetAction",
    "strategy": "DeploymentStrategy",
    ("DeploymentSpec", "selector"): "LabelSelector",
}
KINDS = {
    "RayJob": ("ray.io/v1", "RayJobSpec"),
    "Deployment": ("apps/v1", "DeploymentSpec"),
    "Service": ("v1", "ServiceSpec"),
    "PersistentVolumeClaim": ("v1", "PersistentVolumeClaimSpec"),
}


def unknown_fields(value, kind, where):
    """Paths of fields that their type does not have."""
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in unknown_fields(item, kind, f"{where}[{i}]")]
    found = []
    for field, inner in value.items():
        if field not in FIELDS[kind]:
            found.append(f"{where}.{field}")
        elif below := TYPES.get((kind, field)) or (TYPES.get(field) if isinstance(inner, dict | list) else None):
            found += unknown_fields(inner, below, f"{where}.{field}")
    return found


def unknown_in(document):
    version, spec = KINDS[document["kind"]]
    assert document["apiVersion"] == version
    top = [f for f in document if f not in ("apiVersion", "kind", "metadata", "spec")]
    found = unknown_fields(document["metadata"], "ObjectMeta", "metadata")
    return top + found + unknown_fields(document["spec"], spec, "spec")


def objects(value):
    """Every mapping in a document, with its fields."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from objects(item)


def containers(document):
    return [c for o in objects(document) for c in o.get("containers", [])]


def test_manifests_have_only_known_fields():
    for document in manifests():
        assert unknown_in(document) == []


def test_a_misspelt_field_is_found_wherever_it_stands():
    """Each field of the file is misspelt in turn. Left out are free names: labels, quantities, start parameters."""
    free = {"limits", "requests", "rayStartParams", "matchLabels", "labels", "selector"}
    tried = 0
    for document in manifests():
        paths = []

        def walk(value, path, paths=paths):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(value, dict):
                    paths.append((path, key))
                if isinstance(inner, dict | list) and not (key in free and "matchLabels" not in inner):
                    walk(inner, (*path, key))

        walk({"metadata": document["metadata"], "spec": document["spec"]}, ())
        for path, key in paths:
            broken = copy.deepcopy(document)
            owner = broken
            for step in path:
                owner = owner[step]
            if not path:
                continue  # metadata and spec themselves
            owner[key + "x"] = owner.pop(key)
            assert unknown_in(broken), f"{'.'.join(map(str, path))}.{key}"
            tried += 1
    assert tried > 100


def test_the_job_resumes_scales_from_zero_and_cleans_up():
    import ray

    spec = job()["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    assert cluster["rayVersion"].split(".")[:2] == ray.__version__.split(".")[:2]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == 0 < group["maxReplicas"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]]
    for pod in pods:
        assert pod["restartPolicy"] == "Never"
        (container,) = pod["containers"]
        memory = {v["name"] for v in pod["volumes"] if v.get("emptyDir", {}).get("medium") == "Memory"}
        assert {"name": next(iter(memory)), "mountPath": "/dev/shm"} in container["volumeMounts"]
    for kind in ("requests", "limits"):  # a GPU is not overcommitted: both must be there and equal
        assert pods[1]["containers"][0]["resources"][kind]["nvidia.com/gpu"] == 1
    assert {t["key"] for t in pods[1]["tolerations"]} >= {"nvidia.com/gpu"}
    assert len(pods[1]["tolerations"]) >= 2


def test_containers_run_without_rights():
    for document in manifests():
        for o in objects(document):
            for container in o.get("containers", []):
                assert o["securityContext"]["runAsNonRoot"] is True
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"].keys() == {"requests", "limits"}


def test_manifests_name_each_other():
    mlflow, service, claim = manifests()[1:]
    assert service["spec"]["selector"] == mlflow["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == mlflow["spec"]["selector"]["matchLabels"]
    volumes = mlflow["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    name, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert f"tracking.uri=http://{name}:{port}" in job()["spec"]["entrypoint"]
    assert f"{name}:*" in "".join(containers(mlflow)[0]["args"])


# --- the node types on Ray's fake provider


def fake_cluster(address):
    """cluster.yaml with the same node types and limits, its machines replaced by processes of this one.

    A GPU is only a number to Ray's scheduler. CPUs are cut to one, because Ray starts a process for each.
    """
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

    config = launcher(ROOT / "cluster.yaml")
    types = config["available_node_types"]
    for name in types:
        types[name]["node_config"] = {}
    types[FAKE_HEAD_NODE_TYPE] = {
        **types.pop(config["head_node_type"]),
        "max_workers": 0,
    }  # the provider wants its name
    for name, t in types.items():
        t["resources"]["CPU"] = min(1, t["resources"]["CPU"])
        t["resources"][f"is:{name}"] = 1  # tells the types apart; the fake nodes have no labels
    provider = {
        # "external", because Ray's wheel lacks the defaults of the type "fake_multinode"
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "disable_launch_config_check": True,
        "disable_node_updaters": True,
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": address,
    }
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        **{key: config[key] for key in ("max_workers", "upscaling_speed")},
        **{f"{name}_commands": [] for name in lists},
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        "cluster_synced_files": [],
        "cluster_name": "fake",
        "provider": provider,
        "idle_timeout_minutes": 0.25,  # longer than a node takes to start here, so that the first waits for the second
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": types,
    }


DRIVER = """
import json, sys, time
import ray

ray.init(address="auto", logging_level="ERROR")
alive = lambda: [n for n in ray.nodes() if n["Alive"]]
head = ray.get_runtime_context().get_node_id()
(before,) = [n["Resources"] for n in alive()]

@ray.remote
def where(nodes=1):
    deadline = time.time() + 80
    while sum(n["Alive"] for n in ray.nodes()) < nodes and time.time() < deadline:  # holds its node until then
        time.sleep(0.5)
    return ray.get_runtime_context().get_node_id()

gpu = where.options(num_cpus=1, num_gpus=1)
tasks = [gpu.remote(3) for _ in range(2)]  # the head and two
free = ray.get(where.options(num_cpus=0).remote(), timeout=60)  # asks for nothing: needs no worker node
used = ray.get(tasks, timeout=90)
types = {n["NodeID"]: [r[3:] for r in n["Resources"] if r.startswith("is:")] for n in alive()}
peak = len(alive())
start = time.time()
while len(alive()) > 1 and time.time() - start < 60:
    time.sleep(0.5)
print(json.dumps(dict(head=head, before=before, used=used, free=free, peak=peak, after=len(alive()), types=types)))
"""


AFTERWARDS = """
import time
import ray

ray.init(address="auto", logging_level="ERROR")
alive = lambda: sum(n["Alive"] for n in ray.nodes())
start = time.time()
while alive() > 1 and time.time() - start < 60:  # nothing holds them, so the request of the training must be gone
    time.sleep(0.5)
print(f"nodes afterwards {alive()}")
"""


@pytest.fixture
def fake_head():
    """The head of `fake_cluster` with tokens on; yields the environment of its clients."""
    from ray.util import get_node_ip_address

    ip = get_node_ip_address()  # Ray does not keep to loopback, even if told to
    with socket.socket() as s:
        s.bind((ip, 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory(
        prefix="mgdet-", dir="/tmp", ignore_cleanup_errors=True
    ) as directory:  # short: sockets
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

        token = Path(directory) / "token"
        token.write_text("0123456789" * 4 + "\n")
        token.chmod(0o600)
        config = Path(directory) / "cluster.json"
        config.write_text(json.dumps(fake_cluster(f"{ip}:{port}")))
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # the suite may run under `uv run`
            "OMP_NUM_THREADS": "1",
        }
        fake = {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",  # what `ray up` sets
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += [f"--temp-dir={directory}/ray", f"--autoscaling-config={config}"]
        command += ["--num-cpus=0", "--num-gpus=0", "--object-store-memory=100000000", "--include-dashboard=false"]
        with open(f"{directory}/log", "w") as log:
            head = subprocess.Popen(command, env=env | fake, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.time() + 60
            while socket.socket().connect_ex((ip, port)) and time.time() < deadline:
                time.sleep(0.3)
            yield env | {"RAY_ADDRESS": f"{ip}:{port}"}
        finally:
            family = [head, *psutil.Process(head.pid).children(recursive=True)]
            for process in family:
                with_suppressed(process.send_signal, signal.SIGKILL)
            head.wait(timeout=20)
            # the fake nodes put themselves under init; they name our directory
            for process in psutil.process_iter():
                if with_suppressed(lambda p=process: directory in " ".join(p.cmdline())):
                    with_suppressed(process.kill)


def with_suppressed(call, *args):
    try:
        return call(*args)
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return None


def python(env, *args, timeout=150):
    return subprocess.run([sys.executable, *args], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.exhaustive
def test_gpu_nodes_come_with_the_demand_and_go_again(fake_head, tmp_path):
    """From 0 to 2 GPU nodes and back, once because tasks ask for them and once because a training does."""
    done = python(fake_head, "-c", DRIVER)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert not {"CPU", "GPU"} & seen["before"].keys()  # the head, alone at first, offers neither
    assert seen["peak"] == 3
    assert len(set(seen["used"])) == 2
    assert seen["head"] not in seen["used"]
    assert [seen["types"][node] for node in seen["used"]] == [["gpu_spot"]] * 2  # has the higher priority
    assert seen["free"] == seen["head"]  # what asks for no CPU runs there, as the script of a job does
    assert seen["after"] == 1

    training = [
        *("jobs/train.py", "configs/quickstart.yaml", f"storage={tmp_path}", f"data.uri={tmp_path}/shapes"),
        *("data.generate={train: 8, val: 2, size: 64, seed: 0}", "train.epochs=1", "train.batch_size=2"),
        *("data.transform.resize={name: fixed, height: 64, width: 64}", "tracking.enabled=false"),
        *("cluster.gpu=false", "cluster.cpus_per_worker=1"),
    ]
    trained = python(fake_head, *training, "cluster.workers=2", "cluster.scale_up_timeout_s=120")
    assert trained.returncode == 0, trained.stdout + trained.stderr[-3000:]
    assert "room for 0 of 2 workers; waiting for nodes" in trained.stdout
    assert "val/AP " in trained.stdout
    down = python(fake_head, "-c", AFTERWARDS)
    assert down.stdout.splitlines()[-1] == "nodes afterwards 1", down.stderr[-3000:]

    # without being told to wait, and too much for the limits of the node types: an error, not a wait for ever
    at_once = python(fake_head, *training, "name=at-once", "cluster.workers=2")
    assert at_once.returncode == 2
    assert "cluster.scale_up_timeout_s" in at_once.stderr
    much = ("train.batch_size=8", "cluster.workers=8", "cluster.scale_up_timeout_s=3")
    refused = python(fake_head, *training, "name=much", *much)
    assert refused.returncode == 2
    assert "do not fit after waiting 3 s for nodes: 8 workers" in refused.stderr

    stranger = python(fake_head | {"RAY_AUTH_MODE": "disabled"}, "-c", "import ray; ray.init(address='auto')")
    assert stranger.returncode != 0
    assert "AuthenticationError" in stranger.stderr


# --- Slurm

FAKE_SLURM = {
    "srun": '[ "${1#--}" = "$1" ] || shift\nexec "$@"',
    "scontrol": 'echo "$@" >> "$LOG"\n[ "$1" = show ] && printf "node7\\nnode8\\n" || true',
    "training": 'echo "$@ threads=$OMP_NUM_THREADS" >> "$LOG"\n$AS',
}
WAITS = "trap 'exit 143' TERM; touch $LOG.up; while :; do sleep 0.02; done"


@pytest.mark.parametrize(
    ("training", "signal_it", "status", "requeued"),
    [("true", False, 0, False), ("exit 2", False, 2, False), (WAITS, True, 143, True)],
    ids=["to its end", "an error", "its time is over"],
)
def test_the_slurm_script_trains_and_goes_back_into_the_queue(tmp_path, training, signal_it, status, requeued):
    """With programs in the place of Slurm's: what is started, and what becomes of a signal and of the exit status."""
    for name, body in FAKE_SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body.replace('$AS', training)}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    variables = {
        "JOB_ID": 20007,
        "JOB_NUM_NODES": 2,
        "JOB_NODELIST": "node[7-8]",
        "GPUS_ON_NODE": 4,
        "CPUS_PER_TASK": 32,
    }
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "PYTHON": "training"}
    environment |= {f"SLURM_{name}": str(value) for name, value in variables.items()}
    process = subprocess.Popen(["bash", DEPLOY / "slurm.sh", "my.yaml", "name=a b"], env=environment)
    while signal_it and not Path(f"{log}.up").exists():
        assert process.poll() is None
        time.sleep(0.02)
    if signal_it:
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == status
    hosts, started, *rest = log.read_text().splitlines()
    assert hosts == "show hostnames node[7-8]"
    assert started == (
        "-m torch.distributed.run --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=node7:20007 "
        "--rdzv-id=20007 -m mgdet train my.yaml name=a b threads=8"
    )
    assert rest == (["requeue 20007"] if requeued else [])
