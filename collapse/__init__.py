"""Stochastic collapse in any network: measure it, extract the simpler network inside, predict what collapses next.

"Collapse" is the drift of SGD into an invariant set (Chen, Kunin, Yamamura, Ganguli, *Stochastic Collapse*, NeurIPS
2023): parameters where a neuron has vanished, or where two neurons are equal. The library needs PyTorch alone.
"""

from collapse.errors import CollapseError
from collapse.exponent import collapse_exponent, nearest_pairs
from collapse.extract import extract_subnetwork, load_network, save_network
from collapse.log import CollapseLog
from collapse.metrics import effective_rank, feature_sparsity, independent_neurons, normalized_distances
from collapse.neurons import NeuronGroup, NeuronGroups, Slot, neuron_groups
from collapse.plots import plot_report
from collapse.report import CollapseReport, collapse_report, distance_maps

__all__ = [
    "CollapseError",
    "CollapseLog",
    "CollapseReport",
    "NeuronGroup",
    "NeuronGroups",
    "Slot",
    "collapse_exponent",
    "collapse_report",
    "distance_maps",
    "effective_rank",
    "extract_subnetwork",
    "feature_sparsity",
    "independent_neurons",
    "load_network",
    "nearest_pairs",
    "neuron_groups",
    "normalized_distances",
    "plot_report",
    "save_network",
]
