"""Published numbers of *Stochastic Collapse* (arXiv 2306.04251): from the notebooks of its repository, commit 0101c36.

Printed numbers are exact; those taken from a figure are marked with their error. The paper's own errata matter for
the layers: what its figures call "fc13" is no valid value of conv13, which is left out here.
"""

# Figure 1, right: the noise at which half of 1,000 trajectories have collapsed, by steps (nbs/Fig1.ipynb, digitised).
QUARTIC_HALF = {10_000: 2.353, 20_000: 2.056, 40_000: 1.889, 80_000: 1.803}

# Figure 2, middle: probability of collapse (nbs/Fig2.ipynb, digitised to +-0.015; 1,000 trajectories), at the true
# number of Euler steps: the legend shows indices of saved times divided by the step.
NEURON_NOISES = (0.5, 0.75, 1.0, 1.25, 1.5)
NEURON_COLLAPSE = {
    3030: (0.04, 0.26, 0.63, 0.86, 0.96),
    7071: (0.01, 0.17, 0.64, 0.89, 0.97),
    15_152: (0.00, 0.10, 0.66, 0.94, 0.99),
    31_313: (0.00, 0.06, 0.71, 0.99, 1.00),
    63_636: (0.00, 0.06, 0.77, 1.00, 1.00),
}
NEURON_THRESHOLD = 0.98471  # sum xy / sum x^2 of its 32 points, drawn without a seed
NEURON_DIGITS = 0.015

# Figure 3 of the toy model: log10 of the median squared distance over 8 replicas (toy_model.ipynb), by condition
# (learning rate, label noise) at steps 2,500, 5,000, 7,500, 10,000; None where the curve has left the axis.
PAIR_STEPS = (2500, 5000, 7500, 10_000)
PAIR_MEDIANS = {
    (0.1, 0.1): (-3.59, -4.14, -4.77, -5.44),
    (0.2, 0.1): (-4.29, -6.86, -9.54, -12.27),
    (0.3, 0.1): (-6.91, -12.7, None, None),
    (0.1, 0.0): (-3.01, -3.01, -3.01, -3.01),
    (0.1, 0.2): (-5.37, -7.63, -10.25, -12.51),
    (0.1, 0.4): (-13.7, None, None, None),
}
PAIR_COLLAPSED = {(0.3, 0.1): 7, (0.4, 0.1): 2, (0.5, 0.1): 0, (0.1, 0.8): 6}  # of 8, at the end

# Figure 5: train loss on the plateau before the drop, and the test loss (times 1e-5 on the paper's axis) there, at its
# lowest after the drop, and at step 60,000, by label noise; mean shift of the 14 largest modes at step 50,000.
STUDENT_NOISES = (0, 5, 10, 15, 20)
STUDENT_TRAIN = (0.46014, 0.46426, 0.47480, 0.48698, 0.49573)
STUDENT_TEST_BEFORE = (1.510, 1.537, 1.534, 1.332, 0.894)
STUDENT_TEST_LOWEST = (1.510, 1.415, 1.146, 0.814, 0.514)
STUDENT_TEST_END = (1.510, 1.489, 1.372, 1.129, 0.707)
STUDENT_TEST_UNIT = 1e-5
STUDENT_SHIFT = (0.003, 0.033, 0.141, 0.340, 0.587)
STUDENT_LAST_STEPS = (50_000, 52_000, 54_000, 56_000, 58_000, 60_000)
STUDENT_LAST_MODE = (0.676, 0.767, 0.921, 1.04, 1.14, 1.24)  # the mode s* = 1.267 at label noise 20

