"""exp, expm1, log1p and the normal distribution as straight-line code that LLVM turns into vectors.

`math.exp` in a kernel is a scalar call per element. These are range reduction, one polynomial and no branch, for
float32 and float64 alike: every step is one IEEE operation, so an element gets the same bits in a vector and in the
remainder of a loop. Written with `fma` (fused where the processor fuses, for every element or for none). Errors stay
below 2 units in the last place (3 where noted); 0, infinities and NaN come out as IEEE arithmetic has them.

The polynomials interpolate at Chebyshev nodes, computed with 60 digits; their relative error is below 2^-27 (float32)
and 2^-57 (float64).
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.host import inlined

_MANTISSA_BITS = {32: 23, 64: 52}


@intrinsic
def like(typing_context, x, value):  # type: ignore[no-untyped-def]
    """`value` in the type of x, so that a Python constant does not turn float32 arithmetic into float64."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return context.cast(builder, args[1], signature.args[1], signature.return_type)

    return x(x, value), codegen


def by_type(single: float, double: float) -> Any:
    """A constant that differs between the types: `constant(x)` is `single` for a float32 x, `double` for a float64."""

    @intrinsic
    def constant(typing_context, x):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return context.get_constant(x, single if x.bitwidth == 32 else double)

        return x(x), codegen

    return constant


def polynomial(single: tuple[float, ...], double: tuple[float, ...]) -> Any:
    """A polynomial in Horner's scheme, coefficients from the constant upwards: one table for each type."""

    @intrinsic
    def evaluate(typing_context, x):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            coefficients = [context.get_constant(x, c) for c in (single if x.bitwidth == 32 else double)]
            result = coefficients[-1]
            for coefficient in reversed(coefficients[:-1]):
                result = _call(builder, "fmuladd", x, [result, args[0], coefficient])
            return result

        return x(x), codegen

    return evaluate


