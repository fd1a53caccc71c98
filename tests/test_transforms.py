"""grad, vjp, jvp and backward: nesting, confusion, lifetimes, trees."""

import dataclasses
import threading

import numpy as np
import pytest

import gpuad
from gpuad import EscapedTensorError, FreedTapeError, GradientError, ShapeError, grad, jvp, tree, vjp


def derivative(f):
    """Forward mode as a transformation of scalar functions."""
    return lambda x: jvp(f, (x,), (1.0,))[1]


MODES = [grad, derivative]
two_modes = pytest.mark.parametrize("outer", MODES), pytest.mark.parametrize("inner", MODES)


def both(test):
    for mark in two_modes:
        test = mark(test)
    return test


def number(x):
    return float(gpuad.asarray(x).item())


def f64(x):
    return gpuad.asarray(np.asarray(x, np.float64))


@both
def test_an_inner_derivative_ignores_outer_variables(outer, inner):
    assert number(outer(lambda x: x * inner(lambda y: x + y)(1.0))(1.0)) == 1.0  # Siskind and Pearlmutter, 2005
    assert number(outer(lambda x: inner(lambda y: x)(x) + 0.0 * x)(1.0)) == 0.0
    assert number(outer(lambda x: x * inner(lambda y: x * y)(x))(3.0)) == 6.0
    assert number(outer(lambda x: inner(lambda y: x * y)(2.0))(3.0)) == 1.0


@both
def test_second_derivatives_agree_with_differences(outer, inner):
    f = lambda x: gpuad.sin(x) * gpuad.exp(x) / (1.0 + x * x)
    x, h = 0.7, 1e-4
    difference = (number(grad(f)(f64(x + h))) - number(grad(f)(f64(x - h)))) / (2 * h)
    assert number(outer(inner(f))(f64(x))) == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("a", MODES)
@pytest.mark.parametrize("b", MODES)
@pytest.mark.parametrize("c", MODES)
def test_third_derivatives_agree_in_every_combination(a, b, c):
    f = lambda x: gpuad.tanh(x) * x
    x = 0.3
    t = np.tanh(x)
    s = 1 - t * t
    expected = 3 * (-2 * t * s) + x * (-2 * s * s + 4 * t * t * s)  # of x tanh x, three times by hand
    assert number(a(b(c(f)))(f64(x))) == pytest.approx(expected, abs=1e-12)


@both
def test_confusion_to_third_order(outer, inner):
    # d/dx of x * d/dy (x * d/dz (x + y + z) at y) at x: the innermost is 1, the middle 0, whatever the modes
    f = lambda x: x * inner(lambda y: x * outer(lambda z: x + y + z * y)(y) * y)(x)
    # inner function of y: x * y * y (as d/dz = y), its derivative 2 x y at y = x: 2 x^2; f = 2 x^3, f' = 6 x^2
    assert number(outer(f)(f64(1.5))) == pytest.approx(13.5)


def test_an_escaped_tensor_is_an_error_that_names_its_line():
    kept = []
    grad(lambda x: (kept.append(x), x * x)[1])(2.0)
    with pytest.raises(EscapedTensorError, match=r"outlived the grad\(\) call.*\n.*test_transforms.py"):
        kept[0] * 2.0
    with pytest.raises(EscapedTensorError):
        grad(lambda y: y * kept[0])(1.0)


def test_a_closure_over_a_tangent_is_an_error_outside():
    # Manzyuk et al., 2012: differentiating a function that returns a closure
    shifted = lambda offset: lambda f: lambda x: f(x + offset)
    out = []
    jvp(lambda o: (out.append(shifted(o)), o)[1], (0.0,), (1.0,))
    with pytest.raises(EscapedTensorError):
        out[0](gpuad.exp)(1.0)


def test_backward_collects_gradients_and_can_be_differentiated():
    w = f64(2.0).requires_grad_()
    (w * w * w).backward(create_graph=True)
    first = w.grad
    assert number(first) == 12.0
    w.grad = None
    first.backward()
    assert number(w.grad) == 12.0


def test_a_second_backward_needs_retain_graph():
    w = f64(2.0).requires_grad_()
    y = gpuad.sin(w)
    y.backward(retain_graph=True)
    y.backward()
    assert number(w.grad) == pytest.approx(2 * np.cos(2.0))
    with pytest.raises(FreedTapeError, match=r"sin\(\) at test_transforms.py:\d+.*\n.*retain_graph=True"):
        y.backward()


