"""Plans: what a request would do to this host, worked out from a snapshot alone."""

from core.plan.builder import Plan, Refused
from core.plan.plan import plan, plan_all
from core.plan.tags import OurMember, OurNetwork, OurPort, Ours, ours

__all__ = ["OurMember", "OurNetwork", "OurPort", "Ours", "Plan", "Refused", "ours", "plan", "plan_all"]
