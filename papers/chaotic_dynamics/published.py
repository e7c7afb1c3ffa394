"""Published numbers of *Chaotic Dynamics* (NeurIPS 2022): its Figure 2a, digitised to +-0.01 from the repository's SVG.

Batch accuracy, centred mean of 100 steps, one run each, unseeded. By the name of the variant in our results.
"""

STEPS = (1000, 2000, 3000, 5000, 7000, 10_000, 12_000, 15_000, 18_000)
ACCURACY = {
    "sgd": (0.303, 0.312, 0.355, 0.505, 0.605, 0.722, 0.763, 0.818, 0.855),
    "chaotic@10000": (0.348, 0.350, 0.398, 0.471, 0.579, 0.717, 0.741, 0.755, 0.780),
    "chaotic@5000": (0.336, 0.439, 0.450, 0.532, 0.539, 0.555, 0.574, 0.607, 0.630),
    "chaotic@2000": (0.363, 0.352, 0.349, 0.363, 0.396, 0.413, 0.427, 0.433, 0.449),
}
LAST_EPOCH = {"sgd": 0.857, "chaotic@10000": 0.782, "chaotic@5000": 0.632, "chaotic@2000": 0.451}
SLOPES = {
    "chaotic@10000": 0.008,
    "chaotic@5000": 0.008,
    "chaotic@2000": 0.006,
}  # accuracy per 1,000 steps after the start
SGD_SLOPE = 0.051  # over steps 2,000 to 10,000
DIGITS = 0.01
SETTINGS = {
    "dataset": "usps",
    "architecture": "mlp",
    "activation": "sigmoid",
    "steps": 18_240,
    "k": None,
    "learning_rate": 1e-3,
    "batch_size": 8,
    "momentum": 0.0,
    "noise": None,
}
