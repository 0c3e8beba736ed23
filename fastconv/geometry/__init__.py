"""Window arithmetic: ints in, ints out. Shapes, padding, receptive field, and every argument error of an operation.

The only place that knows the output-size formula. A convolution or pooling of rank 1, 2 or 3 is one frozen,
hashable object, `ConvGeometry` or `PoolGeometry`, whose constructors `of`, `transposed`, `for_input_grad`,
`for_weight_grad` and `adaptive` take arguments in the forms that users give and check all of them, once. A resampling
is a `ResampleGeometry`: for each axis a table of which inputs its outputs weigh.
"""

from fastconv.geometry.convolution import ConvGeometry, output_padding_for
from fastconv.geometry.formulas import output_size, receptive_field
from fastconv.geometry.pooling import PoolGeometry
from fastconv.geometry.resampling import ResampleGeometry, interpolation

__all__ = [
    "ConvGeometry",
    "PoolGeometry",
    "ResampleGeometry",
    "interpolation",
    "output_padding_for",
    "output_size",
    "receptive_field",
]
