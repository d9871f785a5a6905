"""The kernels in numpy: the readable definition of their arithmetic, and the fallback.

The native backend computes the same bits, and the parity tests assert it, so the docstrings of these modules
are the specification of both:

=============================  ===================================================================
`reference_sums`               exact weighted sums: fixed point, weights, clipping, ranges
`reference_means`              weighted means of whole updates
`reference_norms`              sums of squares in blocks and lanes, norms, clipping, distances
`reference_chacha`             the random words of noise and rounding
`reference_noise`              Gaussian noise by position
`reference_codecs`             the rounding of f16, bf16 and i8
`reference_optimizers`         sgd, momentum, adagrad, adam, yogi, fadas
`reference_robust`             median, trimmed mean
`reference_checks`             what arguments may be
=============================  ===================================================================
"""

from .reference_codecs import decode, encode
from .reference_means import weighted_mean
from .reference_noise import add_gaussian_
from .reference_norms import Norm, clip_, pairwise_sq_distances, sum_squares
from .reference_optimizers import adagrad_, adam_, fadas_, momentum_, sgd_, yogi_
from .reference_robust import median, trimmed_mean
from .reference_sums import Accumulator

__all__ = [
    "Accumulator",
    "Norm",
    "adagrad_",
    "adam_",
    "add_gaussian_",
    "clip_",
    "decode",
    "encode",
    "fadas_",
    "median",
    "momentum_",
    "pairwise_sq_distances",
    "sgd_",
    "sum_squares",
    "trimmed_mean",
    "weighted_mean",
    "yogi_",
]
