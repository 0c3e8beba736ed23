"""Prices (prices.py) of processors with 16 vector registers.

Zen 3, 12,855 convolutions: half of the estimates lie between 0.8 and 1.1 of the time taken, and the way of direct sums
with the least estimate took on average 2 % longer than the fastest.
"""

from __future__ import annotations

PRICES = {
    # A product is a vector multiplied and added: more where the phases of a step lie apart, or where the gathered
    # source of a box does not fit into the second level, or where rows in place lie in many pages, or are long, or lie
    # across the lines of the cache.
    "box product": 0.2,
    "box product, phases apart": 0.01,
    "box product, far": 0.067,
    "box product, far pages": 0.07,
    "box product, across lines": 0.02,  # of 704 1×1 convolutions on Zen 4 with the instructions of Zen 3
    "box": 715.0,
    "box row": 20.0,  # of the source
    "box vector, step 2": 0.8,  # gathered: phases of a step are taken apart by shuffles
    "box vector, step 2, some phases": 0.8,
    "box vector, step 4": 5.4,
    "box vector, step 4, some phases": 5.4,
    "box element": 1.05,  # where the step has no shuffle
    "box vector, step 8": 8.4,  # as single elements
    "box vector, step 16": 8.4,
    "box tile": 9.9,  # stored as it is
    "box piece": 4.35,  # a row of a piece of a tile that reaches over rows' ends
    "column product": 0.2,
    "column tile": 36.0,
    "panel": 1000.0,
    "column vector, step 1": 2.4,
    "column vector, step 2": 3.2,
    "column vector, step 4": 6.9,
    "column element": 2.6,
    "stretch": 3.2,  # a row of outputs of one tap of one channel, by vectors
    "stretch of elements": 19.0,
    "moves": 29.0,  # of a stretch: what the channels share
    "lane product": 0.2,
    "lane product, odd": 0.067,  # in a block of one vector of rows
    "lane product, far": 0.067,
    "lane tile": 13.7,
    "lane box": 350.0,
    "lane row": 6.0,
    "lane vector": 2.1,  # copied with its padding
    # Winograd's tiles from anywhere (winograd_tiles.py), fitted to 2,330 convolutions of small images: a product as
    # above, a tile of them, and a vector of a frequency of what is transformed.
    "tiles product": 0.172,
    "tiles shared byte": 0.06,  # not measured: that of a Zen 4
    "tiles tile": 127.0,
    "tiles input": 10.9,
    "tiles input, apart": 10.9,
    "tiles input, strided": 10.9,
    "tiles filter": 1.8,
    "tiles call": 8690.0,
    # The same in boxes, by the axes that are transformed; tuned, as the tile and the filter above, to 3,600 random
    # convolutions and 150 of usual networks and of the tests, at the prices of direct sums above: 2.9 % and 2.8 % over
    # the fastest way; tuned to one half, of the other 2.8 % and 2.0 %, 3.1 % both before. (To tune all prices made the
    # random ones 2.1 %, but networks slower.)
    "tiled box product": 0.248,
    "tiled box product, planes": 0.0682,
    "tiled box input, axes 1": 1.06,
    "tiled box input, axes 2": 6.4,
    "tiled box input, planes": 1.62,
    "tiled box output, axes 1": 2.79,
    "tiled box output, axes 2": 4.51,
    "tiled box filter": 2.59,
    "tiled box": 3680.0,
    "tiled box, planes": 1310.0,
    # Of weight gradients: inner products over boxes and exact columns, outer products, and Winograd's tiles. Tuned to
    # 2,200 random ones and 107 of usual networks: 0.7 % and 0.3 % over the fastest on average; tuned to one half, of
    # the other 1.3 % and 0.6 %, 1.6 % and 0.9 % before.
    "inner box call": 6500,  # calls cost .3 of what they did: measured on a Xeon
    "inner box element": 0.689,
    "inner box gradient row": 5.01,
    "inner box gradient vector": 1.89,
    "inner box piece": 2.18,
    "inner box product": 0.13,
    "inner box streamed": 0.639,
    "inner box tile": 12.2,
    "inner box vector, step 1": 0.71,
    "inner box vector, step 2": 1.12,
    "inner box vector, step 4": 2.18,
    "inner box weight": 3.79,
    "inner column element": 2.68,
    "inner column gradient row": 3.1,
    "inner column moves": 9.85,
    "inner column product": 0.245,
    "inner column row": 1.09,
    "inner column tile": 24.5,
    "inner column unit": 925.0,
    "inner column vector, step 1": 2.73,
    "inner column vector, step 2": 2.28,
    "inner column vector, step 4": 4.7,
    "inner column weight": 1.37,
    "outer box": 274.0,
    "outer gradient row": 1.94,
    "outer gradient vector": 2.03,
    "outer product": 0.149,
    "outer product, narrow": 0.232,
    "outer tile": 1.92,
    "outer transposed": 1.05,
    "outer weight": 0.744,
    "tiled gradient box": 157.0,
    "tiled gradient call": 1230.0,
    "tiled gradient input, axes 1": 1.69,
    "tiled gradient input, axes 2": 1.48,
    "tiled gradient output, axes 1": 2.14,
    "tiled gradient output, axes 2": 1.03,
    "tiled gradient piece": 4.76,
    "tiled gradient product": 0.15,
    "tiled gradient weight": 1.82,
    # Of depthwise convolutions, with channels in the lanes and in strips: 2,100 of them on Zen 4 with the instructions
    # of Zen 3, 1 % over the fastest on average.
    "depthwise lane box": 14.9,
    "depthwise lane product": 0.189,
    "depthwise lane row": 7.07,
    "depthwise lane source": 0.97,
    "depthwise lane tap": 0.317,
    "depthwise lane target": 1.2,
    "half strip row, side 3, step 1": 2.18,
    "half strip row, side 3, step 2": 2.28,
    "half strip row, side 5, step 1": 5.69,
    "half strip row, side 5, step 2": 4.25,
    "half strip row, side 7, step 1": 10.3,
    "half strip row, side 7, step 2": 7.91,
    "strip": 4.81,
    "strip row, masked": 2.84,
    "strip row, side 3, step 1": 2.78,
    "strip row, side 3, step 2": 2.9,
    "strip row, side 5, step 1": 6.16,
    "strip row, side 5, step 2": 5.41,
    "strip row, side 7, step 1": 11.4,
    "strip row, side 7, step 2": 9.11,
    "strip tap": 0.424,
}
