"""docs/kubernetes.md names files, components, Secrets and commands: they are there."""

import re

import pytest

from wiki_assets.cli import main
from wiki_assets_tests.conftest import REPOSITORY
from wiki_assets_tests.k8s.conftest import OPTIONS, OVERLAYS
from wiki_assets_tests.k8s.manifests import K8S, Rendered, cluster_spec
from wiki_assets_tests.k8s.policies import OUTSIDE
from wiki_assets_tests.k8s.test_image import LOCK

TEXT = (REPOSITORY / "docs/kubernetes.md").read_text("utf-8")


def test_every_path_is_there() -> None:
    named = set(re.findall(r"(?<![\w/.-])((?:k8s|helm-values|wiki_assets_tests|decisions)/[\w./-]*\w)", TEXT))
    assert len(named) > 12
    there = [REPOSITORY, REPOSITORY / "docs"]
    assert [path for path in sorted(named) if not any((root / path).exists() for root in there)] == []


def test_every_component_and_overlay_is_tested() -> None:
    folders = {path.name for path in (K8S / "components").iterdir()}
    texts = "".join((K8S / "overlays" / name / "kustomization.yaml").read_text("utf-8") for name in OVERLAYS)
    used = {name for name in folders if f"components/{name}" in texts}
    assert folders == used | set(OPTIONS)
    for overlay in OVERLAYS:
        assert f"`{overlay}`" in TEXT, f"the table of overlays does not know {overlay}"


def test_every_command_of_ours_is_one() -> None:
    commands = set(re.findall(r"(?:^|[ `])(?<!-n )wiki-assets ([a-z][a-z-]+)", TEXT, re.M))
    assert commands
    assert commands <= set(main.commands)


def test_every_secret_that_is_used_is_made(rendered: dict[str, Rendered]) -> None:
    for name in ("ray-token", "wiki-postgres", "object-store"):
        assert name in OUTSIDE["Secret"]
        assert f"create secret generic {name}" in TEXT


@pytest.mark.parametrize(
    ("says", "holds"),
    [
        (f"--version {LOCK['dagster']}", "Dagster's chart is the lock's"),
        ("crd?ref=v1.7.0", "the CRDs are the schemas'"),
        ("helm upgrade --install dagster ", "the release's name is in the names that manifests use"),
    ],
)
def test_versions_and_names_are_those_of_the_tests(says: str, holds: str) -> None:
    assert says in TEXT, holds


def test_the_table_of_sizes_says_what_the_manifests_do(rendered: dict[str, Rendered]) -> None:
    most = {}
    for name in ("prod", "prod+large"):
        spec = cluster_spec(rendered[name].one("RayJob", "ray"))
        assert spec
        most[name] = [group["maxReplicas"] for group in spec["workerGroupSpecs"]]
    for row, column in (("CPU workers at most", 0), ("GPU workers at most", 1)):
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {row}")]
        assert [cell.strip() for cell in line.split("|")[3:5]] == [str(most[n][column]) for n in ("prod", "prod+large")]
