"""The servers' own reading of their configuration: Chroma starts from ours, Ray Serve takes ours."""

import sys
import urllib.error
import urllib.request
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from wiki_assets_tests.k8s.manifests import Rendered
from wiki_assets_tests.processes import free_port, running, wait_until


def config_of_chroma(prod: Rendered) -> dict[str, object]:
    (found,) = [o for o in prod.of("ConfigMap") if o["metadata"]["name"].startswith("chroma-config-")]
    return yaml.safe_load(found["data"]["config.yaml"])


@pytest.mark.chroma
def test_chroma_starts_from_the_configuration_that_its_pod_mounts(prod: Rendered, tmp_path: Path) -> None:
    config = config_of_chroma(prod)
    (pod,) = [pod for pod in prod.pods() if pod.owner == "StatefulSet/chroma"]
    assert config["persist_path"] in [mount["mountPath"] for mount in pod.containers[0]["volumeMounts"]]
    assert config["port"] == pod.containers[0]["ports"][0]["containerPort"]
    port = free_port()
    here = {**config, "port": port, "listen_address": "127.0.0.1", "persist_path": str(tmp_path / "data")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(here))
    chroma = Path(sys.executable).with_name("chroma")
    arguments = [str(chroma), pod.containers[0]["args"][0], str(tmp_path / "config.yaml")]
    with running(arguments, env={}, log=tmp_path / "log", cwd=tmp_path) as process:

        def answers() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            path = pod.containers[0]["readinessProbe"]["httpGet"]["path"]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    return answer.status == 200
            except OSError:
                return False

        assert wait_until(answers, within_s=60, every_s=0.1, what="a heartbeat")
        reset = urllib.request.Request(f"http://127.0.0.1:{port}/api/v2/reset", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(reset, timeout=5)
    assert (tmp_path / "data" / "chroma.sqlite3").exists()


def test_ray_serve_takes_the_search_services_configuration(prod: Rendered) -> None:
    from ray.serve.schema import ServeDeploySchema

    service = prod.one("RayService", "search")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = str(application.import_path).partition(":")
    builder = getattr(import_module(module), name)
    (hint,) = [kind for argument, kind in builder.__annotations__.items() if argument != "return"]
    scale = import_module(module).Scale.model_validate(application.args)
    assert hint in ("Scale", type(scale))
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    cpus = int(workers["rayStartParams"]["num-cpus"])
    assert scale.min_replicas * scale.search_cpus + scale.model_cpus <= cpus * workers["minReplicas"]
    most = scale.max_replicas * scale.search_cpus + scale.max_models * scale.model_cpus
    assert most <= cpus * workers["maxReplicas"], "Serve would ask for replicas that no node can hold"
    port = config.http_options.port
    assert workers["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] == port
    assert str(config.proxy_location.value) == "EveryNode", "each worker is an endpoint of the Service"
