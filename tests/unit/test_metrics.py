"""Check metrics: Prometheus' naming conventions, docs page, clean external text."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from core.metrics import FastPathNumbers, MetricsError, MetricsServer
from core.metrics import collector as collecting
from core.metrics import server as serving
from core.metrics.collector import _TABLE_COUNTERS, HostCollector, LinkMetrics
from core.metrics.samples import METRICS, SampleSet, clean_label, unique_labels
from core.metrics.samples import fill_fast_path as fill_fast_path
from core.metrics.server import parse_address
from core.model import ConntrackStats, LinkStats
from core.topology import Topology
from tests.support.snapshots import hostile_host, small_host
from tests.support.waiting import PATIENCE, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


class Fixed:
    """A collector of given families."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families


def text_of(samples: SampleSet) -> str:
    registry = CollectorRegistry()
    registry.register(Fixed([*samples.families()]))
    return generate_latest(registry).decode()


def values(text: str, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a metric by the values of their labels, in METRICS' order."""
    labels = next(one.labels for one in METRICS if one.name == name)
    found = [one for family in text_string_to_metric_families(text) for one in family.samples]
    return {tuple(one.labels[each] for each in labels): one.value for one in found if one.name == name}


@pytest.mark.parametrize("metric", METRICS, ids=lambda one: one.name)
def test_names_follow_the_conventions(metric: object) -> None:
    """See prometheus.io/docs/practices/naming.

    Prefix, base units, _total for counters and nothing else, no type in a name, help as a sentence.
    """
    (one,) = [each for each in METRICS if each is metric]
    assert re.fullmatch(r"vnet(_[a-z]+)+", one.name)
    assert one.name.endswith("_total") == (one.kind == "counter")
    assert one.name.endswith("_info") == (one.kind == "info")
    assert not set(one.name.split("_")) & {
        "counter",
        "gauge",
        "milliseconds",
        "kilobytes",
        "bits",
        "percent",
        "ms",
    }
    assert not one.name.endswith(("_count", "_sum", "_bucket"))
    for unit in ("bytes", "seconds"):
        if unit in one.help.lower().split() and one.kind == "counter":
            assert f"_{unit}_total" in one.name
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) and label not in ("le", "quantile", "job", "instance")
               for label in one.labels)  # fmt: skip
    assert one.help.endswith(".") and one.help[0].isupper()


def test_the_page_lists_all_metrics() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", PAGE.read_text(), re.M)
    listed = [(name, kind, labels.replace("`", ""), text) for name, kind, labels, text in rows]
    assert listed == [(one.name, one.kind, ", ".join(one.labels), one.help) for one in METRICS]


def test_every_conntrack_counter_has_its_metric() -> None:
    assert _TABLE_COUNTERS.keys() == asdict(ConntrackStats()).keys()
    names = {one.name for one in METRICS}
    assert {f"vnet_conntrack_{name}_total" for name in _TABLE_COUNTERS.values()} <= names


def link_samples(topology: Topology, limit: int = 2000) -> SampleSet:
    samples = SampleSet(limit)
    labels = unique_labels((inode, topology.label(inode)) for inode in topology.snapshot.namespaces)
    link_metrics = LinkMetrics(samples, topology, LinkStats(0.0), labels)
    for fill in (link_metrics.links, link_metrics.bridges, link_metrics.networks, link_metrics.containers):
        fill()
    return samples


def test_a_small_host() -> None:
    topology = Topology(small_host())
    text = text_of(link_samples(topology))
    assert values(text, "vnet_link_up")["host", "br-app"] == 1
    info = {labels[:2]: labels[2:] for labels in values(text, "vnet_link_info")}
    assert info["host", "veth-web1"][:3] == ("veth", "br-app", "app")
    assert info["web1", "eth0"][3:] == ("web1", "host", "veth-web1")
    members = {labels[1]: value for labels, value in values(text, "vnet_network_containers").items()}
    assert members["app"] == len(
        topology.members(next(one for one in topology.networks if one.name == "app"))
    )
    assert values(text, "vnet_bridge_ports")["host", "br-app"] == 3
    models = {labels[0]: labels[2] for labels in values(text, "vnet_container_info")}
    assert models["web1"] == "bridged"


def test_text_from_outside_is_cleaned() -> None:
    samples = link_samples(Topology(hostile_host()))
    text = text_of(samples)
    samples_parsed = [one for family in text_string_to_metric_families(text) for one in family.samples]
    texts = [value for one in samples_parsed for value in one.labels.values()]
    assert texts and all(value == clean_label(value) and len(value) <= 128 for value in texts)
    assert "\x1b" not in text and "\u202e" not in text
    assert clean_label("a\nb\udcff") == r"a\nb\xff" and len(clean_label("x" * 500)) == 128


