"""Memory that others can write: what reads it runs at once, and no gradient uses it once it has changed."""

import functools
import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gpuad
from gpuad.buffer import fingerprint
from gpuad.op import Opaque


def borrow(a):
    return gpuad.asarray(a, copy=False)


def line_after(function, text):
    """`file.py:41` for the first line of this file's `function` that contains `text`."""
    lines, start = inspect.getsourcelines(function)
    return f"test_borrowed.py:{start + next(k for k, line in enumerate(lines) if text in line)}"


# --- what a copy promises ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpuad.asarray, functools.partial(gpuad.asarray, copy=True)])
def test_a_copied_import_does_not_see_later_writes(make):
    a = np.array([1.0, 2.0, 3.0])
    x = make(a).requires_grad_()
    y = gpuad.sum(x * x)
    a[:] = 10
    y.backward()
    assert x.numpy().tolist() == [1, 2, 3]
    assert x.grad.numpy().tolist() == [2, 4, 6]


def test_a_borrowed_import_copies_nothing():
    a = np.arange(6.0).reshape(2, 3).T
    assert np.shares_memory(borrow(a).numpy(), a)
    assert borrow(a).numpy().strides == a.strides


def test_a_copy_of_a_borrowed_tensor_is_its_own():
    a = np.ones(3)
    x = borrow(a)
    copies = [gpuad.copy(x), gpuad.asarray(x, copy=True), np.copy(x)]
    a[:] = 5
    assert [c.numpy().tolist() for c in copies] == [[1, 1, 1]] * 3
    assert x.numpy().tolist() == [5, 5, 5]


def test_a_copy_of_a_tensor_is_another_handle():
    x = gpuad.ones(3)
    y = gpuad.asarray(x, copy=True)
    y += 1
    assert x.numpy().tolist() == [1, 1, 1]
    assert gpuad.asarray(x) is x
    assert gpuad.grad(lambda x: gpuad.sum(gpuad.asarray(x, copy=True) * x))(x).numpy().tolist() == [2, 2, 2]


def test_a_borrow_that_would_need_a_copy_is_an_error():
    for call in (
        lambda: gpuad.asarray([1.0, 2.0], copy=False),
        lambda: gpuad.asarray(np.ones(3), dtype="float32", copy=False),
        lambda: gpuad.asarray(np.ones(3, ">f8"), copy=False),
        lambda: gpuad.asarray(gpuad.ones(3), dtype="float64", copy=False),
    ):
        with pytest.raises(ValueError, match="leave copy=False out"):
            call()


# --- forward ----------------------------------------------------------------------------------

