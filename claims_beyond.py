"""Claims about subnetworks.py, judged by claims.py: see there how a claim is written. No paper has made them."""

import numpy as np

from criteria import falls, resolved, standard_error


def column(rows, *keys):
    """One number of every row, by its path of keys."""
    values = []
    for row in rows:
        for key in keys:
            row = row[key]
        values.append(row)
    return np.array(values, float)


def extraction_exact(beyond_extract):
    """On an invariant set the extracted network computes the same function (planted collapse, eval mode, float32).

    Largest change of an output below 1e-5 of the largest output, all that was planted removed, in all four networks.
    """
    rows = beyond_extract["planted"]
    change = column(rows, "change") / column(rows, "scale")
    whole = all(row["removed"] == row["planted"] for row in rows)
    return "< 1e-5", f"{change.max():.1e} in {len(rows)}", "", len(rows) == 4 and whole and change.max() < 1e-5


def extraction_fast(beyond_extract):
    """Extraction is cheap.

    Under 5 seconds of one CPU core for a full-width VGG-16 with planted collapse.
    """
    if "VGG-16" not in {row["name"] for row in beyond_extract["planted"]}:
        return "< 5 s", "", "", "not resolved"
    seconds = [row["seconds"] for row in beyond_extract["planted"] if row["name"] == "VGG-16"]
    return "< 5 s", f"{seconds[0]:.2f} s", "", seconds[0] < 5


def extraction_free(beyond_extract):
    """At the paper's thresholds the extracted network is as good: what is counted as collapsed isn't needed.

    Test accuracy of every run that has learned (over 0.2) changes by less than 0.01.
    """
    rows = [row for row in beyond_extract["networks"] if row["redundant"] == 0.1 and row["before"]["accuracy"] > 0.2]
    change = column(rows, "after", "accuracy") - column(rows, "before", "accuracy")
    kept = column(rows, "after", "parameters") / column(rows, "before", "parameters")
    text = f"{abs(change).max():.4f}, {kept.min():.1%} of the parameters or more kept"
    return "< 0.01", text, f"{len(rows)} runs", len(rows) > 0 and abs(change).max() < 0.01


def extraction_rate(beyond_extract):
    """More learning rate, a smaller network inside.

    The share of parameters kept at redundancy 0.6 falls from lowest to highest rate, by over 2 s.e. of the seeds.
    """
    rows = [row for row in beyond_extract["networks"] if row["redundant"] == 0.6 and not row["label_noise"]]
    kept = column(rows, "after", "parameters") / column(rows, "before", "parameters")
    rates = column(rows, "learning_rate")
    return falls([kept[rates == rate] for rate in sorted(set(rates))])


def extraction_noise(beyond_extract):
    """More label noise, a smaller network inside.

    The share of parameters kept at redundancy 0.6 falls from no noise to the most, by over 2 s.e. of the seeds, at the
    learning rate that has noise and among noises at which every run learns (test accuracy over 0.2).
    """
    noisy = {row["learning_rate"] for row in beyond_extract["networks"] if row["label_noise"]}
    kept = {}
    for row in beyond_extract["networks"]:
        if row["redundant"] == 0.6 and row["learning_rate"] in noisy:
            share = row["after"]["parameters"] / row["before"]["parameters"]
            kept.setdefault(row["label_noise"], []).append(share if row["before"]["accuracy"] > 0.2 else np.nan)
    return falls([kept[noise] for noise in sorted(kept) if np.isfinite(kept[noise]).all()])


def exponent_closed(beyond_exponent):
    """The exponent of the quartic well and of the single neuron is their closed form, E log|1 + a dt + b dB|.

    Within 2 % + 0.02 per unit time at three noise levels each.
    """
    rows = [row for row in beyond_exponent["closed"] if row["case"] != "pair"]
    gap = abs(column(rows, "exponent").ravel() - column(rows, "expected"))
    allowed = 0.02 * abs(column(rows, "expected")) + 0.02
    return "0", f"{gap.max():.4f}", f"{len(rows)} levels", bool((gap < allowed).all())