def test_equal_names_become_unique() -> None:
    assert unique_labels([(1, "web"), (2, "web"), (3, "db")]) == {1: "web [1]", 2: "web [2]", 3: "db"}
    assert len({*unique_labels([(number, "y" * 300) for number in range(9)]).values()}) == 9


def test_the_number_of_series_is_bounded() -> None:
    topology = Topology(small_host())
    text = text_of(link_samples(topology, limit=4))
    assert len(values(text, "vnet_link_up")) == 4
    links = len([*topology.snapshot.links()])
    assert values(text, "vnet_left_out")["link",] == links - 4


def test_fast_path_numbers() -> None:
    samples = SampleSet()
    fill_fast_path(samples, FastPathNumbers(flows=7, packets=100, left={"fragment": 3, "new\nflow": 1}))
    text = text_of(samples)
    assert values(text, "vnet_fast_path_active")[()] == 1
    assert values(text, "vnet_fast_path_packets_total")[()] == 100
    assert values(text, "vnet_fast_path_kernel_packets_total") == {("fragment",): 3, (r"new\nflow",): 1}
    off = SampleSet()
    fill_fast_path(off, None)
    assert values(text_of(off), "vnet_fast_path_active")[()] == 0
    assert values(text_of(off), "vnet_fast_path_running")[()] == 0


def test_fast_path_numbers_by_link_and_while_it_is_paused() -> None:
    samples = SampleSet(limit=1)
    counted = {"v-web": {"fast": 9, "paused": 1}, "v-db": {"fast": 1}}
    fill_fast_path(samples, FastPathNumbers(packets=10, by_link=counted, forwarding=False))
    text = text_of(samples)
    assert values(text, "vnet_fast_path_active")[()] == 0
    assert values(text, "vnet_fast_path_running")[()] == 1
    found = values(text, "vnet_fast_path_link_packets_total")
    assert found == {("v-web", "fast"): 9, ("v-web", "paused"): 1}
    assert values(text, "vnet_left_out")["fast path link",] == 1


def test_a_failing_part_does_not_affect_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such thing")

    messages: list[str] = []
    monkeypatch.setattr(collecting.firewall, "read_firewall", broken)
    monkeypatch.setattr(collecting, "_SHARED_SECONDS", 0.0)
    server = MetricsServer("127.0.0.1:0", messages.append, broken)
    try:
        for _ in range(2):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=20) as answer:
                text = answer.read().decode()
    finally:
        server.close()
    good = values(text, "vnet_scrape_part_success")
    failed = {part for (part,), value in good.items() if not value}
    assert failed - {"conntrack"} == {"firewall", "fast path"}, "conntrack needs CAP_NET_ADMIN"
    assert values(text, "vnet_link_up")
    expected = [f"can't read {part} for metrics: no such thing" for part in ("firewall", "fast path")]
    assert [one for one in messages if one in expected] == expected, "each messages once"


def test_concurrent_scrapes_share_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_SHARED_SECONDS", 1000.0)
    collector = HostCollector(lambda _: None)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(collector.collect())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8 and all(one is found[0] for one in found)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsServer]:
    """Start a server that reads nothing."""
    monkeypatch.setattr(HostCollector, "collect", lambda _: ())
    made = MetricsServer("127.0.0.1:0", print)
    yield made
    made.close()


def clients_of(server: MetricsServer) -> int:
    return sum("process_request_thread" in each.name for each in threading.enumerate())


def scraped(server: MetricsServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def test_idle_clients_use_few_threads_and_block_no_scraper(server: MetricsServer) -> None:
    with ExitStack() as held:
        idle = [held.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(100)]
        assert "process_" in scraped(server)
        wait_until(lambda: clients_of(server) <= 16)
        assert idle[0].recv(1) == b"", "the one that has been silent longest had to go"
        assert "process_" in scraped(server)


def test_a_request_byte_by_byte_times_out(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_TIMEOUT", 0.5)
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.settimeout(0.05)

        def ended() -> bool:
            try:
                slow.send(b"G")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(ended)
    assert "process_" in scraped(server)


@pytest.mark.parametrize(
    "text", ["", "9742", "localhost", "::1:9742", "[::1]", "h:70000", "h:x", "h:-1", "h:٣"]
)
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(MetricsError, match=r"HOST:PORT|needs brackets"):
        parse_address(text)


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MetricsError, match=f"serve metrics at 127.0.0.1:{port}: Address already in use"):
            MetricsServer(f"127.0.0.1:{port}", print)
    with pytest.raises(MetricsError, match=r"can't serve metrics at nowhere\.invalid:1"):
        MetricsServer("nowhere.invalid:1", print)
    assert parse_address("[::1]:9742") == ("::1", 9742) and parse_address(":9742") == ("", 9742)


def test_the_client_library_is_loaded_only_for_metrics() -> None:
    script = "import sys, tui.cli, tui.cli.agent, core.agent; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
