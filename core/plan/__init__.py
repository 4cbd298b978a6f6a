"""Compute from a snapshot which operations a request needs on this host."""

from core.plan.builder import Plan, Refused
from core.plan.plan import plan, plan_all
from core.plan.tags import OurMember, OurNetwork, OurPort, Ours, ours

__all__ = ["OurMember", "OurNetwork", "OurPort", "Ours", "Plan", "Refused", "ours", "plan", "plan_all"]