def test_a_functional_gradient_stays_attached_to_what_it_closes_over():
    w = f64(3.0).requires_grad_()
    g = grad(lambda x: w * x * x)(2.0)
    assert number(g) == 12.0
    g.backward()
    assert number(w.grad) == 4.0


def test_a_functional_gradient_leaves_the_history_of_its_arguments_behind():
    w = f64([1.0, 2.0]).requires_grad_()
    g = grad(lambda w: gpuad.sum(w * w))(w)
    assert not g.requires_grad
    assert g.tolist() == [2.0, 4.0]


def test_no_grad_blinds_the_transformations_opened_before_it():
    def f(x):
        with gpuad.no_grad():
            c = x * x
        return c * x

    assert number(grad(f)(3.0)) == 9.0
    with gpuad.no_grad():
        assert number(grad(lambda x: x * x)(3.0)) == 6.0
    w = f64(1.0).requires_grad_()
    with gpuad.no_grad():
        assert not (w * w).requires_grad


def test_stop_gradient_and_detach_are_constants():
    assert number(grad(lambda x: x * gpuad.stop_gradient(x))(3.0)) == 3.0
    assert number(grad(lambda x: x * x.detach())(3.0)) == 3.0
    assert number(derivative(lambda x: x * x.detach())(3.0)) == 3.0


def test_trees_go_in_and_come_out():
    params = {"w": f64([[1.0, 2.0], [3.0, 4.0]]), "b": [f64([0.5, 0.5]), None]}
    x = f64([1.0, -1.0])

    def loss(p, x):
        y = p["w"] @ gpuad.reshape(x, (2, 1))
        return gpuad.sum(gpuad.reshape(y, (2,)) * p["b"][0]), {"y": y}

    (value, aux), g = gpuad.value_and_grad(loss, has_aux=True)(params, x)
    assert number(value) == -1.0
    assert aux["y"].shape == (2, 1) and not aux["y"].requires_grad
    assert g["w"].tolist() == [[0.5, -0.5], [0.5, -0.5]] and g["b"][0].tolist() == [-1.0, -1.0] and g["b"][1] is None
    gw, gx = grad(lambda p, x: loss(p, x)[0], argnums=(0, 1))(params, x)
    assert gx.tolist() == [2.0, 3.0] and gw["b"][0].tolist() == [-1.0, -1.0]


def test_vjp_of_several_outputs_takes_a_tree_of_cotangents():
    (y, z), pull = vjp(lambda x, w: (x * w, x + w), f64(2.0), f64(5.0))
    assert (number(y), number(z)) == (10.0, 7.0)
    assert tuple(map(number, pull((1.0, 0.0)))) == (5.0, 2.0)
    assert tuple(map(number, pull((0.0, 1.0)))) == (1.0, 1.0)


def test_a_pullback_can_be_used_again_and_differentiated():
    _, pull = vjp(lambda x: gpuad.sin(x) * x, f64(0.5))
    slope = number(pull(1.0)[0])
    assert number(pull(1.0)[0]) == slope
    assert number(grad(lambda g: pull(g)[0])(f64(3.0))) == pytest.approx(slope)


def test_what_does_not_depend_has_a_zero_gradient():
    g = grad(lambda x, y: gpuad.sum(x))(f64([1.0, 2.0]), f64(1.0))
    assert g.tolist() == [1.0, 1.0]
    assert grad(lambda x, y: gpuad.sum(x), argnums=1)(f64([1.0]), f64([1.0, 2.0])).tolist() == [0.0, 0.0]


def test_control_flow_follows_the_values():
    f = lambda x: x * x if x > 0.0 else -x
    assert number(grad(f)(3.0)) == 6.0
    assert number(grad(f)(-3.0)) == -1.0


def test_transformations_on_threads_do_not_share_levels():
    a_in, b_in, a_out, results = threading.Event(), threading.Event(), threading.Event(), []

    def first():
        def f(x):
            a_in.set()
            b_in.wait()
            return x * x

        grad(f)(1.0)
        a_out.set()

    def second():
        a_in.wait()

        def outer(x):
            b_in.set()
            a_out.wait()
            return x * grad(lambda y: x * x * y)(1.0)

        results.append(number(grad(outer)(2.0)))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == [12.0]


def test_a_thread_may_use_a_tensor_being_differentiated():
    def f(x):
        found = []
        worker = threading.Thread(target=lambda: found.append(grad(lambda y: y * y * x)(2.0)))
        worker.start()
        worker.join()
        return found[0] * x  # 4 x * x

    assert number(grad(f)(3.0)) == 24.0