def exponent_pair(beyond_exponent, pair):
    """The exponent of the two neurons is the slope of their log distance.

    Within 5 % of the slope on the same label noise, and within 3 s.d. of the seeds' rates in pair.json.
    """
    rows = [row for row in beyond_exponent["closed"] if row["case"] == "pair"]
    found, slope, mean = (column(rows, key).ravel() for key in ("exponent", "expected", "rate"))
    conditions = list(zip(pair["learning_rates"], pair["label_noises"], strict=True))
    places = [conditions.index((row["learning_rate"], row["level"])) for row in rows]
    seeds = pair["settings"]["replicas"] + pair["settings"]["extra_replicas"]
    rates, errors = (np.array(pair[key], float)[places] / 2 for key in ("rate", "rate_error"))  # of squared distances
    ratio, score = found / slope, abs(mean - rates) / (errors * seeds**0.5)
    text = f"{ratio.min():.3f} to {ratio.max():.3f}; {score.max():.1f} s.d."
    return "1; < 3 s.d.", text, "", bool((abs(ratio - 1) < 0.05).all() and (score < 3).all())


def fit(result, which, low=0.0, high=np.inf):
    """Pairs at these distances, correlation, and slope through the origin of measured on predicted; all runs."""
    columns = [np.concatenate([np.array(run[key], float) for run in result["runs"]]) for key in ("predicted", which)]
    distance = np.concatenate([run["distance"][0] for run in result["runs"]])
    predicted, measured = np.array(columns)[:, (distance >= low) & (distance < high)]
    if len(predicted) < 2:
        return len(predicted), np.nan, np.nan
    return len(predicted), np.corrcoef(predicted, measured)[0, 1], (predicted @ measured) / (predicted @ predicted)


def exponent_same(beyond_exponent):
    """In a trained VGG the exponents are the slopes of pairs' log distances over the same steps, far from merging too.

    Correlation above 0.9 and regression slope within 10 % of 1, over at least 100 pairs.
    """
    count, correlation, slope = fit(beyond_exponent, "same")
    text = f"{correlation:.3f}, slope {slope:.3f}"
    return "> 0.9, 1", text, f"{count} pairs", count >= 100 and correlation > 0.9 and abs(slope - 1) < 0.1


def exponent_near(beyond_exponent):
    """The nearer a pair is to its set, the more its exponent is the slope.

    Below a normalised distance of 0.5 the correlation is above 0.9 and the slope within 10 % of 1; both are lower from
    0.5 to 1, and again above 1 (distances chosen after the first result).
    """
    near, middle, far = (fit(beyond_exponent, "same", *ends) for ends in ((0, 0.5), (0.5, 1), (1, np.inf)))
    text = "; ".join(f"{correlation:.3f}, {slope:.2f}" for _, correlation, slope in (near, middle, far))
    ordered = all(a > b > c for a, b, c in zip(near[1:], middle[1:], far[1:], strict=True))
    holds = near[1] > 0.9 and abs(near[2] - 1) < 0.1 and ordered
    return "> 0.9, 1; lower; lower", text, f"{near[0]}, {middle[0]}, {far[0]} pairs", holds


def exponent_next(beyond_exponent):
    """They predict the slopes of the steps that follow.

    Correlation with the slope over the next 1,000 steps above 0.5, in every seed.
    """
    values = [fit({"runs": [run]}, "next")[1] for run in beyond_exponent["runs"]]
    return "> 0.5", ", ".join(f"{value:.2f}" for value in values), f"{len(values)} seeds", min(values) > 0.5


def later_merged(run):
    """(scores of three predictors, arrived at the end?) of the pairs or neurons not there yet; more means sooner."""
    (now, end), threshold = np.array(run["distance"], float), run.get("threshold", 0.1)
    steps = (run["steps"][-1] - run["steps"][0]) / 1000
    predicted, free = np.array(run["predicted"], float), now >= threshold
    scores = {
        "distance now": -np.log(now) / 2,
        "exponent": -predicted,
        "forecast": -np.log(now) / 2 - predicted * steps,
    }
    return {key: score[free] for key, score in scores.items()}, end[free] < threshold, free


def area(score, merged, weights):
    """Area under the ROC curve of weighted examples; ties count half."""
    values, places = np.unique(score, return_inverse=True)
    good = np.bincount(places, weights * merged, len(values))
    bad = np.bincount(places, weights * ~merged, len(values))
    below = np.cumsum(bad) - bad / 2
    return (good @ below) / (good.sum() * bad.sum()) if good.sum() * bad.sum() else np.nan