def _call(builder: Any, name: str, kind: Any, args: Any) -> Any:
    """Call LLVM's own operation `name` on operands of one floating type."""
    function = ir.FunctionType(args[0].type, [args[0].type] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.f{kind.bitwidth}"), args)


@intrinsic
def fma(typing_context, a, b, c):  # type: ignore[no-untyped-def]
    """a · b + c, rounded once where the processor can."""
    return a(a, a, a), lambda context, builder, signature, args: _call(builder, "fmuladd", a, args)


@intrinsic
def rounding_error(typing_context, square, x):  # type: ignore[no-untyped-def]
    """x² - square, exactly, where square = x · x as rounded."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _call(builder, "fma", x, [args[1], args[1], builder.fneg(args[0])])

    return x(x, x), codegen


@intrinsic
def maximum(typing_context, a, b):  # type: ignore[no-untyped-def]
    """The larger one, NaN if either is NaN; unlike a comparison this vectorises as a reduction, too."""
    return a(a, a), lambda context, builder, signature, args: _call(builder, "maximum", a, args)


@intrinsic
def magnitude(typing_context, x):  # type: ignore[no-untyped-def]
    """|x|."""
    return x(x), lambda context, builder, signature, args: _call(builder, "fabs", x, args)


@intrinsic
def with_sign(typing_context, x, sign):  # type: ignore[no-untyped-def]
    """|x| with the sign of `sign`."""
    return x(x, x), lambda context, builder, signature, args: _call(builder, "copysign", x, args)


def _two_to_plus(more: int) -> Any:
    """2^(n + more) as a function of n + _SHIFT: the low bits of that sum are n, which go to where the exponent is."""

    @intrinsic
    def power(typing_context, shifted):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            bits = shifted.bitwidth
            integer = ir.IntType(bits)
            mantissa = _MANTISSA_BITS[bits]
            one = ((1 << (bits - 2 - mantissa)) - 1 + more) << mantissa
            exponent = builder.shl(builder.bitcast(args[0], integer), ir.Constant(integer, mantissa))
            return builder.bitcast(builder.add(exponent, ir.Constant(integer, one)), args[0].type)

        return shifted(shifted), codegen

    return power


_two_to = _two_to_plus(0)
# So much larger than what it is needed for that it is a normal number, where that need not be one.
_LIFT = 64
_lifted_two_to = _two_to_plus(_LIFT)


@intrinsic
def _mantissa_and_exponent(typing_context, x):  # type: ignore[no-untyped-def]
    """x = m · 2^k as (m, k) of the type of x, √½ ≤ m < √2; for positive x that are not subnormal."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        bits = x.bitwidth
        integer = ir.IntType(bits)
        places = ir.Constant(integer, _MANTISSA_BITS[bits])
        least = builder.bitcast(context.get_constant(x, math.sqrt(0.5)), integer)
        given = builder.bitcast(args[0], integer)
        exponent = builder.ashr(builder.sub(given, least), places)
        mantissa = builder.bitcast(builder.sub(given, builder.shl(exponent, places)), args[0].type)
        pair = mantissa, builder.sitofp(exponent, args[0].type)
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(x, 2)(x), codegen


# Adding 1.5 · 2^mantissa rounds to a whole number and leaves it in the low bits.
_SHIFT = by_type(1.5 * 2.0**23, 1.5 * 2.0**52)
# ln 2 in two parts: a whole number times the first is exact, with or without a fused multiply-add.
_LN2_HIGH = by_type(0.693359375, 6.93147180369123816490e-01)
_LN2_LOW = by_type(-2.12194440e-4, 1.90821492927058770002e-10)
# Beyond these exp is infinite and zero; 2^n stays in range.
_EXP_HIGHEST = by_type(89.0, 710.0)
_EXP_LOWEST = by_type(-104.0, -746.0)
# Below this e^x is no normal number.
_EXP_NORMAL = by_type(-87.336, -708.39)
# Below this expm1 is -1.
_EXPM1_LOWEST = by_type(-20.0, -40.0)

# (exp(r) - 1 - r) / r² for |r| ≤ ln(2)/2
_EXP_TAIL = polynomial(
    (0.500000001346581, 0.16666666681623232, 0.041666464925285904, 0.0083333109254809, 0.0013933649996309251,
     0.00019890990824673654),
    (0.5, 0.1666666666666667, 0.04166666666666667, 0.008333333333326136, 0.0013888888888883748,
     0.00019841269874820627, 2.4801587325547743e-05, 2.7557255400206422e-06, 2.75572736431103e-07,
     2.5105217004720745e-08, 2.0914686968086876e-09),
)  # fmt: skip
# (atanh(s) - s) / s³ as a polynomial in s² ≤ 1/9
_ATANH_TAIL = polynomial(
    (0.3333333366026371, 0.1999985316596486, 0.14296178997151418, 0.10853287900440187, 0.11612164612011674),
    (0.3333333333333333, 0.19999999999999762, 0.1428571428580005, 0.11111111099118386, 0.09090909948981357,
     0.07692271982430275, 0.06667589315724629, 0.05867139530651599, 0.05422589197440007, 0.03746071897775383,
     0.07815288900461426),
)  # fmt: skip
# exp(t²/2) · Q(t) · (t + k) as a polynomial in 1 / (t + k) less the centre of its range, t from 0 to _TAIL_ENDS
_MILLS_SHIFT = by_type(2.0, 2.5)
_MILLS_CENTRE = by_type(0.27941176295280457, 0.2121359223300971)
_MILLS = polynomial(
    (0.7117356088288228, 1.3466350424283102, 0.25443672074415186, -2.308890586999098, 0.7809048627173655,
     5.314461923655326, -9.540445442804703, -2.08818869899791, 40.66998704414626, -67.87397806756724,
     -67.54870960083889, 276.06836038614495),
    (0.7334566218321407, 2.2479671693138683, 3.248685831073435, -1.6433169271204966, -9.851896856262172,
     7.771189054035913, 34.1736105298261, -68.94634500626057, -72.55797921134254, 471.67074334230546,
     -476.4070576286356, -1724.8798920099223, 6769.987486994447, -5775.698870443727, -28730.420734910786,
     117720.34802964139, -143454.16153774614, -390818.1952490754, 2252201.4427372464, -4684622.279127328,
     -682784.8651212113, 45874149.211351, -173592805.29791084, 100225924.80368073, 1352912357.7547975,
     -3524949493.7529845, -1917643423.1731672, 16135306788.74591, -14029486991.554926),
)  # fmt: skip
# Beyond this e^(-x²/2) is zero.
_TAIL_ENDS = by_type(15.0, 38.7)


@inlined
def exp(x: Any) -> Any:
    """e^x, with gradual underflow."""
    x = _EXP_HIGHEST(x) if x > _EXP_HIGHEST(x) else x  # in this order a NaN stays one
    x = _EXP_LOWEST(x) if x < _EXP_LOWEST(x) else x
    shifted, r = _power_and_rest(x)
    n = shifted - _SHIFT(x)
    # In two steps, because 2^n itself may be too large or too small where the result is neither.
    half = fma(n, like(x, 0.5), _SHIFT(x))
    whole = (n - (half - _SHIFT(x))) + _SHIFT(x)
    return _exp_of_rest(r) * _two_to(half) * _two_to(whole)


@inlined
def exp_negative(x: Any) -> Any:
    """e^x for x ≤ 0, with gradual underflow, in fewer steps than `exp`."""
    x = _EXP_LOWEST(x) if x < _EXP_LOWEST(x) else x
    shifted, r = _power_and_rest(x)
    return _exp_of_rest(r) * _lifted_two_to(shifted) * like(x, 2.0**-_LIFT)


@inlined
def _power_and_rest(x: Any) -> Any:
    """n + _SHIFT and r so that x = n · ln 2 + r, n whole and |r| ≤ ln(2)/2."""
    shifted = fma(x, like(x, 1.4426950408889634), _SHIFT(x))
    n = shifted - _SHIFT(x)
    return shifted, fma(-n, _LN2_LOW(x), fma(-n, _LN2_HIGH(x), x))


@inlined
def _exp_of_rest(r: Any) -> Any:
    return fma(r * r, _EXP_TAIL(r), r) + like(r, 1.0)


@inlined
def negative_exponent(x: Any) -> Any:
    """The first half of e^x for x ≤ 0 and rounding errors above it: what `exp_of_parts` takes, in loops of their own.

    As one, the steps of an element are a chain so long that a core cannot look ahead over enough vectors to be busy:
    two loops, with what lies between them in the cache, take two thirds of the time.
    """
    tiny = x < _EXP_NORMAL(x)
    x = _EXP_NORMAL(x) if tiny else x
    shifted, r = _power_and_rest(x)
    return r, like(x, 0.0) if tiny else _two_to(shifted)


@inlined
def exp_of_parts(r: Any, scale: Any) -> Any:
    """The second half: e^r · scale. It is 0 where e^x is no normal number."""
    return _exp_of_rest(r) * scale


@inlined
def expm1_negative(x: Any) -> Any:
    """e^x - 1 for x ≤ 0; larger x count as 0."""
    x = like(x, 0.0) if x > like(x, 0.0) else x
    x = _EXPM1_LOWEST(x) if x < _EXPM1_LOWEST(x) else x
    shifted, r = _power_and_rest(x)
    scale = _two_to(shifted)
    return fma(scale, fma(r * r, _EXP_TAIL(r), r), scale - like(x, 1.0))


@inlined
def log1p_unit(x: Any) -> Any:
    """ln(1 + x) for 0 ≤ x ≤ 1, as 2·atanh(x / (2 + x)); error below 3 units in the last place."""
    s = x / (like(x, 2.0) + x)
    square = s * s
    half = fma(s * square, _ATANH_TAIL(square), s)
    return half + half


@inlined
def log(x: Any) -> Any:
    """ln x for x that are positive, finite and not subnormal; error below 3 units in the last place."""
    m, k = _mantissa_and_exponent(x)
    s = (m - like(x, 1.0)) / (m + like(x, 1.0))
    square = s * s
    half = fma(s * square, _ATANH_TAIL(square), s)
    return fma(k, _LN2_HIGH(x), fma(k, _LN2_LOW(x), half + half)) + (x - x)  # a NaN stays one


@inlined
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x), to full relative accuracy on both sides."""
    e = exp_negative(-magnitude(x))
    numerator = e if x < like(x, 0.0) else like(x, 1.0)
    return numerator / (like(x, 1.0) + e)


@inlined
def sigmoid_and_slope(x: Any) -> Any:
    """σ(x) and σ'(x) = σ(x) · (1 - σ(x)), the latter without the cancellation in 1 - σ."""
    e = exp_negative(-magnitude(x))
    reciprocal = like(x, 1.0) / (like(x, 1.0) + e)
    smaller = e * reciprocal
    return smaller if x < like(x, 0.0) else reciprocal, smaller * reciprocal


