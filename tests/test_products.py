"""Products of matrices on the compiled engine: by tiles, in any layout, with bits that threads do not change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpuad
from gpuad.devices import cpu_products as products
from gpuad.fuse import engines, threads

pytestmark = pytest.mark.skipif(engines.engine() != "compiled", reason="needs the compiled engine")


def values(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def laid_out(x, how):
    """`x` with its matrices in other memory."""
    if how == "turned":
        return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    if how == "wide rows":
        room = np.full((*x.shape[:-1], 2 * x.shape[-1] + 1), np.nan, x.dtype)
        room[..., : x.shape[-1]] = x
        return room[..., : x.shape[-1]]
    if how == "every other":
        room = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
        room[..., ::2] = x
        return room[..., ::2]
    if how == "backwards":
        return np.ascontiguousarray(x[..., ::-1, :])[..., ::-1, :]
    return x


LAYOUTS = st.sampled_from(["plain", "turned", "wide rows", "every other", "backwards"])
SIZES = st.sampled_from([0, 1, 2, 7, 64, 129, 300])


@given(SIZES, SIZES, SIZES, st.sampled_from([(), (1,), (3,), (2, 3)]), LAYOUTS, LAYOUTS, st.sampled_from("fd"))
def test_product_is_that_of_float64(m, k, n, batch, of_a, of_b, dtype):
    a, b = laid_out(values((*batch, m, k), dtype), of_a), laid_out(values((*batch, k, n), dtype, 1), of_b)
    out = np.full((*batch, m, n), np.nan, dtype)
    products.multiply(a, b, out)
    tolerance = (1e-5 if dtype == "f" else 1e-13) * max(k, 1)
    np.testing.assert_allclose(out, a.astype(np.float64) @ b.astype(np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "shapes", [((5, 200, 30), (30, 400)), ((200, 30), (4, 30, 100)), ((2, 1, 90, 70), (3, 70, 90))]
)
def test_batches_are_broadcast(shapes):
    a, b = (values(shape, np.float32, k) for k, shape in enumerate(shapes))
    expected = np.matmul(a.astype(np.float64), b.astype(np.float64))
    out = np.full(expected.shape, np.nan, np.float32)
    products.multiply(a, b, out)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_add_up_in_float32(dtype):
    a, b = (gpuad.asarray(values((100, 100), np.float32, k)).to(dtype) for k in range(2))
    exact = a.to("float32").numpy().astype(np.float64) @ b.to("float32").numpy().astype(np.float64)
    step = 2.0 ** (-8 if dtype == "bfloat16" else -11)
    np.testing.assert_allclose((a @ b).to("float32").numpy(), exact, rtol=step, atol=1e-3)


@pytest.mark.parametrize("shape", [(1024, 128, 384), (384, 1024, 128), (129, 65, 257), (33, 4000, 35)])
@pytest.mark.parametrize("how", ["plain", "turned"])
def test_threads_do_not_show_in_the_bits(monkeypatch, shape, how):
    m, k, n = shape
    a, b = laid_out(values((m, k), np.float32), how), laid_out(values((k, n), np.float32, 1), how)
    found = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "count", lambda count=count: count)
        out = np.empty((m, n), np.float32)
        products.multiply(a, b, out)
        found.append(out.tobytes())
    assert len(set(found)) == 1


@given(st.integers(1, 20), *[st.integers(1, 5000)] * 3)
def test_tiles_are_enough_or_small(count, m, n, k):
    rows, columns = products.tile(count, m, n, k)
    assert 1 <= rows <= products.TILE[0] and 1 <= columns <= products.TILE[1]
    tiles = count * -(-m // rows) * -(-n // columns)
    assert tiles >= products.TILES or rows * columns * k <= products.LEAST


def test_numpys_own_products_keep_their_threads():
    blas = products._blas()
    if blas is None:
        pytest.skip("NumPy's BLAS library is not OpenBLAS")
    before = blas.get_threads()
    products.multiply(values((300, 300), "f"), values((300, 300), "f"), np.empty((300, 300), "f"))
    assert blas.get_threads() == before


@pytest.mark.parametrize("name", ["matmul", "linear", "linear_weight"])
@pytest.mark.parametrize("strided", [False, True])
def test_a_bound_product_reads_its_operands_anew(name, strided):
    shape = (4, 100, 80)
    a = values(shape, "f") if not strided else values((4, 80, 100), "f").swapaxes(1, 2)
    b = {"matmul": values((80, 90), "f"), "linear": values((90, 80), "f"), "linear_weight": values((4, 100, 60), "f")}[
        name
    ]
    arrays = (a, b) if name != "linear_weight" else (b, a)
    expected = {
        "matmul": lambda: a @ b,
        "linear": lambda: a @ b.T,
        "linear_weight": lambda: np.einsum("brn,brk->nk", b, a),
    }
    out = np.empty(expected[name]().shape, "f")
    again = products.PRODUCTS[name].bound(*arrays, out)
    a += 1
    b *= 2
    again()
    np.testing.assert_allclose(out, expected[name](), rtol=1e-4, atol=1e-3)


def test_numpy_computes_where_there_is_no_openblas(monkeypatch):
    monkeypatch.setattr(products, "_blas", lambda: None)
    x = gpuad.asarray(values((200, 200), "f"))
    np.testing.assert_allclose((x @ x).numpy(), x.numpy() @ x.numpy(), rtol=1e-5, atol=1e-4)