OPS = {
    "elementwise": lambda x: gpuad.exp(x) * 2,
    "reduction": lambda x: gpuad.sum(x),
    "row reduction": lambda x: gpuad.sum(x, axis=1),
    "matmul": lambda x: gpuad.matmul(x, x),
    "view, then elementwise": lambda x: gpuad.reshape(x, (-1,)) + 1,
    "slice, then elementwise": lambda x: x[1:] + 1,
    "broadcast, then elementwise": lambda x: gpuad.broadcast_to(x, (2, 2, 2)) + 1,
    "with a pending operand": lambda x: gpuad.sin(gpuad.ones((2, 2), dtype="float64")) + x,
    "concat": lambda x: gpuad.concat([x, x]),
    "take": lambda x: gpuad.take(x, np.array([0, 1]), axis=0),
    "cast": lambda x: x.to("float32"),
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_on_borrowed_memory_runs_at_once(name):
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    expected = OPS[name](gpuad.asarray(a)).numpy()
    y = OPS[name](borrow(a))
    a[:] = -7
    np.testing.assert_array_equal(y.numpy(), expected)


# --- trap T3: a write between forward and backward --------------------------------------------


def square_sum(x):
    return gpuad.sum(x * x)


def by_backward(x):
    x.requires_grad_()
    y = square_sum(x)
    return lambda: (y.backward(), x.grad)[1]


def by_vjp(x):
    y, pull = gpuad.vjp(square_sum, x)
    return lambda: pull(gpuad.ones_like(y))[0]


def by_vjp_of_vjp(x):
    _, pull = gpuad.vjp(lambda x: gpuad.vjp(square_sum, x)[1](gpuad.ones((), dtype="float64"))[0], x)
    return lambda: pull(x.detach())[0]


def by_vjp_of_jvp(x):
    y, pull = gpuad.vjp(lambda x: gpuad.jvp(lambda z: gpuad.sum(z * z * x), (x,), (gpuad.ones_like(x),))[1], x)
    return lambda: pull(gpuad.ones_like(y))[0]


def by_closure(x):
    w = gpuad.asarray(np.ones(x.shape))
    y, pull = gpuad.vjp(lambda w: gpuad.sum(w * x), w)
    return lambda: pull(gpuad.ones_like(y))[0]


MODES = [by_backward, by_vjp, by_vjp_of_jvp, by_closure]
GRADIENTS = {by_backward: [2, 4, 6, 8], by_vjp: [2, 4, 6, 8], by_vjp_of_jvp: [4, 8, 12, 16], by_closure: [1, 2, 3, 4]}
WRITES = {
    "one element": lambda a: a.__setitem__(0, 10.0),
    "all elements": lambda a: a.fill(10.0),
    "signs": lambda a: np.negative(a, out=a),
    "a factor of two": lambda a: np.multiply(a, 2, out=a),
    "a shuffle": lambda a: a.__setitem__(slice(None), a[::-1].copy()),
    "the last bit": lambda a: np.nextafter(a, 9, out=a),
}


def array():
    return np.array([1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_right_if_nobody_writes(mode):
    assert mode(borrow(array()))().numpy().tolist() == GRADIENTS[mode]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("mode", MODES)
def test_a_write_between_forward_and_backward_is_an_error(mode, write):
    a = array()
    gradient = mode(borrow(a))
    WRITES[write](a)
    with pytest.raises(gpuad.MutationError):
        gradient()


def test_a_second_derivative_is_no_wrong_number_either():
    a = array()
    gradient = by_vjp_of_vjp(borrow(a))
    a[0] = 10
    try:
        found = gradient().numpy()
    except gpuad.MutationError:
        return
    np.testing.assert_array_equal(found, 2 * a)  # the Hessian, which is 2, times the cotangent as it is now


def test_a_write_that_is_undone_is_no_error():
    a = array()
    gradient = by_backward(borrow(a))
    a[0] = 10
    a[0] = 1
    assert gradient().numpy().tolist() == [2, 4, 6, 8]


def test_a_write_elsewhere_in_the_array_is_no_error():
    a = array()
    gradient = by_vjp(borrow(a[:2]))
    a[2:] = 10
    assert gradient().numpy().tolist() == [2, 4]


def test_a_write_through_a_view_made_before_the_import_is_an_error():
    a = array()
    view = a[1:3]
    gradient = by_backward(borrow(a))
    view[0] = 10
    with pytest.raises(gpuad.MutationError):
        gradient()


def test_a_write_to_the_base_of_an_imported_view_is_an_error():
    a = np.arange(8.0)
    view = a[::2]
    view.flags.writeable = False
    gradient = by_backward(borrow(view))
    a[2] = 10
    with pytest.raises(gpuad.MutationError):
        gradient()


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x[1:],
        lambda x: gpuad.reshape(x, (2, 2)),
        lambda x: gpuad.permute_dims(gpuad.reshape(x, (2, 2)), (1, 0)),
        lambda x: gpuad.broadcast_to(x, (3, 4)),
        lambda x: gpuad.flip(x),
        lambda x: gpuad.asarray(x),
        lambda x: x.detach(),
        lambda x: gpuad.from_dlpack(x),
    ],
)
def test_a_view_of_borrowed_memory_is_borrowed(look):
    for mode in (by_backward, by_vjp):
        a = array()
        mode(look(borrow(a)))()
        gradient = mode(look(borrow(a)))
        a[:] = 10
        with pytest.raises(gpuad.MutationError):
            gradient()


def test_a_view_that_a_library_function_returns_is_borrowed():
    tail = Opaque("tail", "x", infer=lambda x: ((x.shape[0] - 1,), x.dtype), forward=lambda xp, x: x[1:])
    a = array()
    x = borrow(a)
    y = tail(x)
    z = gpuad.exp(y)
    a[:] = 0
    assert y.numpy().tolist() == [0, 0, 0]
    np.testing.assert_allclose(z.numpy(), np.exp([2.0, 3.0, 4.0]))


def test_writing_after_the_backward_is_fine_and_a_second_sweep_is_checked_again():
    a = array()
    x = borrow(a).requires_grad_()
    y = square_sum(x)
    y.backward(retain_graph=True)
    a[0] = 10
    assert x.grad.numpy().tolist() == [2, 4, 6, 8]
    with pytest.raises(gpuad.MutationError):
        y.backward()


def test_a_gradient_that_does_not_use_the_memory_ignores_writes():
    a = array()
    x = borrow(a).requires_grad_()
    y = gpuad.sum(gpuad.exp(x) + x)
    expected = np.exp(a) + 1
    a[:] = 10
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-12)


def test_rebinding_a_borrowed_tensor_writes_nothing_to_its_owner():
    a = array()
    x = borrow(a)
    x += 1
    x[0] = 7
    assert a.tolist() == [1, 2, 3, 4]
    assert x.numpy().tolist() == [7, 3, 4, 5]


def test_the_graph_of_a_gradient_is_fingerprinted_too():
    a = array()
    x = borrow(a).requires_grad_()
    gpuad.sum(x * x * x).backward(create_graph=True)
    again = gpuad.sum(x.grad)
    assert again.numpy() == 3 * 30
    x.grad = None
    a[0] = 10
    with pytest.raises(gpuad.MutationError):
        again.backward()


# --- DLPack -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_write_by_the_library_that_exported_the_memory_is_an_error(torch, mode):
    t = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert mode(gpuad.from_dlpack(t))().numpy().tolist() == GRADIENTS[mode]
    gradient = mode(gpuad.asarray(t, copy=False))
    t[0] = 10
    with pytest.raises(gpuad.MutationError):
        gradient()


