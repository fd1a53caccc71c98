"""Every error gpuad raises, each also the builtin a caller would expect.

GpuadError
    ShapeError (ValueError)            shapes that do not go together
    DTypeError (TypeError)             dtypes that do not go together, or cannot do what is asked
    DeviceError (RuntimeError)         a device that is missing, or tensors on two of them
    EscapedTensorError (RuntimeError)  a tensor used after the transformation that made it returned
    FreedTapeError (RuntimeError)      a tape swept a second time without retain_graph
    MutationError (RuntimeError)       memory a gradient needs was written by someone else
    RecomputeError (RuntimeError)      a checkpointed function computed something else the second time
    CaptureError (RuntimeError)        a checkpointed function reached for other tensors the second time, or a step
                                       cannot be captured
    GradientError (RuntimeError)       a derivative that does not exist was asked for
    NonFiniteError (FloatingPointError)  an infinity or NaN where a step must not have one
    IndexRangeError (IndexError)       an index outside the axis it indexes
    DataError (ValueError)             files or settings that cannot be used
    OutOfMemoryError (MemoryError)     a step that does not fit in the memory it was given
"""

from __future__ import annotations


class GpuadError(Exception):
    """What every error of gpuad is."""


class ShapeError(GpuadError, ValueError):
    """Shapes that do not go together."""


class DTypeError(GpuadError, TypeError):
    """Dtypes that do not go together, or cannot do what is asked of them."""


class DeviceError(GpuadError, RuntimeError):
    """A device that is missing, or tensors that lie on two."""


class EscapedTensorError(GpuadError, RuntimeError):
    """A tensor was used after the transformation that made it had returned."""


class FreedTapeError(GpuadError, RuntimeError):
    """A tape was swept a second time, after the first sweep had freed it."""


class MutationError(GpuadError, RuntimeError):
    """Memory that a gradient needs was written by someone else."""


class RecomputeError(GpuadError, RuntimeError):
    """A checkpointed function computed something else the second time."""


class CaptureError(GpuadError, RuntimeError):
    """A checkpointed function reached for other tensors the second time, or a step cannot be captured."""


class GradientError(GpuadError, RuntimeError):
    """A derivative was asked for that does not exist."""


class NonFiniteError(GpuadError, FloatingPointError):
    """An infinity or a NaN stands where a step must not have one."""


class IndexRangeError(GpuadError, IndexError):
    """An index lies outside the axis it indexes."""


class DataError(GpuadError, ValueError):
    """Files or settings that cannot be used."""


class OutOfMemoryError(GpuadError, MemoryError):
    """A step does not fit in the memory that it was given."""
