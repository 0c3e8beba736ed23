"""The steps of a Fourier transform as LLVM vectors: a vector holds one element of as many transforms as it has lanes.

A point is a complex number of each of these transforms: a vector of real parts and, `im` elements behind it, one of
imaginary parts. Nothing crosses lanes, so a transform has the same bits whatever its neighbours hold. An inverse
transform is a forward one with real and imaginary parts exchanged: `im` is negative then.

Cost of a radix-4 step: 8 loads, 8 stores and 28 operations for 4 points and two of the log2(length) levels.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.emitter import Emitter
from fastconv.backends.cpu.host import REGISTERS

SPECTRA = (4, 2) if REGISTERS == 32 else (2, 2)
"""Rows and vectors of a full tile of `multiply_spectra`: two accumulators each, two registers for a vector or row."""

_Point = tuple[Any, Any]


class _Complex(Emitter):
    """Arithmetic on points."""

    def load_point(self, pointer: Any, im: Any) -> _Point:
        return self.load(pointer), self.load(self.at(pointer, im))

    def store_point(self, point: _Point, pointer: Any, im: Any) -> None:
        self.store(point[0], pointer)
        self.store(point[1], self.at(pointer, im))

    def add(self, a: _Point, b: _Point) -> _Point:
        return self.builder.fadd(a[0], b[0]), self.builder.fadd(a[1], b[1])

    def subtract(self, a: _Point, b: _Point) -> _Point:
        return self.builder.fsub(a[0], b[0]), self.builder.fsub(a[1], b[1])

    def factor(self, pointer: Any, number: int) -> _Point:
        """The complex number at this place of a table, in all lanes."""
        re, im = (self.splat(self.builder.load(self.at(pointer, self.index(2 * number + i)))) for i in (0, 1))
        return re, im

    def multiply(self, a: _Point, b: _Point) -> _Point:
        re = self.fma(a[0], b[0], self.builder.fneg(self.builder.fmul(a[1], b[1])))
        return re, self.fma(a[0], b[1], self.builder.fmul(a[1], b[0]))


@intrinsic(prefer_literal=True)
def butterflies(  # type: ignore[no-untyped-def]
    typing_context, like, radix, turn, count, source, source_step, apart, source_im, target, target_step, across,
    target_im, factors
):  # fmt: skip
    """A transform of length `radix` (2 or 4) for each q < count (count ≥ 1).

    Reads points source + q · source_step + j · apart, writes target + q · target_step + j · across, j < radix. With
    `turn`, result j > 0 is multiplied with factors[j − 1].
    """
    points, turned = radix.literal_value, turn.literal_value
    signature = types.void(like, radix, turn, *[types.intp] * 10)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = _Complex(builder, signature.args[0])
        count, source, source_step, apart, source_im, target, target_step, across, target_im, factors = args[3:]
        source, target, factors = (emit.pointer(address) for address in (source, target, factors))
        turns = [emit.factor(factors, j) for j in range(points - 1)] if turned else []

        def step(q: Any, values: list[list[Any]]) -> list[list[Any]]:
            begin, to = (emit.at(p, builder.mul(q, s)) for p, s in ((source, source_step), (target, target_step)))
            inputs = [
                emit.load_point(emit.at(begin, builder.mul(apart, emit.index(j))), source_im) for j in range(points)
            ]
            results = _short_transform(emit, inputs)
            for j, result in enumerate(results):
                point = emit.multiply(result, turns[j - 1]) if turned and j else result
                emit.store_point(point, emit.at(to, builder.mul(across, emit.index(j))), target_im)
            return values

        emit.loop(count, [], step)
        return context.get_dummy_value()

    return signature, codegen


def _short_transform(emit: _Complex, x: list[_Point]) -> list[_Point]:
    """Σ_j x[j] · exp(−2πi·jk/n) for n = 2 or 4 points."""
    if len(x) == 2:
        return [emit.add(*x), emit.subtract(*x)]
    even, odd = emit.add(x[0], x[2]), emit.add(x[1], x[3])
    (re, im), (across_re, across_im) = emit.subtract(x[0], x[2]), emit.subtract(x[1], x[3])
    down = emit.builder.fadd(re, across_im), emit.builder.fsub(im, across_re)
    up = emit.builder.fsub(re, across_im), emit.builder.fadd(im, across_re)
    return [emit.add(even, odd), down, emit.subtract(even, odd), up]


@intrinsic
def untangle(  # type: ignore[no-untyped-def]
    typing_context, like, count, first, first_step, last, last_step, source_im, to_first, to_first_step, to_last,
    to_last_step, target_im, factors
):  # fmt: skip
    """Real transforms from complex ones of half the length, and back, for f < count (count ≥ 1) from both ends.

    With a = first + f · first_step, b = last + f · last_step, S = a + b̄ and T = −i · factors[f] · (a − b̄), writes S + T
    and the conjugate of S − T: twice the frequencies f and M − f of the real signal z[2n], z[2n + 1] whose
    complex signal z[2n] + i · z[2n + 1] has the frequencies a and b, if factors[f] = exp(−πi·f/M). The way back, to
    twice a and b, is the same with −1/factors[f].
    """
    signature = types.void(like, *[types.intp] * 12)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = _Complex(builder, signature.args[0])
        count, source_im, target_im = args[1], args[6], args[11]
        first, last, to_first, to_last = (emit.pointer(args[i]) for i in (2, 4, 7, 9))
        factors = emit.pointer(args[12])
        steps = args[3], args[5], args[8], args[10]

        def step(f: Any, values: list[list[Any]]) -> list[list[Any]]:
            a_at, b_at, to_a, to_b = (
                emit.at(pointer, builder.mul(f, stride))
                for pointer, stride in zip((first, last, to_first, to_last), steps)
            )
            a, b = emit.load_point(a_at, source_im), emit.load_point(b_at, source_im)
            conjugate = b[0], builder.fneg(b[1])
            total, (re, im) = emit.add(a, conjugate), emit.subtract(a, conjugate)
            cos, sin = emit.factor(emit.at(factors, builder.mul(f, emit.index(2))), 0)
            turned = emit.multiply((im, builder.fneg(re)), (cos, sin))
            result, (other_re, other_im) = emit.add(total, turned), emit.subtract(total, turned)
            emit.store_point(result, to_a, target_im)
            emit.store_point((other_re, builder.fneg(other_im)), to_b, target_im)
            return values

        emit.loop(count, [], step)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def multiply_spectra(  # type: ignore[no-untyped-def]
    typing_context, like, rows, vectors, count, w, w_step, w_im, x, x_step, x_im, y, y_step
):
    """y[m] = Σ_c conjugate(w[c, m]) · x[c] for m < rows and the points of `vectors` adjacent vectors (count ≥ 1).

    w[c, m] is a number in all lanes: w + c · w_step + m, its imaginary part w_im behind. x[c] lies at x + c · x_step,
    y[m] at y + m · y_step, imaginary parts x_im behind.
    """
    mr, nv = rows.literal_value, vectors.literal_value
    signature = types.void(like, rows, vectors, *[types.intp] * 9)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit = _Complex(builder, signature.args[0])
        count, w, w_step, w_im, x, x_step, x_im, y, y_step = args[3:]
        w, x, y = (emit.pointer(address) for address in (w, x, y))

        def step(c: Any, values: list[list[Any]]) -> list[list[Any]]:
            row_w, row_x = emit.at(w, builder.mul(c, w_step)), emit.at(x, builder.mul(c, x_step))
            points = [emit.load_point(emit.at(row_x, emit.index(v * emit.lanes)), x_im) for v in range(nv)]
            new = []
            for m in range(mr):
                place = emit.at(row_w, emit.index(m))
                re, im = emit.splat(builder.load(place)), emit.splat(builder.load(emit.at(place, w_im)))
                minus = builder.fneg(im)
                for v, (x_re, x_im_) in enumerate(points):
                    y_re, y_im = values[m * nv + v]
                    y_re, y_im = emit.fma(re, x_re, y_re), emit.fma(re, x_im_, y_im)
                    new.append([emit.fma(im, x_im_, y_re), emit.fma(minus, x_re, y_im)])
            return new

        result = emit.loop(count, [[emit.zero, emit.zero]] * (mr * nv), step)
        for m in range(mr):
            row_y = emit.at(y, builder.mul(y_step, emit.index(m)))
            for v in range(nv):
                emit.store_point(result[m * nv + v], emit.at(row_y, emit.index(v * emit.lanes)), x_im)
        return context.get_dummy_value()

    return signature, codegen
