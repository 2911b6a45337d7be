"""The pod of the manifests at work, confined as they say, between two registries."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import yaml

from mirror.registry import ConnectionOptions, RegistryClient
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.deploy.test_deploy import plain, the
from tests.support.inventories import sample_store
from tests.support.kubelet import Image, PodContainer
from tests.support.patience import wait_until
from tests.support.places import tree_of
from tests.support.processes import free_port
from tests.watch.test_capacity import fill


def test_the_pod_brings_a_replica_up_to_date_and_passes_its_probes(tmp_path: Path) -> None:
    documents = plain("mirror-sync.yaml")
    pod = the("Deployment", documents)["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    settings = yaml.safe_load(the("ConfigMap", documents)["data"]["replication.yaml"])
    port = free_port()
    with EmbeddedRegistry(MemoryStorage()) as main, EmbeddedRegistry(MemoryStorage()) as spare:
        fill(main.address, sample_store())
        # Only what this machine has instead of a cluster: addresses, no TLS, another port.
        settings["listen"] = f"127.0.0.1:{port}"
        for name, registry in (("main", main), ("spare", spare)):
            del settings["registries"][name]["ca"]
            settings["registries"][name] |= {"address": registry.address, "insecure": True}
        container["ports"][0] |= {"hostIP": "127.0.0.1", "containerPort": port}
        container["livenessProbe"]["httpGet"] |= {"host": "127.0.0.1", "port": port}
        volumes = {name: tmp_path / name for name in ("settings", "secrets", "scratch")}
        for folder in volumes.values():
            folder.mkdir()
        volumes["scratch"].chmod(0o777)
        (volumes["settings"] / "replication.yaml").write_text(yaml.safe_dump(settings))
        secrets = next(one for one in pod["spec"]["volumes"] if "secret" in one)["secret"]
        for name in ("main.password", "spare.password"):
            file = volumes["secrets"] / name
            file.write_text("a-password\n")
            file.chmod(secrets["defaultMode"])
            os.chown(file, 0, pod["spec"]["securityContext"]["fsGroup"])
        for mount in container["volumeMounts"]:
            mount.setdefault("readOnly", False)
        image = Image.of_module("mirror")
        with PodContainer(pod, container, image, volumes, tmp_path / "container") as running:

            def passes(probe: str) -> bool:
                path = container[probe]["httpGet"]["path"]
                return httpx.get(f"http://{running.address}{path}").status_code == 200

            wait_until(lambda: passes("readinessProbe"))
            assert passes("livenessProbe")
            running.check_ports(all_of_them=True)
        options = ConnectionOptions(plain_http=True)
        with RegistryClient(spare.address, options=options) as client:
            wanted = sample_store().inventory()
            assert tree_of(client, settings["root"]).target().held(wanted) == wanted
