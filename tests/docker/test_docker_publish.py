"""A port of ours of a container on a real engine's network, with its userland proxy and without: what the
preview says is what packets find."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.docker.engine import DockerHost
from tests.docker.place import remove_stale
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

HTTPD = "httpd -f -p 80"


class Site:
    """An engine with the containers web, near (its neighbour) and far (on another network), and the world."""

    def __init__(self, engine: DockerHost, tmp_state: str) -> None:
        self.engine, self.host = engine, engine.host
        self._environment = {"DOCKER_HOST": engine.url, "VNET_STATE": tmp_state}

    def vnet(self, *words: str) -> str:
        done = self.host.vnet(*words, **self._environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def warnings(self, *words: str) -> list[str]:
        found: list[str] = json.loads(self.vnet(*words, "--dry-run", "--json"))["warnings"]
        return found

    def reaches(self, asker: str, address: str, port: int) -> bool:
        """Whether the web server answers (that there is no such page)."""
        ask = f"busybox wget -T1 -qO- http://{address}:{port} 2>&1"
        if asker in ("world", "host"):
            return "404" in self.host.run(["sh", "-c", ask], inside=asker, check=False)
        return "404" in self.engine.run("exec", asker, "sh", "-c", ask, check=False)


@pytest.fixture(scope="module", params=[True, False], ids=["proxy", "no proxy"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    remove_stale()
    engine = DockerHost()
    try:
        host = engine.host
        (engine.folder / "daemon.json").write_text(json.dumps({"userland-proxy": request.param}))
        host.namespace("world")
        host.run(f"ip link add up0 type veth peer name far netns {host.full('world')}")
        for inside, link, number in (("host", "up0", 2), ("world", "far", 1)):
            host.run(f"ip addr add 192.0.2.{number}/24 dev {link}", inside=inside)
            host.run(f"ip link set {link} up", inside=inside)
        host.run("ip route add default via 192.0.2.1")
        host.run("ip route add 10.200.0.0/24 via 192.0.2.2", inside="world")
        engine.start()
        engine.import_image()
        engine.run("network", "create", "app")
        engine.container("web", command=HTTPD)
        engine.container("near", command=HTTPD)
        engine.container("far", "--network", "app", command=HTTPD)
        yield Site(engine, str(tmp_path_factory.mktemp("state")))
    finally:
        engine.close()


def test_what_the_preview_says_is_what_packets_find(site: Site) -> None:
    said = site.warnings("publish", "web", "7082:80")
    site.vnet("publish", "web", "7082:80")
    assert eventually(lambda: site.reaches("host", "192.0.2.2", 7082))
    assert not site.reaches("world", "192.0.2.2", 7082)
    (dropped,) = [one for one in said if "Docker's rules drop" in one and "IPv6" not in one]
    for command in dropped.partition("to allow it, run: ")[2].split("; "):
        site.host.run(["sh", "-c", command])
    assert eventually(lambda: site.reaches("world", "192.0.2.2", 7082)), dropped
    assert not site.reaches("world", "10.200.0.3", 80) and not site.reaches("world", "10.200.0.2", 81)

    text = "\n".join(said)
    found = {
        "at 127.0.0.1": site.reaches("host", "127.0.0.1", 7082),
        "web itself": site.reaches("web", "192.0.2.2", 7082),
        "other containers on docker0": site.reaches("near", "192.0.2.2", 7082),
        "containers on app": site.reaches("far", "192.0.2.2", 7082),
    }
    assert found == {words: words not in text for words in found}, text
