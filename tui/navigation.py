"""Where the person is: the view in sight, how they got there, and how they left each view."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from core.model import Ref
from tui.present.scene import PLAIN, Lens


@dataclass(slots=True)
class ViewState:
    """How a view was left: order, filter, folds, the thing under the cursor, the scroll position, and how
    flows are looked at."""

    sort: str = ""
    reverse: bool = False
    filter: str = ""
    closed: frozenset[Ref] = frozenset()
    ref: Ref | None = None
    top: int = 0
    lens: Lens = PLAIN


@dataclass(frozen=True, slots=True)
class Way:
    """Where Enter leads: a view, and either a thing in it or a filter that selects several."""

    view: str
    ref: Ref | None
    filter: str = ""


@dataclass(slots=True)
class Stop:
    """One stop on the way: a view, its state there, in words the thing from which the way went on, and the
    filter that it was entered with."""

    view: str
    state: ViewState = field(default_factory=ViewState)
    label: str = ""
    filter: str = ""


class Navigation:
    """The trail of stops from the view that was jumped to, and the view before that."""

    def __init__(self, view: str) -> None:
        self.trail = [Stop(view)]
        self.previous: str | None = None
        self._left: dict[str, ViewState] = {}

    @property
    def here(self) -> Stop:
        """The present stop."""
        return self.trail[-1]

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The things that the trail leads over, the present one last."""
        return tuple(stop.state.ref for stop in self.trail if stop.state.ref is not None)

    def jump(self, view: str) -> None:
        """Begin a new trail in a view, as it was left."""
        first = self.trail[0]
        self._left[first.view] = first.state
        if self.here.view != view:
            self.previous = self.here.view
        self.trail = [Stop(view, self._left.get(view) or ViewState())]

    def follow(self, way: Way, label: str) -> None:
        """Go on from the thing called `label`."""
        here = self.here
        here.label = label
        state = ViewState(filter=way.filter, ref=way.ref)
        if here.view == way.view:
            state.sort, state.reverse = here.state.sort, here.state.reverse
            state.lens = replace(here.state.lens, by="")
        self.trail.append(Stop(way.view, state, filter=way.filter))

    def back(self) -> bool:
        """Go back one stop; False at the first."""
        if len(self.trail) == 1:
            return False
        self.trail.pop()
        self.here.label = ""
        return True
