"""gpuad: automatic differentiation for people who compute with CuPy and NumPy."""

from .convert import asarray, from_dlpack
from .devices import Device, default_device, device, use_device
from .dtype import (
    bfloat16,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .dtype import bool_ as bool
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
from . import data, models, nn, optim, random, tree
from .debug import explain
from .remat import checkpoint
from .tape import backward as _backward
from .operators import operators as _operators
from .tensor import Tensor
from .trace import no_grad
from .transforms import grad, jvp, stop_gradient, value_and_grad, vjp

_operators.backward = _backward
__array_api_version__ = "2024.12"
__version__ = "0.1.0.dev0"
