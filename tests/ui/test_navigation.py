"""Navigation history, worker and update queue, without a screen."""

from __future__ import annotations

import threading

from core.model import Change, Ref, Snapshot
from core.update import Update
from tests.support.waiting import PATIENCE
from tui.presenter import UpdateQueue, Worker
from tui.view_model import Navigation, ViewTarget

WEB, PEER = Ref("container", ("docker", "web")), Ref("link", (1, 2))


def test_back_returns_to_the_previous_entry() -> None:
    nav = Navigation("containers")
    nav.current.state.ref = WEB
    nav.follow(ViewTarget("veths", PEER), "web")
    assert nav.refs == (WEB, PEER)
    assert nav.back()
    assert (nav.current.view, nav.current.state.ref, nav.current.label) == ("containers", WEB, "")
    assert not nav.back()


def test_a_followed_filter_belongs_to_its_history_entry() -> None:
    nav = Navigation("containers")
    nav.current.state.sort = "name"
    nav.follow(ViewTarget("conntrack", None, "ct:=web"), "web")
    assert (nav.current.filter, nav.current.state.filter, nav.current.state.sort) == (
        "ct:=web",
        "ct:=web",
        "",
    )
    nav.follow(ViewTarget("conntrack", WEB), "flow")
    assert (nav.current.filter, nav.current.state.filter) == ("", "")


def test_a_view_keeps_its_filter_and_order() -> None:
    nav = Navigation("containers")
    nav.current.state.filter, nav.current.state.sort = "web", "name"
    nav.jump("nat")
    assert nav.current.state.filter == ""
    nav.jump("containers")
    assert (nav.current.state.filter, nav.current.state.sort, nav.previous) == ("web", "name", "nat")


def test_the_worker_runs_only_the_newest_request_of_a_kind() -> None:
    gate, done, results = threading.Event(), threading.Event(), []

    def deliver(kind: str, result: object) -> None:
        results.append((kind, result))
        if result == "last":
            done.set()

    worker = Worker(deliver)
    worker.start()
    worker.submit("first", lambda: gate.wait(PATIENCE))
    for number in range(100):
        worker.submit("rows", lambda number=number: number)
    worker.submit("end", lambda: "last")
    gate.set()
    assert done.wait(PATIENCE)
    worker.stop()
    assert results == [("first", True), ("rows", 99), ("end", "last")]


def test_an_exception_of_the_worker_is_delivered() -> None:
    done, results = threading.Event(), []

    def deliver(kind: str, result: object) -> None:
        results.append(result)
        done.set()

    worker = Worker(deliver)
    worker.start()
    worker.submit("rows", lambda: 1 // 0)
    assert done.wait(PATIENCE)
    worker.stop()
    assert isinstance(results[0], ZeroDivisionError)


def test_a_burst_becomes_one_update_with_all_changes() -> None:
    notified: list[int] = []
    queue = UpdateQueue(lambda: notified.append(1))
    changes = [Change(float(number), "added", WEB, f"change {number}") for number in range(50)]
    last = Snapshot(taken_at=50)
    for number, change in enumerate(changes):
        queue.put(Update(last if number == 49 else Snapshot(), changes=(change,)))
    assert len(notified) == 1
    taken = queue.pop()
    assert taken is not None
    assert taken[0].snapshot is last
    assert taken[1] == tuple(changes)
    assert queue.pop() is None
