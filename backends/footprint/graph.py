"""Lays out the tensors of a computation as llama.cpp's allocator would, to learn how much room they need together.

Owns the rules of placing and freeing, and of writing a result over a source (ggml/src/ggml-alloc.c); knows nothing of
models. Sizes are bytes. Weights, and what is written into the KV cache, lie elsewhere and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT_BYTES = 32
"""ggml-impl.h TENSOR_ALIGNMENT, of the CPU's buffers; GPUs round to 128 or 256, which is nothing against a tensor."""
_ENDLESS = 1 << 62


@dataclass(slots=True)
class Tensor:
    """A node. `root` is the tensor whose bytes a view looks at, None for one with bytes of its own."""

    size_bytes: int
    sources: tuple[Tensor, ...] = ()
    root: Tensor | None = None
    in_place: bool = False
    """The operation may write over a source of the same layout (ggml_op_can_inplace)."""
    children: int = 0
    views: int = 0
    offset: int = -1
    owns: bool = False


class Graph:
    """Built in the order in which llama.cpp computes; `peak_bytes` then plays it through. Use it once."""

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._nodes: list[Tensor] = []

    def input(self, size_bytes: int) -> Tensor:
        """A tensor that is filled before the computation: it has its place from the start."""
        tensor = Tensor(size_bytes)
        self._inputs.append(tensor)
        return tensor

    def op(self, size_bytes: int, *sources: Tensor, in_place: bool = False) -> Tensor:
        """A result. With `in_place` it takes the place of the first source of its size that nobody else needs."""
        tensor = Tensor(size_bytes, sources, in_place=in_place)
        self._nodes.append(tensor)
        return tensor

    def same(self, *sources: Tensor) -> Tensor:
        """An element-wise result of the first source's size, in place where that can be."""
        return self.op(sources[0].size_bytes, *sources, in_place=True)

    def view(self, source: Tensor, size_bytes: int | None = None) -> Tensor:
        """The same bytes, or some of them, in another shape: a result of this may no longer be written over them."""
        size = source.size_bytes if size_bytes is None else size_bytes
        tensor = Tensor(size, (source,), root=source.root or source)
        self._nodes.append(tensor)
        return tensor

    def consume(self, *sources: Tensor) -> None:
        """An operation whose result lies elsewhere, such as a row of the KV cache."""
        self._nodes.append(Tensor(0, sources, root=Tensor(0)))

    def peak_bytes(self) -> int:
        """Bytes of the buffer that holds every tensor for as long as it is needed."""
        space = _Space()
        for tensor in self._inputs:
            space.place(tensor)
        for node in self._nodes:
            if node.root is not None:
                node.root.views += 1
            for source in node.sources:
                source.children += 1
        for node in self._nodes:
            space.place(node)
            for source in node.sources:
                source.children -= 1
                space.free_if_done(source)
        return space.highest


class _Space:
    """The buffer: free blocks by offset, the last one without end (ggml_dyn_tallocr)."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int]] = [(0, _ENDLESS)]
        self.highest = 0

    def place(self, tensor: Tensor) -> None:
        """ggml_gallocr_allocate_node."""
        if tensor.root is not None:
            return
        tensor.owns = True
        if tensor.in_place:
            for source in tensor.sources:
                reusable = source.owns and source.children == 1 and not source.views
                if reusable and source.size_bytes == tensor.size_bytes:
                    tensor.offset, source.owns = source.offset, False
                    return
        tensor.offset = self._take(padded(tensor.size_bytes))

    def free_if_done(self, tensor: Tensor) -> None:
        """ggml_gallocr_alloc_graph_impl, its part about parents."""
        if tensor.children or tensor.views:
            return
        owner = tensor
        if tensor.root is not None:
            owner = tensor.root
            owner.views -= 1
            if owner.children or owner.views:
                return
        if owner.owns:
            owner.owns = False
            self._give(owner.offset, padded(owner.size_bytes))

    def _take(self, size: int) -> int:
        """The smallest block that holds `size`, of equal ones the last; the endless one only if there is no other."""
        best = len(self._free) - 1
        for index, (_, length) in enumerate(self._free[:-1]):
            if size <= length <= self._free[best][1]:
                best = index
        offset, length = self._free[best]
        if length == size:
            del self._free[best]
        else:
            self._free[best] = (offset + size, length - size)
        self.highest = max(self.highest, offset + size)
        return offset

    def _give(self, offset: int, size: int) -> None:
        index = 0
        while index < len(self._free) and self._free[index][0] < offset:
            index += 1
        if index < len(self._free) and offset + size == self._free[index][0]:
            size += self._free[index][1]
            del self._free[index]
        if index and sum(self._free[index - 1]) == offset:
            offset, size = self._free[index - 1][0], self._free[index - 1][1] + size
            index -= 1
            del self._free[index]
        self._free.insert(index, (offset, size))


def padded(size: int) -> int:
    """`size` in bytes as a tensor takes it."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