# Figures 4 and 6, deep networks: mean fraction of independent neurons by layer, read from the pictures in the notebooks
# (FIG3_FIG4 c9, FIG6 c4) to +-0.006, +-0.016 where another curve lies on top (conv1 to conv7, at 1).
VGG_LAYERS = (*(f"conv{k}" for k in range(1, 13)), "fc14", "fc15")
VGG_SETTINGS = {"width": 64, "batch_size": 256, "dataset": "cifar10", "weight_decay": 5e-4, "label_noise": 0.0}
ONES = (1.0,) * 7
VGG_RATE_STEPS = 100_000
VGG_RATE = {  # by learning rate
    0.01: (*ONES, 0.925, 0.782, 0.711, 0.560, 0.707, 0.703, 0.692),
    0.02: (*ONES, 0.335, 0.169, 0.320, 0.226, 0.278, 0.229, 0.143),
    0.05: (0.945, *ONES[1:], 0.143, 0.051, 0.109, 0.045, 0.060, 0.039, 0.120),
    0.1: (0.974, 1.0, 0.974, 1.0, 1.0, 0.996, 1.0, 0.244, 0.075, 0.398, 0.015, 0.011, 0.023, 0.444),
}
VGG_DROP_RATE = 0.1
VGG_DROP = {  # by the step of the drop
    10_000: (*ONES, 0.949, 0.937, 0.949, 0.984, 1.000, 0.988, 0.961),
    20_000: (*ONES, 0.675, 0.545, 0.627, 0.800, 0.961, 0.808, 0.812),
    40_000: (0.984, 1.0, 0.984, 1.0, 1.0, 0.996, 1.0, 0.380, 0.200, 0.314, 0.294, 0.329, 0.039, 0.549),
}
VGG_ACCURACY_BEFORE = {10_000: 0.882, 20_000: 0.886, 40_000: 0.888}
VGG_ACCURACY_AFTER = {10_000: 0.9248, 20_000: 0.9273, 40_000: 0.9294}  # mean of steps 1,000 to 5,070 after the drop
VGG_NOISE_STEPS = 1_000_000
VGG_NOISE_RATE = 0.01
VGG_NOISE = {  # conv1 to conv7 by label noise; conv8 to fc15 lie at 0.03 to 0.14 at every noise
    0.0: (0.365, 0.992),
    0.2: (0.289, 0.887, 0.979),
    0.4: (0.233, 0.827, 0.951, 0.996, 0.981, 0.977, 0.992),
    0.6: (0.192, 0.650, 0.831, 0.974, 0.929, 0.929, 0.951),
    0.8: (0.143, 0.124, 0.038, 0.041, 0.045, 0.094, 0.113),
}
RESNET_SETTINGS = VGG_SETTINGS | {"dataset": "cifar100"}
RESNET_ACCURACY_BEFORE = {10_000: 0.649, 20_000: 0.645, 40_000: 0.644}
RESNET_ACCURACY_AFTER = {10_000: 0.7604, 20_000: 0.7653, 40_000: 0.7685}  # mean of the last 2,000 of 10,000 steps
RESNET_DROP = {  # by the layer's true name, at the drop
    "conv1": {10_000: 0.93, 20_000: 0.65, 40_000: 0.41},
    "layer4.1.conv1": {10_000: 1.00, 20_000: 0.90, 40_000: 0.79},
}
RESNET_RATE = {  # largest effects of the learning rate, by the layer's true name and rate
    "conv1": {0.01: 0.977, 0.02: 0.842, 0.05: 0.421, 0.1: 0.312},
    "layer1.0.conv1": {0.01: 1.0, 0.02: 0.985, 0.05: 0.793, 0.1: 0.711},
    "layer3.1.conv1": {0.01: 1.0, 0.02: 1.0, 0.05: 0.985, 0.1: 0.590},
    "layer4.1.conv1": {0.01: 0.793, 0.02: 0.510, 0.05: 0.635, 0.1: 0.741},
}
VGG_BATCH_RATE = 0.02
VGG_BATCH = {  # by batch size, rate 0.02, 100,000 steps
    "conv8": {32: 0.86, 64: 0.59, 128: 0.42, 256: 0.36, 512: 0.66},
    "conv11": {32: 1.0, 64: 0.33, 128: 0.18, 256: 0.22, 512: 0.27},
}