def areas(result):
    """{predictor: (area, 2.5 %, 97.5 %)}, pooled over runs; the bootstrap draws neurons, a pair counts as both."""
    draw, parts = np.random.default_rng(0), []
    for run in result["runs"]:
        scores, merged, free = later_merged(run)
        groups = np.repeat(np.arange(len(run["groups"])), list(run["groups"].values()))[free]
        index = np.array(run["index"]).reshape(len(free), -1)[free] + 10_000 * groups[:, None]
        names, places = np.unique(index, return_inverse=True)
        parts.append((scores, merged, places.reshape(index.shape), len(names)))
    samples = {key: [] for key in parts[0][0]}
    merged = np.concatenate([part[1] for part in parts])
    for k in range(1 + 1000):
        weights = []
        for _, _, places, count in parts:
            times = np.ones(count) if k == 0 else np.bincount(draw.integers(count, size=count), minlength=count)
            weights.append(times[places].prod(1))
        for key in samples:
            score = np.concatenate([part[0][key] for part in parts])
            samples[key].append(area(score, merged, np.concatenate(weights)))
    return {key: (values[0], *np.nanquantile(values[1:], [0.025, 0.975])) for key, values in samples.items()}


def exponent_roc(beyond_exponent):
    """Measured early, the exponent tells which pairs will have merged at the end of the run.

    Area under the ROC curve: its 95 % interval (bootstrap over neurons) lies above 0.5.
    """
    merged = sum(later_merged(run)[1].sum() for run in beyond_exponent["runs"])
    if not merged:
        return "> 0.5", "", "none has", "not resolved"
    found = areas(beyond_exponent)["exponent"]
    return "> 0.5", f"{found[0]:.3f}", f"{found[1]:.3f} to {found[2]:.3f}, {merged} have", found[1] > 0.5


def exponent_sign(beyond_exponent):
    """The sign of the exponent, measured early, tells who merges: only attracted pairs do.

    The share of pairs merged at the end is larger where it is negative than where it is positive, by over 2 s.e.
    """
    parts = [later_merged(run) for run in beyond_exponent["runs"]]
    attracted = np.concatenate([part[0]["exponent"] for part in parts]) > 0
    merged = np.concatenate([part[1] for part in parts])
    text = f"{merged[attracted].sum()} of {attracted.sum():,}; {merged[~attracted].sum()} of {(~attracted).sum():,}"
    if not merged.any() or attracted.all() or not attracted.any():
        return "more", text, "", "not resolved"
    share = [merged[side].mean() for side in (attracted, ~attracted)]
    all_shares = merged.mean() * (1 - merged.mean())
    error = np.sqrt(all_shares / attracted.sum() + all_shares / (~attracted).sum())
    return "more", text, f"{error:.3f}", resolved(share[0] - share[1], error)


def exponent_naive(beyond_exponent):
    """It tells more than the distance now: the forecast, log distance + exponent x steps left, beats it.

    Its area is larger, and the 95 % intervals don't overlap.
    """
    if not any(later_merged(run)[1].any() for run in beyond_exponent["runs"]):
        return "larger", "", "none has", "not resolved"
    found = areas(beyond_exponent)
    forecast, naive = found["forecast"], found["distance now"]
    text = f"{forecast[0]:.3f} against {naive[0]:.3f}"
    holds = forecast[1] > naive[2] or ("not resolved" if forecast[2] > naive[1] else False)
    return "larger", text, f"from {forecast[1]:.3f}; to {naive[2]:.3f}", holds


def exponent_parts(beyond_exponent):
    """The exponent is curvature + noise + decay, to second order.

    Their sum is within 10 % of the exponents' standard deviation over pairs (root mean square), in the VGG.
    """
    parts = {key: np.array(value, float) for key, value in beyond_exponent["parts"].items()}
    gap = parts["curvature"] + parts["noise"] + parts["decay"] - parts["exponent"]
    ratio = np.sqrt(np.mean(gap**2)) / parts["exponent"].std()
    means = ", ".join(f"{parts[key].mean():.3f}" for key in ("curvature", "noise", "decay"))
    return "< 0.1", f"{ratio:.3f}", f"means {means} per 1,000 steps", ratio < 0.1


def exponent_cost(beyond_exponent):
    """Exponents are cheap: gradient, exponents and update of a step, for 100 pairs, against a gradient alone.

    Less than 30 times the processor time, in VGG-16 at width 8.
    """
    cost = beyond_exponent["cost"]
    ratio = cost["exponent"] / cost["gradient"]
    return "< 30", f"{ratio:.2f}", f"{cost['pairs']} pairs", cost["pairs"] == 100 and ratio < 30


def vanishing_roc(beyond_vanishing):
    """Measured before any neuron has vanished, the exponent tells which ones will have at the end of the run.

    Area under the ROC curve: its 95 % interval (bootstrap over neurons) lies above 0.5.
    """
    return exponent_roc(beyond_vanishing)


