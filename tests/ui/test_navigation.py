"""The trail, the worker and the inbox: no screen needed."""

from __future__ import annotations

import threading

from core.model import Change, Ref, Snapshot
from tests.support.waiting import PATIENCE
from tests.ui.driver import Picture
from tui.desk import Worker
from tui.navigation import Navigation, Way
from tui.stage import Inbox

WEB, PEER = Ref("container", ("docker", "web")), Ref("link", (1, 2))


def test_the_trail_leads_back() -> None:
    nav = Navigation("containers")
    nav.here.state.ref = WEB
    nav.follow(Way("veths", PEER), "web")
    assert nav.refs == (WEB, PEER)
    assert nav.back()
    assert (nav.here.view, nav.here.state.ref, nav.here.label) == ("containers", WEB, "")
    assert not nav.back()


def test_a_filter_that_was_followed_belongs_to_its_stop() -> None:
    nav = Navigation("containers")
    nav.here.state.sort = "name"
    nav.follow(Way("conntrack", None, "ct:=web"), "web")
    assert (nav.here.filter, nav.here.state.filter, nav.here.state.sort) == ("ct:=web", "ct:=web", "")
    nav.follow(Way("conntrack", WEB), "flow")
    assert (nav.here.filter, nav.here.state.filter) == ("", "")


def test_a_view_is_found_as_it_was_left() -> None:
    nav = Navigation("containers")
    nav.here.state.filter, nav.here.state.sort = "web", "name"
    nav.jump("nat")
    assert nav.here.state.filter == ""
    nav.jump("containers")
    assert (nav.here.state.filter, nav.here.state.sort, nav.previous) == ("web", "name", "nat")


def test_of_many_requests_of_a_kind_the_newest_is_done() -> None:
    gate, done, results = threading.Event(), threading.Event(), []

    def deliver(kind: str, result: object) -> None:
        results.append((kind, result))
        if result == "last":
            done.set()

    worker = Worker(deliver)
    worker.start()
    worker.ask("first", lambda: gate.wait(PATIENCE))
    for number in range(100):
        worker.ask("rows", lambda number=number: number)
    worker.ask("end", lambda: "last")
    gate.set()
    assert done.wait(PATIENCE)
    worker.stop()
    assert results == [("first", True), ("rows", 99), ("end", "last")]


def test_what_the_work_raises_is_delivered() -> None:
    done, results = threading.Event(), []

    def deliver(kind: str, result: object) -> None:
        results.append(result)
        done.set()

    worker = Worker(deliver)
    worker.start()
    worker.ask("rows", lambda: 1 // 0)
    assert done.wait(PATIENCE)
    worker.stop()
    assert isinstance(results[0], ZeroDivisionError)


def test_a_burst_is_one_update_with_all_its_changes() -> None:
    rung: list[int] = []
    inbox = Inbox(lambda: rung.append(1))
    changes = [Change(float(number), "added", WEB, f"change {number}") for number in range(50)]
    last = Snapshot(taken_at=50)
    for number, change in enumerate(changes):
        inbox.put(Picture(last if number == 49 else Snapshot(), changes=(change,)))
    assert len(rung) == 1
    taken = inbox.take()
    assert taken is not None
    assert taken[0].snapshot is last
    assert taken[1] == tuple(changes)
    assert inbox.take() is None
