from collapse.errors import CollapseError
from collapse.metrics import effective_rank, feature_sparsity, independent_neurons, normalized_distances

__all__ = ["CollapseError", "effective_rank", "feature_sparsity", "independent_neurons", "normalized_distances"]