def vanishing_sign(beyond_vanishing):
    """The sign of that exponent tells who vanishes: only attracted neurons do.

    The share of neurons gone at the end is larger where it is negative than where it is positive, by over 2 s.e.
    """
    return exponent_sign(beyond_vanishing)


def vanishing_naive(beyond_vanishing):
    """It tells more than the neuron's size now: the forecast, log size + exponent x steps left, beats it.

    Its area is larger, and the 95 % intervals don't overlap.
    """
    return exponent_naive(beyond_vanishing)


def cause(result, size, decay):
    """The row of a batch size and a weight decay, by their ranks (-1: the largest)."""
    sizes, decays = (sorted({row[key] for row in result["rows"]}) for key in ("batch_size", "weight_decay"))
    return next(r for r in result["rows"] if (r["batch_size"], r["weight_decay"]) == (sizes[size], decays[decay]))


def causes_noise(beyond_causes):
    """Noise attracts: without it (the full batch) the exponents are higher.

    Their mean over pairs falls from the full batch to the run's own, by over 2 s.e., weight decay as it is.
    """
    noisy, calm = (cause(beyond_causes, size, -1)["exponent"] for size in (0, -1))
    text = f"{np.mean(calm):.3f} to {np.mean(noisy):.3f} per 1,000 steps"
    if len(noisy) < 2:
        return "falling", text, "1 replica", "not resolved"
    error = np.hypot(standard_error(noisy), standard_error(calm) if len(calm) > 1 else 0)  # the full batch has none
    return "falling", text, f"{error:.3f}", resolved(np.mean(calm) - np.mean(noisy), error)


def causes_decay(beyond_causes):
    """Weight decay attracts, with noise and without, and its part is -eta x decay.

    At every batch size the mean exponent falls when decay is put back (on the same batches), by over 2 s.e. of the
    replicas, and the part is -eta x decay within 1 %.
    """
    run, sizes = beyond_causes["run"], {row["batch_size"] for row in beyond_causes["rows"]}
    pairs = [[cause(beyond_causes, k, decay) for decay in (0, -1)] for k in range(len(sizes))]
    gains = [np.subtract(both["exponent"], free["exponent"]) for free, both in pairs]
    errors = [standard_error(gain) if len(gain) > 1 else 0 for gain in gains]  # of a full batch
    expected = -1000 * run["learning_rate"] / (1 - run["momentum"]) * pairs[0][1]["weight_decay"]
    exact = all(abs(np.mean(both["decay"]) / expected - 1) < 0.01 for _, both in pairs)
    holds = bool(exact and max(gain.mean() for gain in gains) < 0)
    clear = len(gains[0]) > 1 and all(abs(gain.mean()) > 2 * e for gain, e in zip(gains, errors, strict=True))
    text = f"{', '.join(f'{gain.mean():.3f}' for gain in gains)} per 1,000 steps"
    return f"{expected:.3f}; falling", text, f"{max(errors):.3f}", holds if clear else "not resolved"


def causes_split(beyond_causes):
    """With and without noise and decay the exponent is curvature + noise + decay; without noise the noise part goes.

    In each case their sum is within a tenth of the largest part; the noise part of the full batch is under a tenth.
    """
    keys, off = ("curvature", "noise", "decay"), []
    for row in beyond_causes["rows"]:
        parts = [np.mean(row[key]) for key in keys]
        off.append(abs(sum(parts) - np.mean(row["exponent"])) / np.abs(parts).max())
    noisy, calm = (np.mean(cause(beyond_causes, size, -1)["noise"]) for size in (0, -1))
    text = f"{max(off):.3f}; {calm:.3f} against {noisy:.3f}"
    return "< 0.1; < 0.1", text, "", bool(max(off) < 0.1 and abs(calm / noisy) < 0.1)


CLAIMS = {
    "beyond_extraction": (extraction_exact, extraction_fast, extraction_free, extraction_rate, extraction_noise),
    "beyond_exponent": (
        exponent_closed,
        exponent_pair,
        exponent_same,
        exponent_near,
        exponent_next,
        exponent_roc,
        exponent_sign,
        exponent_naive,
        exponent_parts,
        exponent_cost,
    ),
    "beyond_vanishing": (vanishing_roc, vanishing_sign, vanishing_naive),
    "beyond_causes": (causes_noise, causes_decay, causes_split),
}
