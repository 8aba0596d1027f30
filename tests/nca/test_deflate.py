import numpy as np
import pytest

from seedbed.nca.deflate import gzip_length
from tests.nca.inputs import example, is_classic, zlib_length

classic = pytest.mark.skipif(not is_classic(), reason="this machine's zlib makes other lengths than zlib 1.2.12 to 1.3.1")


def _ours(data: bytes) -> int:
    return gzip_length(np.frombuffer(data, dtype=np.uint8))


@classic
def test_lengths_are_zlib_s_on_real_and_random_inputs():
    """benchmarks/deflate.py does the same on a hundred thousand."""
    rng = np.random.default_rng(0)
    inputs = [example(i, rng) for i in range(3000)]
    wrong = [i for i, data in enumerate(inputs) if _ours(data) != zlib_length(data)]
    assert not wrong


@classic
@pytest.mark.parametrize("size", [20_000, 70_000, 200_000])
def test_inputs_of_many_blocks_and_beyond_the_window_are_zlib_s_too(size):
    rng = np.random.default_rng(size)
    for data in (
        rng.bytes(size),
        *(rng.integers(0, n, size, dtype=np.uint8).tobytes() for n in (5, 40)),
        (rng.bytes(3000) * 70)[:size],
        bytes(size),
    ):
        assert _ours(data) == zlib_length(data)


@pytest.mark.parametrize(
    ("data", "length"),
    [(b"", 20), (b"a", 21), (b"abc", 23), (bytes(1440), 32), (bytes(range(256)), 256 + 23), (b"abcabcabcabc" * 40, 28)],
)
def test_known_lengths_hold_on_any_machine(data, length):
    assert _ours(data) == length


def test_the_working_memory_is_left_clean():
    rng = np.random.default_rng(3)
    first, second = rng.bytes(500), bytes(500)
    alone = _ours(second)
    from seedbed.nca.deflate import deflate_bytes, scratch

    memory = scratch()
    for data in (first, second):
        padded = np.frombuffer(data + bytes(300), dtype=np.uint8)
        found = deflate_bytes(padded, len(data), np.empty(len(data), dtype=np.int32), memory)
    assert found + 18 == alone
