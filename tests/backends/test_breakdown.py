"""Walking a C++ map in memory: sound trees are read in order, all others are no answer."""

from __future__ import annotations

import random
import struct

import pytest

from backends.llama_cpp.breakdown import MAX_KINDS, BufferUse, walk

NODE = struct.Struct("<8Q")
BASE = 0x10000
SIZE = 128


class Memory:
    """Bytes at addresses from `BASE` on; reading anything else is an error."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def read(self, address: int, size: int) -> bytes:
        at = address - BASE
        if at < 0 or at + size > len(self.content):
            raise OSError(14, "Bad address")
        return bytes(self.content[at : at + size])


def tree(count: int) -> tuple[int, Memory]:
    """A balanced tree whose entries are at ascending addresses, and the address of its root."""
    nodes: dict[int, bytes] = {}

    def place(low: int, high: int, parent: int) -> int:
        if low >= high:
            return 0
        middle = (low + high) // 2
        address = BASE + middle * SIZE
        left, right = place(low, middle, address), place(middle + 1, high, address)
        values = (address, 1000 + middle, 2000 + middle, 3000 + middle)
        nodes[address] = NODE.pack(1, parent, left, right, *values).ljust(SIZE, b"\0")
        return address

    root = place(0, count, BASE + count * SIZE)
    return root, Memory(b"".join(nodes[address] for address in sorted(nodes)))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, MAX_KINDS])
def test_a_sound_tree_is_read_in_order(count: int) -> None:
    root, memory = tree(count)
    expected = tuple(BufferUse(BASE + i * SIZE, 1000 + i, 2000 + i, 3000 + i) for i in range(count))
    assert walk(root, count, memory.read) == expected


def test_a_wrong_number_of_entries_is_no_answer() -> None:
    root, memory = tree(5)
    for count in (0, 4, 6, MAX_KINDS + 1, 1 << 63):
        assert walk(root, count, memory.read) is None


def test_addresses_that_lead_nowhere_are_no_answer() -> None:
    _, memory = tree(5)
    for root in (8, BASE + 4, BASE + 5 * SIZE, 1 << 63, (1 << 64) - 8):
        assert walk(root, 5, memory.read) is None


def test_a_tree_that_leads_back_to_itself_ends() -> None:
    root, memory = tree(1)
    for offset in (16, 24):  # left, right
        damaged = Memory(bytes(memory.content))
        damaged.content[8:16] = damaged.content[offset : offset + 8] = struct.pack("<Q", root)
        assert walk(root, 1, damaged.read) is None


def test_bytes_beyond_reason_are_no_answer() -> None:
    root, memory = tree(3)
    memory.content[SIZE + 40 : SIZE + 48] = struct.pack("<Q", 1 << 60)
    assert walk(root, 3, memory.read) is None


def test_a_damaged_tree_gives_its_entries_or_nothing() -> None:
    rng = random.Random(7)
    root, sound = tree(7)
    for _ in range(2000):
        damaged = Memory(bytes(sound.content))
        for _ in range(rng.randint(1, 4)):
            damaged.content[rng.randrange(len(damaged.content))] = rng.randrange(256)
        found = walk(root, 7, damaged.read)
        assert found is None or len(found) == 7
