"""Where memory goes: the ledger of a run, the dry run of one, what the driver says, and reports of all of it."""

from .ledger import profile
from .profile import Block, Mark, Profile, Row

__all__ = ["Block", "Mark", "Profile", "Row", "profile"]
