"""Published numbers of *Sparse Features* (ICML 2023): printed in the notebooks of its repository, one run each.

Ranks and sparsities of the ReLU networks are read from figures (+-1 pixel). All with the published seeds.
"""

DURATIONS = (0.1, 0.3, 0.5)  # share of the run before the decay

# Diagonal linear networks. Data A: SGD with step 0.25 throughout, and 0.282 decayed at 10, 30, 50 %.
DIAGONAL_STEPS = 100_001
DIAGONAL_SMALL = {"train": 1.42e-6, "test": 3.53e-3, "rank": 200, "l0": 200}
DIAGONAL_TEST = (6.59e-4, 2.85e-4, 1.54e-4)
DIAGONAL_RANK = (109, 68, 58)
DIAGONAL_L0 = (156, 89, 71)
DIAGONAL_NORM = 2.5399  # sqrt(2 |theta*|_1) of the balanced sparse solution
DIAGONAL_RANK_CURVE = {5000: 157, 10_000: 96, 20_000: 75, 30_000: 64, 50_000: 56}  # on the plateau of the 50 % run
DIAGONAL_L0_CURVE = {5000: 198, 10_000: 152, 20_000: 106, 30_000: 80, 50_000: 69}
DIAGONAL_PLATEAU = (0.056, 0.043, 0.024)  # median train loss in steps 1e3 to 1e4, to 3e4, to 5e4 (the notebook, rerun)
# Data B: full-batch gradient descent, step 2.0 throughout, and 3.53 decayed at 10, 30, 50 %; SGD with 0.272.
GD_SMALL_TEST = 0.1682
GD_LARGE_TEST = (0.449, 0.438, 0.497)
GD_LARGE_L0 = (86, 80, 78)
SGD_B_TEST = 0.0385
SGD_B_L0 = 33

# The small problem of the loss surface: (train, test).
SURFACE = {"flow": (4.90e-6, 0.0149), "gd": (1.64e-10, 0.1265), "sgd": (3.87e-8, 3.98e-8)}

# 1-D regression: short warm-up, long, over-regularised.
REGRESSION_STEPS = 31_623
REGRESSION_RANK = (85, 19, 16)
REGRESSION_SPARSITY = (0.22, 0.064, 0.028)
REGRESSION_TRAIN = (2.09e-4, 1.69e-4, 0.2686)

# Two layers: small step 0.13; 0.455 decayed at 10, 30, 50 %.
TWO_STEPS = 14_126
TWO_RANK = (26, 16, 12, 7)
TWO_SPARSITY = (0.263, 0.110, 0.087, 0.063)
TWO_TEST = (6.10e-4, 1.62e-4, 1.38e-4, 5.41e-5)

# Three layers: small step 0.011; 0.04 with a warm-up, decayed at 10, 30, 50 %.
THREE_STEPS = 10_001
THREE_RANK = (150, 150, 125, 102)
THREE_SPARSITY_1 = (0.570, 0.476, 0.378, 0.340)
THREE_SPARSITY_2 = (0.466, 0.312, 0.252, 0.182)
THREE_TEST = (0.0614, 0.0322, 0.0248, 0.0206)

# ResNet-18, CIFAR-10, with momentum, decay and augmentation: test error, share of active units in blocks 1 to 5.
DEEP_SETTINGS = {"model": "resnet18", "dataset": "cifar10", "recipe": "full", "width": 64}
DEEP_ERROR = (0.1429, 0.1013, 0.0658, 0.0561)
DEEP_SPARSITY = (
    (0.699, 0.704, 0.775, 0.655, 0.987),
    (0.688, 0.682, 0.748, 0.577, 0.959),
    (0.723, 0.587, 0.657, 0.472, 0.770),
    (0.719, 0.547, 0.543, 0.459, 0.630),
)