@inlined
def tanh(x: Any) -> Any:
    """The hyperbolic tangent; error below 3 units in the last place."""
    e = expm1_negative(like(x, -2.0) * magnitude(x))
    return with_sign(e / (like(x, 2.0) + e), x)


@inlined
def gaussian(x: Any) -> Any:
    """e^(-x²/2), with x² in two parts: its rounding error would count x² times."""
    t = magnitude(x)
    t = _TAIL_ENDS(t) if t > _TAIL_ENDS(t) else t
    square = t * t
    shifted, r = _power_and_rest(like(t, -0.5) * square)
    r = fma(like(t, -0.5), rounding_error(square, t), r)
    return _exp_of_rest(r) * _lifted_two_to(shifted) * like(t, 2.0**-_LIFT)


@inlined
def normal_cdf(x: Any, density: Any) -> Any:
    """Φ(x), given density = `gaussian(x)`; error below 5 units in the last place in either tail.

    Both tails are Q(t) = Φ(-t) of t = |x|, by a polynomial of one fraction, an idea of Shepherd and Laframboise (1981),
    "Chebyshev approximation of (1 + 2x) exp(x²) erfc x in 0 ≤ x < ∞". Theirs is (t - k) / (t + k); 1 / (t + k) takes
    fewer steps.
    """
    t = magnitude(x)
    t = _TAIL_ENDS(t) if t > _TAIL_ENDS(t) else t
    fraction = like(t, 1.0) / (t + _MILLS_SHIFT(t))  # the smaller k, the less its error counts
    tail = density * (fraction * _MILLS(fraction - _MILLS_CENTRE(t)))
    return like(x, 1.0) - tail if x > like(x, 0.0) else tail
