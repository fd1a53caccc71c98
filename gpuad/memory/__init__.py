"""Where memory goes: the ledger of a run, the dry run of one, what the driver says, and reports of all of it."""

from .difference import difference
from .dryrun import dry, estimate
from .ledger import profile
from .limits import certify, smallest_limit
from .plan import Plan, plan
from .profile import Block, Mark, Profile, Row
from .reconcile import reconciled
from .report import Report

__all__ = [
    "Block",
    "Mark",
    "Plan",
    "Profile",
    "Report",
    "Row",
    "certify",
    "difference",
    "dry",
    "estimate",
    "plan",
    "profile",
    "reconciled",
    "smallest_limit",
]
