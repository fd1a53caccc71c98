"""gpuad: automatic differentiation for people who compute with CuPy and NumPy.

The namespace follows the Python array API standard; `grad`, `vjp`, `jvp` are those of JAX, `.backward()`, `nn` and
`optim` those of PyTorch.
"""

import importlib as _importlib
from math import e as e
from math import inf as inf
from math import nan as nan
from math import pi as pi
from typing import TYPE_CHECKING as _TYPE_CHECKING

from . import random as random
from . import tree as tree
from .convert import asarray as asarray
from .convert import from_dlpack as from_dlpack
from .debug import eager as eager
from .debug import explain as explain
from .devices import Device as Device
from .devices import default_device as default_device
from .devices import device as device
from .devices import use_device as use_device
from .dtype import bfloat16 as bfloat16
from .dtype import bool_ as bool
from .dtype import can_cast as can_cast
from .dtype import finfo as finfo
from .dtype import float16 as float16
from .dtype import float32 as float32
from .dtype import float64 as float64
from .dtype import iinfo as iinfo
from .dtype import int8 as int8
from .dtype import int16 as int16
from .dtype import int32 as int32
from .dtype import int64 as int64
from .dtype import isdtype as isdtype
from .dtype import result_type as result_type
from .dtype import uint8 as uint8
from .dtype import uint16 as uint16
from .dtype import uint32 as uint32
from .dtype import uint64 as uint64
from .errors import *
from .ops.activations import *
from .ops.compare import *
from .ops.copying import *
from .ops.create import *
from .ops.cumulative import *
from .ops.einsum import *
from .ops.elementwise import *
from .ops.index import *
from .ops.join import *
from .ops.linalg import *
from .ops.reduce import *
from .ops.shape import *
from .ops.sort import *
from .remat import checkpoint as checkpoint
from .remat import checkpoint_name as checkpoint_name
from .remat import names as names
from .replay import capture as capture
from .tape import backward as _backward  # enters Tensor.backward
from .tensor import Tensor as Tensor
from .trace import no_grad as no_grad
from .transforms import grad as grad
from .transforms import jvp as jvp
from .transforms import stop_gradient as stop_gradient
from .transforms import value_and_grad as value_and_grad
from .transforms import vjp as vjp

if _TYPE_CHECKING:
    from . import data as data
    from . import memory as memory
    from . import models as models
    from . import nn as nn
    from . import optim as optim
    from .memory.plan import checkpoint_sequential as checkpoint_sequential

newaxis = None
__array_api_version__ = "2024.12"
__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> object:
    """What not every program needs is imported when it is first asked for: `gpuad.nn`, `optim`, and so on."""
    if name in ("data", "memory", "models", "nn", "optim"):
        return _importlib.import_module(f"gpuad.{name}")
    if name == "checkpoint_sequential":
        found: object = getattr(_importlib.import_module("gpuad.memory.plan"), name)
        return found
    raise AttributeError(f"module 'gpuad' has no attribute {name!r}")