@pytest.mark.parametrize("mode", MODES)
def test_a_write_by_the_library_that_was_lent_the_memory_is_an_error(torch, mode):
    x = gpuad.asarray(array())
    t = torch.from_dlpack(x)
    gradient = mode(x)
    t[0] = 10
    with pytest.raises(gpuad.MutationError):
        gradient()


def test_what_is_computed_from_lent_memory_is_computed_at_once(torch):
    x = gpuad.asarray(array())
    t = torch.from_dlpack(x)
    y = gpuad.exp(x) + gpuad.reshape(gpuad.reshape(x, (2, 2)), (4,))
    t.zero_()
    np.testing.assert_allclose(y.numpy(), np.exp(array()) + array(), rtol=1e-12)


def test_memory_stays_lent_after_the_borrower_is_gone(torch):
    x = gpuad.asarray(array())
    address = torch.from_dlpack(x).data_ptr()
    assert torch.from_dlpack(x).data_ptr() == address
    y = gpuad.exp(x)
    assert y.array.op is None
    assert torch.from_dlpack(x).data_ptr() == address


# --- the message ------------------------------------------------------------------------------


def test_the_error_names_the_import_the_line_that_saved_and_the_fix():
    a = array()
    w = gpuad.ones(3, dtype="float64").requires_grad_()
    x = gpuad.asarray(a, copy=False)  # imported
    y = gpuad.sum(x[1:] * w)  # saved
    a[2] = 10
    with pytest.raises(gpuad.MutationError) as error:
        y.backward()
    text = str(error.value)
    here = test_the_error_names_the_import_the_line_that_saved_and_the_fix
    assert text.startswith("memory that the gradient of multiply() needs was written after it was used\n")
    assert f"float64[3], imported at {line_after(here, '# imported')} without a copy" in text
    assert f"saved by multiply() at {line_after(here, '# saved')}" in text
    assert "asarray(a)" in text


def test_the_error_names_the_loan(torch):
    x = gpuad.asarray(array())  # made
    t = torch.from_dlpack(x)  # lent
    gradient = by_vjp(x)
    t[0] = 10
    with pytest.raises(gpuad.MutationError) as error:
        gradient()
    here = test_the_error_names_the_loan
    made, lent = (re.escape(line_after(here, f"# {word}")) for word in ("made", "lent"))
    assert re.search(rf"float64\[4\], made at {made} and lent through DLPack at {lent}", str(error.value))


# --- the fingerprint --------------------------------------------------------------------------


@given(hnp.arrays(st.sampled_from(["float64", "float32", "int64", "uint8"]), st.integers(1, 40)), st.data())
def test_a_fingerprint_shows_every_write_and_every_shuffle(a, data):
    before, held = fingerprint(a), a.tobytes()
    change = data.draw(st.sampled_from(["write", "shuffle", "negate", "double", "swap"]))
    if change == "write":
        a[data.draw(st.integers(0, a.size - 1))] = data.draw(st.integers(0, 100))
    elif change == "shuffle":
        a = a[np.array(data.draw(st.permutations(range(a.size))))]
    elif change == "negate":
        a = -a
    elif change == "double":
        with np.errstate(over="ignore"):
            a = a * 2
    else:
        a[[0, -1]] = a[[-1, 0]]
    a = a.astype(a.dtype)
    assert (fingerprint(a) == before) == (a.tobytes() == held)


@pytest.mark.parametrize("rows", [2, 3, 4, 8])
def test_a_fingerprint_shows_rows_of_any_length_that_change_places(rows):
    seen = set()
    for width in (1, 8192, 8200):
        powers = 2.0 ** np.arange(rows)
        for order in ([*range(rows)], [*range(rows)][::-1], [1, 0, *range(2, rows)], np.roll(range(rows), 1)):
            seen.add((width, tuple(order), fingerprint(np.repeat(powers[list(order)], width))))
    by_width = {}
    for width, order, print_ in seen:
        by_width.setdefault(width, {}).setdefault(print_, set()).add(order)
    assert all(len(orders) == 1 for prints in by_width.values() for orders in prints.values())


def test_a_fingerprint_shows_what_a_weighted_sum_of_rows_would_not():
    a, b = ([1.0, 3.0, 4.0, 2.0], [1.0, 4.0, 2.0, 3.0])  # sum(p * a[p]) is 17 for both
    assert fingerprint(np.repeat(np.exp2(a), 8192)) != fingerprint(np.repeat(np.exp2(b), 8192))


def test_a_fingerprint_depends_on_the_values_not_the_layout():
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert fingerprint(a.T) == fingerprint(np.ascontiguousarray(a.T))
    assert fingerprint(np.frombuffer(b"x" + a.tobytes(), np.uint8)[1:].view(np.float32)) == fingerprint(a)
    assert fingerprint(np.zeros(3)) != fingerprint(np.zeros(4))
