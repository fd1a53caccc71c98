"""Rematerialization: values computed again for the backward pass instead of kept."""

from .checkpoint import checkpoint as checkpoint
from .policies import checkpoint_name as checkpoint_name
from .policies import names as names