def test_an_exception_leaves_nothing_open():
    def bad(x):
        raise ValueError("from the function")

    with pytest.raises(ValueError, match="from the function"):
        grad(bad)(1.0)
    assert number(grad(lambda x: x * x)(3.0)) == 6.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: grad(lambda x: x)(f64([1.0, 2.0])), ShapeError, r"scalar, got float64\[2\]"),
        (lambda: grad(lambda x: x)(gpuad.asarray([1, 2])), gpuad.DTypeError, r"floating-point tensors, got int64\[2\]"),
        (lambda: gpuad.asarray([1, 2]).requires_grad_(), gpuad.DTypeError, r"int64\[2\] cannot require grad"),
        (
            lambda: f64([1.0, 2.0]).requires_grad_().backward(),
            ShapeError,
            r"scalar, got float64\[2\] at test_transforms.py",
        ),
        (lambda: f64(1.0).backward(), GradientError, r"requires_grad_\(\)"),
        (lambda: grad(lambda x: x.backward())(1.0), GradientError, r"inside grad\(\)"),
        (lambda: grad(lambda x: x.requires_grad_())(1.0), GradientError, r"inside grad\(\)"),
        (lambda: grad(lambda x: gpuad.asarray(x.numpy()))(1.0), GradientError, "lose its derivative"),
        (
            lambda: jvp(lambda x: x, (f64([1.0]),), (f64([1.0, 2.0]),)),
            ShapeError,
            r"tangent float64\[2\] for float64\[1\]",
        ),
        (lambda: jvp(lambda x: x, (f64(1.0),), (f64(1.0), f64(1.0))), gpuad.GpuadError, "tangents"),
        (lambda: grad(lambda x: x, argnums=2)(1.0), gpuad.GpuadError, "argument 2"),
        (lambda: jvp(lambda x: x, f64(1.0), f64(1.0)), gpuad.GpuadError, r"primals as a tuple"),
        (lambda: gpuad.device(0), gpuad.DeviceError, "a device has a name"),
        (
            lambda: setattr(f64(1.0).requires_grad_(), "grad", 3),
            gpuad.DTypeError,
            "a gradient is a tensor or None, got int",
        ),
        (lambda: gpuad.optim.Adam(gpuad.nn.Linear(2, 2), 0.1), gpuad.DTypeError, r"pass model.parameters\(\)"),
        (lambda: gpuad.optim.SGD([f64([1.0])], 0.1).step(), GradientError, r"requires_grad_\(\)"),
        (lambda: gpuad.explain(3), gpuad.DTypeError, "explain"),
        (lambda: f64([1.0, 2.0]).T, ShapeError, "transpose of a matrix"),
        (
            lambda: f64([1.0, 2.0]) + f64([1.0, 2.0, 3.0]),
            ShapeError,
            r"add\(\) cannot broadcast float64\[2\] and float64\[3\]",
        ),
        (
            lambda: f64([1.0]) + gpuad.asarray([1.0], device="meta"),
            gpuad.DeviceError,
            r"float64\[1\] on cpu and float32\[1\] on meta",
        ),
    ],
)
def test_bad_input_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_value_of_an_escaped_tensor_is_an_error_too():
    kept = []
    grad(lambda x: (kept.append(x), x * x)[1])(2.0)
    for read in (lambda x: x.numpy(), lambda x: x.item(), float, lambda x: x.tolist()):
        with pytest.raises(EscapedTensorError, match="outlived"):
            read(kept[0])


def test_numbers_read_inside_a_transformation_are_an_error():
    import math

    for read in (math.sin, float, lambda x: x.item(), lambda x: x.tolist()):
        with pytest.raises(GradientError, match=r"lose its derivative at test_transforms.py:\d+"):
            grad(lambda x, read=read: x * read(x))(2.0)


def test_a_dataclass_may_be_a_tree():
    @tree.register_dataclass
    @dataclasses.dataclass
    class Line:
        slope: object
        offset: object

    g = grad(lambda line: line.slope * 3.0 + line.offset * line.offset)(Line(f64(2.0), f64(5.0)))
    assert (type(g), number(g.slope), number(g.offset)) == (Line, 3.0, 10.0)


def test_structures_of_trees_compare_and_count():
    leaves, structure = tree.flatten({"b": 1, "a": (2, [3, None])})
    assert leaves == [2, 3, 1] and structure.size == 3
    assert structure.unflatten([5, 6, 7]) == {"a": (5, [6, None]), "b": 7}
    assert tree.map(lambda x, y: x + y, [1, (2,)], [3, (4,)]) == [4, (6,)]
    with pytest.raises(gpuad.GpuadError, match="trees differ"):
        tree.map(lambda x, y: x, [1], (1,))
