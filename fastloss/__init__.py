"""Exact, fast, reproducible loss functions and candidate samplers for NumPy arrays."""

from importlib import import_module

from fastloss import _native as _native  # so that an instruction set that cannot run raises at import

__version__ = "0.1.0"

# Public names, by their modules, which are imported when a name is first used; __init__.pyi has the names too.
_MODULES = {
    "samplers.alias": "AliasTable",
    "_core.hessians": "value_grad_hess",
    "samplers.candidates": (
        "all_candidate_sampler compute_accidental_hits fixed_unigram_candidate_sampler "
        "learned_unigram_candidate_sampler log_uniform_candidate_sampler sample_negatives "
        "uniform_candidate_sampler"
    ),
    "losses.ctc": "ctc_beam_search_decode ctc_greedy_decode ctc_loss edit_distance",
    "losses.deviances": "gamma_loss kl_divergence poisson_loss tweedie_loss",
    "_core.gradients": "value_and_grad",
    "losses.in_batch": "in_batch_softmax_loss",
    "losses.linear": "LinearStats linear_cross_entropy",
    "losses.linear_partials": "linear_partials loss_from_partials merge_partials",
    "losses.regression": (
        "hinge_loss huber_loss log_cosh_loss mean_absolute_error mean_squared_error quantile_loss squared_hinge_loss"
    ),
    "losses.sampled": "nce_loss sampled_softmax_loss",
    "samplers.samplers": "LogUniformSampler UniformSampler",
    "losses.sequence": "packed_sequence_loss sequence_loss sequence_loss_by_example",
    "losses.sigmoid": (
        "log_sigmoid sigmoid sigmoid_cross_entropy_with_logits sigmoid_focal_loss softplus "
        "weighted_cross_entropy_with_logits"
    ),
    "losses.softmax": (
        "log_softmax logsumexp softmax softmax_cross_entropy_with_logits sparse_softmax_cross_entropy_with_logits"
    ),
    "losses.softmax_laws": "poly1_cross_entropy softmax_focal_loss",
    "_core.sparse_rows": "SparseRows",
    "samplers.unigrams": "FixedUnigramSampler LearnedUnigramSampler",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
