"""The tape: what is recorded per operation, and the walk that turns it into gradients.

Every recorded result holds a Node: the backward function of the operation and, per input, where its gradient goes (the
Node that made the input, or the leaf itself). Nodes never hold the Tensors in between, so an array that no backward
function needs is freed as soon as the forward pass drops it. Nodes are numbered in the order of their making: a walk by
falling number is in reverse topological order, always the same one, and needs no recursion.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fastconv import backends

Array = Any
Backward = Callable[[Array], Sequence[Array | None]]


class _GradMode(threading.local):
    suspended = 0


_mode = _GradMode()
_numbers = itertools.count()


class no_grad(contextlib.ContextDecorator):
    """Within this context (or in a function decorated with it) nothing is recorded, in the current thread."""

    def __enter__(self) -> None:
        _mode.suspended += 1

    def __exit__(self, *exception: object) -> None:
        _mode.suspended -= 1


def is_grad_enabled() -> bool:
    """False inside `no_grad`."""
    return _mode.suspended == 0


class Leaf(Protocol):
    """Where a walk ends: something with values and a place for their gradient."""

    data: Array
    grad: Array | None


class Node:
    """One recorded operation: `backward` maps the cotangent of its result to those of its inputs, for `parents`."""

    __slots__ = ("backward", "number", "parents")

    def __init__(self, parents: Sequence[Node | Leaf | None], backward: Backward) -> None:
        self.parents = parents
        self.backward: Backward | None = backward
        self.number = next(_numbers)


def walk(root: Node, cotangent: Array) -> dict[Leaf, Array]:
    """The gradients of all leaves below `root`. Frees each node, and its cotangent, as soon as it is used."""
    nodes = _reachable(root)
    if any(node.backward is None for node in nodes):
        raise RuntimeError(
            "backward: this graph was already walked and is freed; compute the result again, or add the results up and "
            "call backward once"
        )
    nodes.sort(key=lambda node: node.number)  # popped from the end, so that a used node is let go
    pending: dict[Node, Array] = {root: cotangent}
    gradients: dict[Leaf, Array] = {}
    while nodes:
        node = nodes.pop()
        backward, parents = node.backward, node.parents
        node.backward, node.parents = None, ()
        gy = pending.pop(node, None)
        if gy is None or backward is None:  # every gradient on the way here was None
            continue
        with backends.on(gy):
            cotangents = backward(_contiguous(gy))
        for parent, gradient in zip(parents, cotangents, strict=True):
            if parent is None or gradient is None:
                continue
            if isinstance(parent, Node):
                pending[parent] = _sum(pending[parent], gradient) if parent in pending else gradient
            else:
                gradients[parent] = _sum(gradients[parent], gradient) if parent in gradients else gradient
    return gradients


def deposit(gradients: dict[Leaf, Array], cotangent: Array) -> None:
    """Add each gradient to its leaf's `grad`, which never shares memory with another array, nor with the `cotangent`.

    Only a view is of the kind of its base: an array on a block of the backend's memory is not.
    """
    taken = {id(cotangent)}
    for leaf, gradient in gradients.items():
        if leaf.grad is not None:
            leaf.grad = _sum(leaf.grad, gradient)
        elif type(gradient.base) is type(gradient) or id(gradient) in taken or not gradient.flags.c_contiguous:
            with backends.on(gradient):
                leaf.grad = gradient.copy(order="C")
        else:
            leaf.grad = gradient
        taken.add(id(gradient))


def _reachable(root: Node) -> list[Node]:
    found, stack = {root}, [root]
    while stack:
        for parent in stack.pop().parents:
            if isinstance(parent, Node) and parent not in found:
                found.add(parent)
                stack.append(parent)
    return list(found)


def _sum(a: Array, b: Array) -> Array:
    with backends.on(a):
        return backends.of(a).add(a, b)


def _contiguous(array: Array) -> Array:
    if array.flags.c_contiguous:  # asked first: ascontiguousarray would give a 0-d array an axis
        return array
    return backends.of(array).concatenate([array], array.ndim - 1)
