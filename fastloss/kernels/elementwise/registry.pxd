"""The losses that the element-wise loop knows, under one name for all: the fused type of their tags."""
from fastloss.kernels.elementwise.regression cimport (
    AbsoluteError, Divergence, Gamma, Hinge, Huber, LogCosh, Poisson, Quantile, SquaredError, SquaredHinge, Tweedie,
    absolute_error, divergence, gamma, hinge, huber, log_cosh, poisson, quantile, squared_error, squared_hinge, tweedie,
)
from fastloss.kernels.elementwise.sigmoid cimport (
    LogSigmoid, OrdinaryCrossEntropy, Sigmoid, SigmoidCrossEntropy, SigmoidFocal, Softplus, ElementTerms,
    WeightedCrossEntropy, ordinary_cross_entropy, sigmoid_cross_entropy, sigmoid_focal, softplus,
    weighted_cross_entropy,
)
from fastloss.kernels.math.vmath cimport real

ctypedef fused Loss:
    Sigmoid
    LogSigmoid
    Softplus
    SigmoidCrossEntropy
    WeightedCrossEntropy
    OrdinaryCrossEntropy
    SigmoidFocal
    SquaredError
    AbsoluteError
    Huber
    LogCosh
    Quantile
    Poisson
    Gamma
    Tweedie
    Hinge
    SquaredHinge
    Divergence

cdef union Parameters:       # one loss's tag
    Sigmoid sigmoid
    LogSigmoid log_sigmoid
    Softplus softplus
    SigmoidCrossEntropy sigmoid_cross_entropy
    WeightedCrossEntropy weighted_cross_entropy
    SigmoidFocal sigmoid_focal
    SquaredError squared_error
    AbsoluteError absolute_error
    Huber huber
    LogCosh log_cosh
    Quantile quantile
    Poisson poisson
    Gamma gamma
    Tweedie tweedie
    Hinge hinge
    SquaredHinge squared_hinge
    Divergence divergence


cdef inline ElementTerms terms(const Loss* loss, real x, real y, real q, real u) noexcept nogil:
    cdef ElementTerms t
    if Loss is Sigmoid:
        t = softplus(x, u)
        t.value = t.slope
        return t
    elif Loss is LogSigmoid:
        t = softplus(-x, u)
        t.value = -t.value
        return t
    elif Loss is Softplus:
        return softplus(x, u)
    elif Loss is SigmoidCrossEntropy:
        return sigmoid_cross_entropy(x, y, u)
    elif Loss is WeightedCrossEntropy:
        return weighted_cross_entropy(x, y, q, u)
    elif Loss is OrdinaryCrossEntropy:
        return ordinary_cross_entropy(x, y, q, u)
    elif Loss is SigmoidFocal:
        return sigmoid_focal(loss, x, y)
    elif Loss is SquaredError:
        return squared_error(x, y)
    elif Loss is AbsoluteError:
        return absolute_error(x, y)
    elif Loss is Huber:
        return huber(loss, x, y)
    elif Loss is LogCosh:
        return log_cosh(x, y)
    elif Loss is Quantile:
        return quantile(loss, x, y)
    elif Loss is Poisson:
        return poisson(loss, x, y)
    elif Loss is Gamma:
        return gamma(x, y)
    elif Loss is Tweedie:
        return tweedie(loss, x, y)
    elif Loss is Hinge:
        return hinge(x, y)
    elif Loss is SquaredHinge:
        return squared_hinge(x, y)
    else:
        return divergence(x, y)


cdef inline bint takes_exp(const Loss* loss) noexcept nogil:
    """Whether u is an exponential of the logit, and all is computed in the type of the logits."""
    return (Loss is Sigmoid or Loss is LogSigmoid or Loss is Softplus or Loss is SigmoidCrossEntropy
            or Loss is WeightedCrossEntropy or Loss is OrdinaryCrossEntropy)


cdef inline bint takes_scaled(const Loss* loss) noexcept nogil:
    """Whether u is exp(-|x|) times scaled_unit."""
    return Loss is WeightedCrossEntropy


cdef inline bint takes_near(const Loss* loss) noexcept nogil:
    """Whether u is exp(-|x|) of |x| up to near_of only, and never scaled."""
    return Loss is OrdinaryCrossEntropy


cdef inline double summand(const Loss* loss, real x, real y, real q, real u) noexcept nogil:
    cdef double d
    if Loss is SquaredError:            # the difference in its own type: half the conversions
        d = <real>(x - y)
        return d*d
    return terms(loss, x, y, q, u).value
