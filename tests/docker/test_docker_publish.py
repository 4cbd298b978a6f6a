"""Ports that vnet publishes on an engine's network: preview and traffic agree.

With and without Docker's userland proxy.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docker.engine_site import HTTPD, Site, engine_site
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=[True, False], ids=["proxy", "no proxy"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with engine_site(tmp_path_factory.mktemp("state"), userland_proxy=request.param) as made:
        made.engine.run("network", "create", "app")
        made.engine.container("web", command=HTTPD)
        made.engine.container("near", command=HTTPD)
        made.engine.container("far", "--network", "app", command=HTTPD)
        yield made


def test_the_preview_agrees_with_traffic(site: Site) -> None:
    said = site.warnings("publish", "web", "7082:80")
    site.vnet("publish", "web", "7082:80")
    assert eventually(lambda: site.reaches("host", "192.0.2.2", 7082))
    assert not site.reaches("world", "192.0.2.2", 7082)
    (dropped,) = [one for one in said if "Docker's rules drop" in one and "IPv6" not in one]
    site.run_advice(dropped)
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
