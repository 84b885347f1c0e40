"""The unit of systemd and the manifest for Kubernetes are valid and restrict the service."""

import importlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kasparro.sources import registry
from tests.support.documents import ROOT

UNIT = ROOT / "docs" / "deploy" / "systemd" / "kasparro.service"
MANIFEST = ROOT / "docs" / "deploy" / "kubernetes" / "kasparro.yaml"
# From 0 (safe) to 10; systemd calls less than 2 "OK".
EXPOSURE = 1.5

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@needs_systemd
def test_unit_is_valid(tmp_path: Path) -> None:
    # systemd checks whether the program exists.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/kasparro/bin/kasparro", "/bin/sh"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_unit_exposes_little() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}", UNIT],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(r"exposure level for kasparro.service: ([0-9.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) <= EXPOSURE
    assert done.returncode == 0, done.stdout


def manifests() -> list[dict[str, Any]]:
    """The objects in the manifest."""
    return [msgspec.yaml.decode(part) for part in MANIFEST.read_text().split("\n---\n")]


def test_manifest_fits_the_schemas_of_kubernetes() -> None:
    try:
        kubernetes: Any = importlib.import_module("kubernetes_validate")
    except ImportError:
        pytest.skip("kubernetes-validate is not installed")
    for manifest in manifests():
        kubernetes.validate(manifest, kubernetes.latest_version(), strict=True)


def test_manifest_uses_routes_and_settings_that_exist() -> None:
    config, deployment, service, budget = manifests()
    assert config["data"].keys() <= {variable.name for variable in registry.variables()}
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"/health/live", "/health/ready"}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selected in (deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]):
        assert selected == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert deployment["spec"]["replicas"] > budget["spec"]["minAvailable"]


def test_manifest_restricts_the_service() -> None:
    pod = manifests()[1]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # Secrets come from an object that is not in the manifest.
    assert "secretRef" in str(container["envFrom"])
    assert "Secret" not in {each["kind"] for each in manifests()}
