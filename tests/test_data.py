"""Text as bytes: which files, what is held out, that batches resume, and the n-gram losses."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from gpuad.data import ByteDataset, batches, find_text_files, held_out_windows, ngram_loss, standard_library_files
from gpuad.errors import DataError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gpuad"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty files of a hundred bytes, each of one letter."""
    folder = tmp_path / "text"
    folder.mkdir()
    for letter in "abcdefghijklmnopqrst":
        (folder / f"{letter}.txt").write_text(letter * 100)
    return folder


def as_bytes(text: str | bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)


def ramp(size: int) -> npt.NDArray[np.uint8]:
    """Bytes that tell where they were: no two windows of up to 251 are alike below 251 * 256 bytes."""
    where = np.arange(size)
    return ((where % 251) ^ (where // 251)).astype(np.uint8)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_folder_stands_for_the_text_files_below_it(folder: Path) -> None:
    for path in ("deep/er/z.md", ".hidden/a.txt", "__pycache__/a.txt"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text("text")
    (folder / ".secret").write_text("text")
    (folder / "image.png").write_bytes(b"\x89PNG\0\0")
    (folder / "empty.txt").touch()
    os.symlink(folder, folder / "loop")
    names = [path.relative_to(folder).as_posix() for path in find_text_files([folder])]
    assert names == sorted([f"{letter}.txt" for letter in "abcdefghijklmnopqrst"] + ["deep/er/z.md"])


def test_a_file_found_twice_counts_once(folder: Path) -> None:
    once = find_text_files(folder)
    os.symlink(folder / "a.txt", folder / "b-link.txt")
    assert find_text_files([folder / "b-link.txt", folder, folder / "a.txt"]) == once


def test_a_binary_file_named_directly_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\0\1")
    assert find_text_files([tmp_path / "x.bin"]) == [tmp_path / "x.bin"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing.txt", "missing.txt does not exist"),
        ("empty.txt", "empty.txt is empty"),
        ("bare", "no text files in .*bare"),
        ("circle", "circle cannot be read: .*symbolic links"),
        ("pipe", "pipe is not a regular file"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_names_the_path(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "binary").write_bytes(b"\0")
    os.symlink(tmp_path / "circle", tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=message):
        find_text_files([tmp_path / name])


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_an_error(folder: Path) -> None:
    (folder / "a.txt").chmod(0)
    with pytest.raises(DataError, match=r"a\.txt cannot be read: Permission denied"):
        find_text_files(folder)


def test_a_folder_is_no_file_of_a_dataset(folder: Path) -> None:
    with pytest.raises(DataError, match="is a folder\n  list its files with find_text_files"):
        ByteDataset(folder)


def test_no_paths_are_an_error() -> None:
    with pytest.raises(DataError, match="no paths"):
        find_text_files([])
    with pytest.raises(DataError, match="no files"):
        ByteDataset([])


def test_the_standard_library_is_plenty_without_tests_and_packages() -> None:
    files = standard_library_files()
    assert files == sorted(files) == standard_library_files()
    assert sum(file.stat().st_size for file in files) > 4_000_000
    assert {"argparse.py", "typing.py"} <= {file.name for file in files}
    assert not {"site-packages", "test", "tests"} & {part for file in files for part in file.parts[-3:-1]}


# ---- dataset ---------------------------------------------------------------------------------------------------------


def test_train_and_held_out_share_no_file_and_lose_no_byte(folder: Path) -> None:
    data = ByteDataset(find_text_files(folder))
    assert data.held_out.size == 200 and data.train.size == 1800
    assert not set(data.held_out.tolist()) & set(data.train.tolist())
    assert Counter(data.train.tolist() + data.held_out.tolist()) == {byte: 100 for byte in b"abcdefghijklmnopqrst"}
    assert b"".join(path.read_bytes() for path in data.held_out_files) == data.held_out.tobytes()
    assert b"".join(path.read_bytes() for path in data.train_files) == data.train.tobytes()
    assert data.describe() == "2.0 kB in 20 files, 200 bytes held out"


def test_the_split_depends_on_names_alone(folder: Path, tmp_path: Path) -> None:
    data = ByteDataset(find_text_files(folder))
    moved = folder.rename(tmp_path / "elsewhere")
    again = ByteDataset(reversed(find_text_files(moved)))
    assert again.digest == data.digest
    assert [path.name for path in again.held_out_files] == [path.name for path in data.held_out_files]
    assert np.array_equal(again.held_out, data.held_out)


def test_of_one_file_the_tail_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(ramp(1000).tobytes())
    data = ByteDataset([tmp_path / "one.txt"], fraction=0.2)
    assert np.array_equal(data.train, ramp(1000)[:800]) and np.array_equal(data.held_out, ramp(1000)[800:])
    assert data.train_files == data.held_out_files == [tmp_path / "one.txt"]
    assert data.describe() == "1.0 kB in 1 file, 200 bytes held out"


def test_of_files_too_large_for_the_fraction_the_smallest_is_held_out(tmp_path: Path) -> None:
    for name, size in (("a", 500), ("b", 400), ("c", 600)):
        (tmp_path / name).write_text(name * size)
    assert ByteDataset([tmp_path / name for name in "abc"]).held_out_files == [tmp_path / "b"]


def test_the_digest_shows_another_content_and_another_split(folder: Path) -> None:
    files = find_text_files(folder)
    digests = {ByteDataset(files).digest, ByteDataset(files, fraction=0.3).digest}
    (folder / "a.txt").write_text("a" * 99 + "!")
    digests.add(ByteDataset(files).digest)
    assert len(digests) == 3


def test_a_fraction_outside_0_to_1_is_an_error(folder: Path) -> None:
    for fraction in (0.0, 1.0, math.nan):
        with pytest.raises(DataError, match="fraction"):
            ByteDataset(find_text_files(folder), fraction=fraction)


def test_the_arrays_are_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = ByteDataset(folder / "a.txt")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    in_memory = ByteDataset(folder / "a.txt")
    assert mapped.cache is not None and in_memory.cache is None
    for part in (mapped.train, mapped.held_out, in_memory.train, in_memory.held_out):
        assert type(part) is np.ndarray
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0


def test_without_a_cache_the_data_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = ByteDataset(find_text_files(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    in_memory = ByteDataset(find_text_files(folder))
    assert in_memory.digest == mapped.digest
    assert np.array_equal(in_memory.train, mapped.train) and np.array_equal(in_memory.held_out, mapped.held_out)


# ---- cache -----------------------------------------------------------------------------------------------------------


def test_the_cache_is_private_and_used_again(folder: Path, cache_folder: Path) -> None:
    first = ByteDataset(find_text_files(folder))
    assert first.cache is not None and first.cache.parent == cache_folder
    assert cache_folder.stat().st_mode & 0o777 == 0o700 and first.cache.stat().st_mode & 0o777 == 0o600
    written = first.cache.stat()
    second = ByteDataset(find_text_files(folder))
    assert second.cache == first.cache and second.digest == first.digest
    assert (second.cache.stat().st_ino, second.cache.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_a_damaged_cache_is_rebuilt(folder: Path) -> None:
    good = ByteDataset(find_text_files(folder))
    assert good.cache is not None
    whole = good.cache.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for damaged in (b"", whole[:40], whole[:-1], whole + b"x", b"x" * len(whole), bytes(flipped)):
        os.unlink(good.cache)  # not in place: `good` maps it
        good.cache.write_bytes(damaged)
        again = ByteDataset(find_text_files(folder))
        assert again.digest == good.digest and np.array_equal(again.train, good.train)
        assert good.cache.read_bytes() == whole


def test_a_failed_write_leaves_no_file(folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    data = ByteDataset(find_text_files(folder))
    assert data.cache is None and data.train.size == 1800
    assert list(cache_folder.iterdir()) == []


def test_an_edit_of_the_same_size_is_seen_and_drops_the_old_cache(folder: Path, cache_folder: Path) -> None:
    file = folder / "a.txt"
    before, times = ByteDataset(file), file.stat()
    file.write_text("b" * 100)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = ByteDataset(file)
    assert before.train[0] == ord("a") and after.train[0] == ord("b")
    assert list(cache_folder.iterdir()) == [after.cache]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
def test_a_cache_folder_that_others_can_write_is_not_used(folder: Path, cache_folder: Path) -> None:
    cache_folder.mkdir(parents=True)
    cache_folder.chmod(0o777)
    assert ByteDataset(folder / "a.txt").cache is None and list(cache_folder.iterdir()) == []


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_int64_windows_of_the_data() -> None:
    data = ramp(5000)
    all_windows = {data[k : k + 11].tobytes() for k in range(data.size - 10)}
    for batch in islice(batches(data, batch=4, length=10, seed=3), 200):
        assert batch.dtype == np.int64 and batch.shape == (4, 11)
        assert {row.astype(np.uint8).tobytes() for row in batch} <= all_windows


@pytest.mark.parametrize("size", [3000, 90, 23, 11])  # many windows, a few, two, one: batches that span epochs
def test_batches_resume_at_any_step_bit_for_bit(size: int) -> None:
    whole = list(islice(batches(ramp(size), batch=7, length=10, seed=5), 60))
    for step in (0, 1, 38, 39, 59):
        resumed = next(batches(ramp(size), batch=7, length=10, seed=5, start_step=step))
        assert np.array_equal(resumed, whole[step])


def test_batches_are_the_same_in_another_process_and_for_ever() -> None:
    code = (
        "import numpy as np; from gpuad.data import batches\n"
        "data = np.arange(250, dtype=np.uint8)\n"
        "print(next(batches(data, batch=6, length=4, seed=1, start_step=20))[:, 0].tolist())"
    )
    root = Path(__file__).parents[1]
    seen = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert seen.strip() == "[19, 209, 24, 189, 229, 79]"


def test_an_epoch_takes_each_window_once_at_an_offset_of_its_own() -> None:
    data = np.arange(250, dtype=np.uint8)  # a byte's value is its position; 49 windows of 5 fit at every offset
    firsts = [int(batch[0, 0]) for batch in islice(batches(data, batch=1, length=4, seed=0), 49 * 20)]
    offsets = set()
    for epoch in range(20):
        starts = firsts[epoch * 49 : epoch * 49 + 49]
        assert starts != sorted(starts) and len(set(starts)) == 49
        assert len({start % 5 for start in starts}) == 1
        offsets.add(starts[0] % 5)
    assert offsets == {0, 1, 2, 3, 4}


def test_another_seed_is_another_order() -> None:
    first, second = (next(batches(ramp(5000), batch=8, length=10, seed=seed)) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_too_little_data_is_an_error_that_counts_bytes() -> None:
    with pytest.raises(DataError, match="got 10 bytes, and one window of length=10 needs 11"):
        batches(ramp(10), batch=1, length=10, seed=0)
    with pytest.raises(DataError, match="got 10 bytes, and one window of length=10 needs 11"):
        held_out_windows(ramp(10), batch=1, length=10, windows=1)


def test_arguments_without_meaning_are_errors_at_the_call() -> None:
    data = ramp(100)
    with pytest.raises(DataError, match="batch=0"):
        batches(data, batch=0, length=10, seed=0)
    with pytest.raises(DataError, match="seed=-1"):
        batches(data, batch=1, length=10, seed=-1)
    with pytest.raises(DataError, match="start_step=-1"):
        batches(data, batch=1, length=10, seed=0, start_step=-1)
    with pytest.raises(DataError, match=r"int64\[100\]"):
        batches(data.astype(np.int64), batch=1, length=10, seed=0)
    with pytest.raises(DataError, match="windows=0"):
        held_out_windows(data, batch=1, length=10, windows=0)


def test_held_out_windows_are_even_and_do_not_overlap() -> None:
    data = np.arange(200, dtype=np.uint8)
    windows = held_out_windows(data, batch=3, length=9, windows=6)
    assert [window[:, 0].tolist() for window in windows] == [[0, 38, 76], [114, 152, 190]]
    assert all(window.dtype == np.int64 and window.shape == (3, 10) for window in windows)
    assert windows[1][2].tolist() == list(range(190, 200))


def test_held_out_windows_weigh_every_byte_alike() -> None:
    data = np.arange(200, dtype=np.uint8)
    assert [w.shape for w in held_out_windows(data, batch=8, length=9, windows=1000)] == [(8, 10), (8, 10)]
    assert [w.shape for w in held_out_windows(data, batch=64, length=9, windows=1000)] == [(20, 10)]


# ---- n-grams ---------------------------------------------------------------------------------------------------------


def by_dictionary(train: bytes, held_out: bytes, order: int) -> float:
    """The reference for ngram_loss: the same rule, one byte at a time."""
    followers: dict[bytes, Counter[int]] = {}
    for n in range(order):
        for k in range(n, len(train)):
            followers.setdefault(train[k - n : k], Counter())[train[k]] += 1

    def probability(context: bytes, byte: int) -> float:
        lower = probability(context[1:], byte) if context else 1 / 256
        seen = followers.get(context)
        return (seen[byte] + len(seen) * lower) / (seen.total() + len(seen)) if seen else lower

    losses = [-math.log(probability(held_out[max(0, k - order + 1) : k], held_out[k])) for k in range(len(held_out))]
    return sum(losses) / len(losses)


def test_the_losses_of_three_letters_by_hand() -> None:
    train = as_bytes("aab")  # a twice, b once; after a: a, b; after aa: b
    a, b = (2 + 2 / 256) / 5, (1 + 2 / 256) / 5
    a_a, a_b = (1 + 2 * a) / 4, (1 + 2 * b) / 4
    aa_b = (1 + 1 * a_b) / 2
    assert ngram_loss(train, train, 1) == pytest.approx(-(2 * math.log(a) + math.log(b)) / 3, rel=1e-12)
    assert ngram_loss(train, train, 2) == pytest.approx(-math.log(a * a_a * a_b) / 3, rel=1e-12)
    assert ngram_loss(train, train, 3) == pytest.approx(-math.log(a * a_a * aa_b) / 3, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_losses_agree_with_a_dictionary(order: int) -> None:
    text = Path(__file__).read_bytes()
    train, held_out = text[:3000], text[3000:4000] + bytes(range(256))
    expected = by_dictionary(train, held_out, order)
    assert ngram_loss(as_bytes(train), as_bytes(held_out), order) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_texts_shorter_than_the_order_have_a_loss(order: int) -> None:
    for train, held_out in ((b"a", b"a"), (b"a", b"ab"), (b"ab", b"xyz"), (b"abc", b"a")):
        expected = by_dictionary(train, held_out, order)
        assert ngram_loss(as_bytes(train), as_bytes(held_out), order) == pytest.approx(expected, rel=1e-12)


def test_counting_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = as_bytes(Path(__file__).read_bytes()[:5000])
    whole = ngram_loss(text[:4000], text[4000:], 3)
    monkeypatch.setattr("gpuad.data.ngram._CHUNK", 7)
    assert ngram_loss(text[:4000], text[4000:], 3) == pytest.approx(whole, rel=1e-12)


def test_longer_contexts_predict_the_standard_library_better() -> None:
    files = standard_library_files()
    data = ByteDataset(files[:: len(files) // 40])
    unigram, bigram, trigram = (ngram_loss(data.train, data.held_out, order) for order in (1, 2, 3))
    assert math.log(256) > unigram > bigram > trigram > 1


def test_ngram_arguments_without_meaning_are_errors() -> None:
    with pytest.raises(DataError, match="order=4"):
        ngram_loss(as_bytes("ab"), as_bytes("ab"), 4)
    with pytest.raises(DataError, match=r"held_out = uint8\[0\]"):
        ngram_loss(as_bytes("ab"), as_bytes(""), 2)
