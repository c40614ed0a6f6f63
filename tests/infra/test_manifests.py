"""Every file of infra/ against what reads it: published schemas, linters, the configuration that it names.

Kubernetes' own schemas come with the package kubernetes-validate. KubeRay's and the Prometheus operator's CRDs and the
compose schema are read from --schemas DIR (default ../shared/schemas), for example:

    ray.io_rayclusters.yaml, ray.io_rayjobs.yaml, ray.io_rayservices.yaml      kuberay: helm-chart/kuberay-operator/crds
    monitoring.coreos.com_podmonitors.yaml          prometheus-operator: example/prometheus-operator-crd
    compose-spec.json                               compose-spec: schema
"""

import copy
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import ray
import yaml

from serve.front import CLUSTER

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent
MANIFESTS = sorted((INFRA / "kubernetes").glob("*.yaml"))
OURS = ("apps/v1", "v1")  # what kubernetes-validate knows
VERSION = "1.37"


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def strict(schema: Any) -> Any:
    """A CRD's schema in which a field that it does not name is an error: Kubernetes drops such fields in silence."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    return found


def errors(schema: dict[str, Any], document: Any) -> list[str]:
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


@pytest.fixture(scope="module")
def schemas(pytestconfig: pytest.Config) -> Path:
    """The folder of published schemas, or a skip."""
    folder: Path = pytestconfig.getoption("--schemas")
    if not folder.is_dir():
        pytest.skip("no ../shared/schemas")
    return folder


@cache
def definition(path: Path) -> dict[str, Any]:
    """A CRD: a megabyte of YAML, which libyaml reads ten times as fast."""
    return dict(yaml.load(path.read_text(), yaml.CSafeLoader))


def crd_schema(schemas: Path, document: dict[str, Any]) -> dict[str, Any]:
    group, version = document["apiVersion"].split("/")
    crd = definition(schemas / f"{group}_{document['kind'].lower()}s.yaml")
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version)
    found = strict(schema)
    found["properties"]["metadata"] = {"type": "object"}  # the API server checks it, the CRD does not describe it
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_custom_resources_follow_their_definitions(path: Path, schemas: Path) -> None:
    for document in documents(path):
        if document["apiVersion"] not in OURS:
            assert errors(crd_schema(schemas, document), document) == []


def test_a_wrong_field_of_a_custom_resource_is_found(schemas: Path) -> None:
    (document,) = documents(INFRA / "kubernetes" / "raycluster.yaml")
    wrong = copy.deepcopy(document)
    wrong["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    wrong["spec"]["authOptions"]["mode"] = "tokens"
    assert len(errors(crd_schema(schemas, document), wrong)) == 2


def pod_specs(tree: Any) -> list[dict[str, Any]]:
    """Every pod template's spec inside a manifest."""
    if isinstance(tree, list):
        return [spec for part in tree for spec in pod_specs(part)]
    if not isinstance(tree, dict):
        return []
    own = [tree["spec"]] if "containers" in tree.get("spec", {}) else []
    return own + [spec for key, part in tree.items() if key != "spec" or not own for spec in pod_specs(part)]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_own_parts_follow_its_schema(path: Path) -> None:
    """Whole documents where they are Kubernetes' own, pod templates inside custom resources as pods."""
    for document in documents(path):
        if document["apiVersion"] in OURS:
            kubernetes_validate.validate(document, VERSION, strict=True)
        for spec in pod_specs(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
            kubernetes_validate.validate(pod, VERSION, strict=True)
            assert spec["securityContext"]["runAsNonRoot"] is True
            mounted = {mount["name"] for one in spec["containers"] for mount in one.get("volumeMounts", [])}
            assert mounted == {volume["name"] for volume in spec.get("volumes", [])}
            for container in spec["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["resources"]["limits"]["memory"]


def test_a_wrong_pod_is_found() -> None:
    (spec, *_) = pod_specs(documents(INFRA / "kubernetes" / "raycluster.yaml"))
    wrong = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec | {"container": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def gib(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(\D*)", text).groups()
    return float(number) * {"Gi": 1.0, "Mi": 2**-10, "": 2**-30}[unit]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_ray_groups_are_sound(path: Path) -> None:
    """Shared memory holds the object store, memory holds both, GPUs agree, the version is the installed one."""
    for document in documents(path):
        spec = document.get("spec", {})
        cluster = (
            spec if document["kind"] == "RayCluster" else spec.get("rayClusterSpec") or spec.get("rayClusterConfig")
        )
        if document["apiVersion"] != "ray.io/v1" or not cluster:
            continue
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["authOptions"] == {"mode": "token", "secretName": "taxafuse-ray"}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in cluster["workerGroupSpecs"]:
            start, pod = group["rayStartParams"], group["template"]["spec"]
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            (shm,) = [v["emptyDir"] for v in pod["volumes"] if v["name"] == "shm"]
            limits = pod["containers"][0]["resources"]["limits"]
            assert shm["medium"] == "Memory"
            assert gib(start["object-store-memory"]) < gib(shm["sizeLimit"]) <= gib(limits["memory"]) / 2
            assert start.get("num-gpus", "0") == limits.get("nvidia.com/gpu", "0")
            assert ("nvidia.com/gpu" in limits) == (pod["containers"][0]["image"].endswith("-cuda"))


def commands(text: str) -> list[list[str]]:
    """The `python -m train.main|tune.main ...` lines of a shell text, as arguments."""
    flat = text.replace("\\\n", " ")
    return [
        [found[1], *shlex.split(found[2])] for found in re.finditer(r"python -m (train|tune)\.main ([^;'\n&]*)", flat)
    ]


@pytest.mark.parametrize("name", ["rayjob-train", "rayjob-tune"])
def test_the_command_of_a_job_is_one_that_training_takes(name: str, tmp_path: Path) -> None:
    """Every recipe, key and value exists; what a job says of resuming is one of its options."""
    from train.main import parse, resolve

    (document,) = documents(INFRA / "kubernetes" / f"{name}.yaml")
    found = commands(document["spec"]["entrypoint"])
    assert found
    for program, *arguments in found:
        if program == "tune":
            from tune.main import parse as parse_tune

            parse_tune(arguments)
            continue
        options = parse([*arguments, "--set", f"run.storage={tmp_path}"])
        if not options.resume:
            assert resolve(options).recipe == options.recipe
    assert document["spec"].get("backoffLimit", 0) == 0 or "--resume" in document["spec"]["entrypoint"]


def test_serve_configurations() -> None:
    """What Serve deploys is an application that exists, with settings that it takes, open to the cluster's network."""
    from ray.serve.schema import ServeDeploySchema

    from serve import app
    from serve.models.settings import read_settings

    (service,) = documents(INFRA / "kubernetes" / "rayservice.yaml")
    for text in (service["spec"]["serveConfigV2"], (INFRA / "serve.yaml").read_text()):
        config = ServeDeploySchema.model_validate(yaml.safe_load(text))
        (one,) = config.applications
        assert one.import_path == f"{app.__name__}:{app.app.__name__}"
        settings = read_settings(one.args)
        assert settings.token_file and settings.max_replicas > settings.min_replicas > 1
        assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", 8000)


@pytest.mark.middle
def test_dockerfile() -> None:
    """hadolint finds nothing; what is copied exists; no image runs as root."""
    path = INFRA / "images" / "Dockerfile"
    done = subprocess.run([BIN / "hadolint", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = path.read_text()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M) for name in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    stages = re.split(r"^FROM .* AS ", text, flags=re.M)[1:]
    named = {stage.split()[0]: stage for stage in stages}
    assert all("USER 1000" in named[target] for target in ("cpu", "cuda", "mlflow"))
    assert all(f"{name}={value}" in named["runtime"] for name, value in CLUSTER.items())
    ignored = (path.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} >= {"pyproject.toml", "constraints.txt", "engine"}


@pytest.mark.middle
def test_shell_scripts() -> None:
    scripts = [*INFRA.rglob("*.sbatch"), *INFRA.rglob("*.sh")]
    done = subprocess.run([BIN / "shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_file(schemas: Path) -> None:
    compose = yaml.safe_load((INFRA / "mlflow" / "compose.yaml").read_text())
    schema = json.loads((schemas / "compose-spec.json").read_text())
    assert errors(schema, compose) == []
    assert errors(schema, compose | {"service": {}}) != []


def test_secrets_of_the_compose_file_are_files() -> None:
    """Named by reference, each one used is declared, and no value stands in the file."""
    compose = yaml.safe_load((INFRA / "mlflow" / "compose.yaml").read_text())
    used = {secret for service in compose["services"].values() for secret in service.get("secrets", [])}
    assert used == set(compose["secrets"]) and all(list(one) == ["file"] for one in compose["secrets"].values())
    for service in compose["services"].values():
        for key, value in service.get("environment", {}).items():
            assert key.endswith("_FILE") or not re.search("PASSWORD|SECRET|KEY", key), (key, value)


def test_launcher_file() -> None:
    """Ray's own schema and its own preparation of such a file."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((INFRA / "launcher.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    assert errors(schema, config) == []
    assert errors(schema, config | {"worker_ip": []}) != []
    validate_config(prepare_config(config))


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard, its variables filled in."""
    board = json.loads((INFRA / "monitoring" / "dashboard.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return [text.replace("$run", ".*") for text in found]


def test_dashboard_expressions_are_promql() -> None:
    assert len(expressions()) > 15
    for text in expressions():
        promql_parser.parse(text)


def test_dashboard_panels_do_not_overlap() -> None:
    board = json.loads((INFRA / "monitoring" / "dashboard.json").read_text())
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not own & cells and at["x"] + at["w"] <= 24, panel["title"]
        cells |= own
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_prometheus_reads_the_file_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((INFRA / "monitoring" / "prometheus.yml").read_text())
    files = [name for job in config["scrape_configs"] for sd in job["file_sd_configs"] for name in sd["files"]]
    assert files == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
