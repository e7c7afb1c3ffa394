"""Claims about extracted networks, forecasts of collapse and its causes. No paper has made them."""

import re

import numpy as np

from papers.beyond import readings
from papers.beyond.readings import Areas, Causes, Exponents, Extraction, Shipped, Switch, Window, fit_slopes
from papers.claim import (
    Claims,
    NotResolved,
    NotRun,
    Numbers,
    Outcome,
    decide,
    falling,
    numbers,
    standard_error,
    two_errors,
)

claim = Claims("Beyond the papers")


def everywhere(first: str):
    """For `each`: a result, and all others of its form, from other networks or steps: `<first>_<name>`."""

    def results(names: list[str]) -> list[tuple[str]]:
        others = [name for name in names if re.fullmatch(rf"{first}_\w+", name)]
        return [(first,), *((name,) for name in others)]

    return results


all_extracted = everywhere("beyond_extract")
all_vanishing = everywhere("beyond_vanishing")
all_windows = everywhere("beyond_windows")
all_switches = everywhere("beyond_switch")
all_causes = everywhere("beyond_causes")

# ======================================================================================
# Extraction
# ======================================================================================


@claim(
    "check",
    "On an invariant set the extracted network computes the same function (planted collapse, eval mode, float32).",
    """Largest change of an output below 1e-5 of the largest output, all that was planted removed, in all four
    networks.""",
    figure="beyond_extraction",
    needs="beyond_extract",
)
def extraction_exact(extraction: Extraction):
    changes = np.array([one.change for one in extraction.planted])
    whole = all(one.removed == one.planted for one in extraction.planted)
    if len(changes) != 4:
        raise NotResolved(f"{len(changes)} of 4 networks")
    measured = numbers(changes.max(), ".1e")
    return Outcome("< 1e-5", measured, f"{len(changes)} networks", whole and changes.max() < 1e-5)


@claim(
    "check",
    "Extraction from the paper's VGG-16 is cheap.",
    "Under 2 seconds of one CPU core at full width, with planted collapse. Beside it other networks' seconds.",
    figure="beyond_extraction",
    needs="beyond_extract",
    changed="5 seconds was 7 times slack; and it spoke of extraction in general, while vgg11_bn takes 22 seconds.",
)
def extraction_fast(extraction: Extraction):
    seconds = {one.name: one.seconds for one in extraction.planted}
    if "VGG-16" not in seconds:
        raise NotResolved("no VGG-16 was tried")
    of_vgg16 = seconds.pop("VGG-16")
    others = ", ".join(f"{name} {spent:.2f} s" for name, spent in seconds.items())
    return Outcome("< 2 s", numbers(of_vgg16, ".2f", f"{of_vgg16:.2f} s"), others, of_vgg16 < 2)


@claim(
    "ours",
    "At the paper's thresholds the extracted network is as good: what is counted as collapsed isn't needed.",
    "Test accuracy of every run changes by less than 0.01, those that have not learned among them.",
    figure="beyond_extraction",
    each=all_extracted,
    changed="a run that had not learned was left out; it changes most.",
)
def extraction_free(extraction: Extraction):
    rows = [one for one in extraction.networks if one.redundant == 0.1]
    if not rows:
        raise NotResolved("nothing extracted at redundancy 0.1")
    changes = np.array([one.after["accuracy"] - one.before["accuracy"] for one in rows])
    kept = min(one.kept for one in rows)
    measured = numbers(np.abs(changes).max(), ".4f")
    note = f"{len(rows)} runs, {kept:.0%} of the parameters or more kept"
    return Outcome("< 0.01", measured, note, np.abs(changes).max() < 0.01)


@claim(
    "ours",
    "It matters which neurons go: removing as many random ones costs more accuracy.",
    "Mean over runs of accuracy with extraction less accuracy with random neurons removed, above 0 by 2 s.e.",
    figure="beyond_random",
    each=all_extracted,
)
def extraction_random(extraction: Extraction):
    rows = [one for one in extraction.networks if one.redundant == 0.1 and one.kept < 1]
    if not rows or any(one.random_accuracy is None for one in rows):
        raise NotRun("no networks with random neurons removed")
    gains = np.array([one.after["accuracy"] - one.random_accuracy for one in rows])
    error = standard_error(gains)
    note = f"{error:.3f}, {len(rows)} runs"
    return decide(gains.mean(), error, "> 0", numbers(gains.mean()), note, seeds=len(rows))


def kept_by(rows: list, field: str) -> list[np.ndarray]:
    """[values][seeds] share of parameters kept, in rising order of a field."""
    found = {}
    for one in rows:
        found.setdefault(getattr(one, field), []).append(one.kept)
    return [np.array(found[value]) for value in sorted(found)]


ORDER = """The share of parameters kept at redundancy 0.6, over all values in order, seed by seed: its slope is
negative, and no value lies above the one before it, each by over 2 s.e."""


@claim(
    "ours",
    "More learning rate, a smaller network inside.",
    ORDER,
    figure="beyond_extraction",
    needs="beyond_extract",
    changed="only the ends were compared.",
)
def extraction_rate(extraction: Extraction):
    rows = kept_by(
        [one for one in extraction.networks if one.redundant == 0.6 and not one.label_noise], "learning_rate"
    )
    return falling(rows, numbers([row.mean() for row in rows]))


@claim(
    "ours",
    "More label noise, a smaller network inside.",
    ORDER + " At the learning rate that has noise; all runs.",
    figure="beyond_extraction",
    needs="beyond_extract",
    changed="only the ends were compared, and noises at which a run had not learned were left out.",
)
def extraction_noise(extraction: Extraction):
    noisy = {one.learning_rate for one in extraction.networks if one.label_noise}
    chosen = [one for one in extraction.networks if one.redundant == 0.6 and one.learning_rate in noisy]
    rows = kept_by(chosen, "label_noise")
    return falling(rows, numbers([row.mean() for row in rows]))


# ======================================================================================
# Exponents where they are known, and in a network
# ======================================================================================


@claim(
    "check",
    "The exponent of the quartic well and of the single neuron is their closed form, E log|1 + a dt + b dB|.",
    "Within 2 % + 0.02 per unit time at three noise levels each.",
    figure="beyond_exponent",
    needs="beyond_exponent",
)
def exponent_closed(exponents: Exponents):
    rows = [one for one in exponents.known if one.case != "pair"]
    if not rows:
        raise NotResolved("no closed form was tried")
    gaps = np.array([abs(one.exponent - one.expected) for one in rows])
    allowed = np.array([0.02 * abs(one.expected) + 0.02 for one in rows])
    return Outcome("0", numbers(gaps.max(), ".4f"), f"{len(rows)} levels", (gaps < allowed).all())


@claim(
    "check",
    "The exponent of the two neurons is the slope of their log distance.",
    "Within 5 % of the slope on the same label noise, and within 3 s.d. of the seeds' rates in pair.json.",
    figure="beyond_exponent",
    needs=("beyond_exponent", "pair"),
)
def exponent_pair(exponents: Exponents, pair):
    rows = [one for one in exponents.known if one.case == "pair"]
    ratios, scores = [], []
    for one in rows:
        place = pair.conditions.index((one.learning_rate, one.level))
        rate, error = pair.rate[place] / 2, pair.rate_error[place] / 2  # of squared distances there
        ratios.append(one.exponent / one.expected)
        scores.append(abs(one.rate - rate) / (error * np.sqrt(pair.seeds)))
    if not rows:
        raise NotResolved("no pair was tried")
    ratios, scores = np.array(ratios), np.array(scores)
    text = f"{ratios.min():.3f} to {ratios.max():.3f}; {scores.max():.1f} s.d."
    holds = (np.abs(ratios - 1) < 0.05).all() and (scores < 3).all()
    return Outcome("1; < 3 s.d.", Numbers(np.concatenate([ratios, scores]), text), "", holds)


@claim(
    "ours",
    """In a trained VGG the exponents are the slopes of pairs' log distances over the same steps, far from merging
    too.""",
    "Correlation above 0.9 and regression slope within 10 % of 1, over at least 100 pairs.",
    figure="beyond_exponent",
    needs="beyond_exponent",
)
def exponent_same(exponents: Exponents):
    fit = fit_slopes(exponents.runs, "same")
    measured = numbers([fit.correlation, fit.slope], ".3f", f"{fit.correlation:.3f}, slope {fit.slope:.3f}")
    holds = fit.count >= 100 and fit.correlation > 0.9 and abs(fit.slope - 1) < 0.1
    return Outcome("> 0.9, 1", measured, f"{fit.count} pairs", holds)


@claim(
    "ours",
    "The nearer a pair is to its set, the more its exponent is the slope.",
    """Below a normalised distance of 0.5 the correlation is above 0.9 and the slope within 10 % of 1; both are
    lower from 0.5 to 1, and again above 1.""",
    figure="beyond_exponent",
    needs="beyond_exponent",
    changed="the distances were chosen after the first result.",
)
def exponent_near(exponents: Exponents):
    near = fit_slopes(exponents.runs, "same", 0, 0.5)
    farther = fit_slopes(exponents.runs, "same", 0.5, 1)
    far = fit_slopes(exponents.runs, "same", 1, np.inf)
    fits = (near, farther, far)
    correlations = np.array([fit.correlation for fit in fits])
    slopes = np.array([fit.slope for fit in fits])
    follows = near.correlation > 0.9 and abs(near.slope - 1) < 0.1
    correlations_fall = (np.diff(correlations) < 0).all()
    slopes_fall = (np.diff(slopes) < 0).all()
    text = "; ".join(f"{fit.correlation:.3f}, {fit.slope:.2f}" for fit in fits)
    measured = Numbers(np.concatenate([correlations, slopes]), text)
    counts = ", ".join(str(fit.count) for fit in fits)
    holds = follows and correlations_fall and slopes_fall
    return Outcome("> 0.9, 1; lower; lower", measured, counts, holds)


@claim(
    "ours",
    "They predict the slopes of the steps that follow.",
    "Correlation with the slope over the next 1,000 steps above 0.5, in every seed.",
    figure="beyond_exponent",
    needs="beyond_exponent",
)
def exponent_next(exponents: Exponents):
    values = [fit_slopes([run], "next").correlation for run in exponents.runs]
    return Outcome("> 0.5", numbers(values, ".2f"), f"{len(values)} seeds", min(values) > 0.5)


# ======================================================================================
# Who arrives: prediction against watching
# ======================================================================================


def need_arrivals(exponents: Exponents) -> int:
    count = sum(int(run.arrived.sum()) for run in exponents.runs)
    if not count:
        raise NotResolved("none has arrived")
    return count


def tells_more(found: Areas, first: str, second: str) -> Outcome:
    """Is the area of one predictor larger than another's? Both from the same bootstrap samples."""
    gain, low, high = found.difference(first, second)
    measured = numbers([found.found[first], found.found[second]], ".3f")
    note = f"difference {gain:+.3f} ({low:+.3f} to {high:+.3f})"
    if low <= 0 <= high:
        raise NotResolved("the 95 % interval of the difference holds 0", "larger", measured, note)
    return Outcome("larger", measured, note, low > 0)


TELLS = 0.6  # area under the ROC curve of what tells who arrives; chance is 0.5


def tells_who(exponents: Exponents) -> Outcome:
    count = need_arrivals(exponents)
    found = exponents.areas
    low, high = found.interval("exponent")
    expected = f"> {TELLS}"
    measured = numbers(found.found["exponent"], ".3f")
    note = f"{low:.3f} to {high:.3f}, {count} have"
    if low <= TELLS <= high:
        raise NotResolved(f"the 95 % interval holds {TELLS}", expected, measured, note)
    return Outcome(expected, measured, note, low > TELLS)


def sign_tells(exponents: Exponents) -> Outcome:
    """Is the share that arrives larger where the exponent is negative, by over 2 s.e. of the pooled share?"""
    need_arrivals(exponents)
    arrived = np.concatenate([run.arrived for run in exponents.runs])
    attracted = np.concatenate([run.scores()["exponent"] for run in exponents.runs]) > 0
    counts = [arrived[attracted].sum(), attracted.sum(), arrived[~attracted].sum(), (~attracted).sum()]
    text = f"{counts[0]} of {counts[1]:,}; {counts[2]} of {counts[3]:,}"
    measured = Numbers(np.array(counts, float), text)
    if not counts[1] or not counts[3]:
        raise NotResolved("all exponents have one sign", "more", measured)
    share = arrived.mean()
    error = np.sqrt(share * (1 - share) * (1 / counts[1] + 1 / counts[3]))
    gain = counts[0] / counts[1] - counts[2] / counts[3]
    return decide(gain, error, "more", measured, f"{error:.3f}")


INTERVAL = "Area under the ROC curve: its 95 % interval (bootstrap over neurons) lies above 0.6."
BARELY = "it asked for an interval above 0.5, which .511 to .76 met: better than chance, but that tells nobody."
LARGER = (
    "Its area under the ROC curve is larger: the 95 % interval of the difference (same bootstrap samples) excludes 0."
)


@claim(
    "ours",
    "Measured early, the exponent tells which pairs will have merged at the end of the run.",
    INTERVAL,
    figure="beyond_exponent",
    needs="beyond_exponent",
    changed=BARELY,
)
def exponent_roc(exponents: Exponents):
    return tells_who(exponents)


@claim(
    "ours",
    "The sign of the exponent, measured early, tells who merges: only attracted pairs do.",
    "The share of pairs merged at the end is larger where it is negative than where it is positive, by over 2 s.e.",
    figure="beyond_exponent",
    needs="beyond_exponent",
)
def exponent_sign(exponents: Exponents):
    return sign_tells(exponents)


@claim(
    "ours",
    "It tells more than the distance now: the forecast, log distance + exponent x steps left, beats it.",
    LARGER,
    figure="beyond_exponent",
    needs="beyond_exponent",
    changed="intervals that don't overlap ask for more than a difference that is resolved; the pairs are the same.",
)
def exponent_naive(exponents: Exponents):
    need_arrivals(exponents)
    return tells_more(exponents.areas, "forecast", "distance now")


@claim(
    "ours",
    "It tells more than watching: the forecast beats the distance carried on at its own measured slope.",
    LARGER,
    figure="beyond_exponent",
    needs="beyond_exponent",
)
def exponent_watching(exponents: Exponents):
    need_arrivals(exponents)
    return tells_more(exponents.areas, "forecast", "watching")


@claim(
    "ours",
    "For pairs far from merging, at least, the forecast tells more than watching.",
    f"Of the thirds of the pairs by distance at the first checkpoint, the farthest in which ten merge: {LARGER}",
    figure="beyond_exponent",
    needs="beyond_exponent",
    changed="it asked of the farthest third of all, in which none has merged; the areas of all thirds were seen then.",
)
def exponent_far(exponents: Exponents):
    counts = []
    for within in reversed(readings.thirds_by_distance(exponents.runs)):
        found = readings.areas(exponents.runs, within=within)
        counts.append(str(found.arrived))
        if found.arrived >= 10:
            outcome = tells_more(found, "forecast", "watching")
            return outcome._replace(error=f"{outcome.error}; farthest first, {', '.join(counts)} have")
    raise NotResolved(f"in no third ten have merged, but {', '.join(counts)}")


@claim(
    "check",
    "The exponent is curvature + noise + decay, to second order.",
    "Their sum is within 10 % of the exponents' standard deviation over pairs (root mean square), in the VGG.",
    figure="beyond_exponent",
    needs="beyond_exponent",
)
def exponent_parts(exponents: Exponents):
    parts = exponents.parts
    gap = parts["curvature"] + parts["noise"] + parts["decay"] - parts["exponent"]
    ratio = np.sqrt(np.mean(gap**2)) / parts["exponent"].std()
    means = ", ".join(f"{parts[name].mean():.3f}" for name in ("curvature", "noise", "decay"))
    return Outcome("< 0.1", numbers(ratio), f"means {means} per 1,000 steps", ratio < 0.1)


@claim(
    "check",
    "Exponents are cheap: gradient, exponents and update of a step, for 100 pairs, against a gradient alone.",
    "Less than 2 times the processor time, in VGG-16 at width 8.",
    figure="beyond_exponent",
    needs="beyond_exponent",
    changed="30 times was 23 times slack.",
)
def exponent_cost(exponents: Exponents):
    cost = exponents.cost
    if cost is None or cost.pairs != 100:
        raise NotResolved("not measured with 100 pairs")
    ratio = cost.exponent / cost.gradient
    return Outcome("< 2", numbers(ratio, ".2f"), f"{cost.pairs} pairs", ratio < 2)


@claim(
    "ours",
    "Measured before any neuron has vanished, the exponent tells which ones will have at the end of the run.",
    INTERVAL,
    figure="beyond_vanishing",
    each=all_vanishing,
    changed=BARELY,
)
def vanishing_roc(exponents: Exponents):
    return tells_who(exponents)


@claim(
    "ours",
    "The sign of that exponent tells who vanishes: only attracted neurons do.",
    "The share of neurons gone at the end is larger where it is negative than where it is positive, by over 2 s.e.",
    figure="beyond_vanishing",
    each=all_vanishing,
)
def vanishing_sign(exponents: Exponents):
    return sign_tells(exponents)


@claim(
    "ours",
    "It tells more than the neuron's size now: the forecast, log size + exponent x steps left, beats it.",
    LARGER,
    figure="beyond_vanishing",
    each=all_vanishing,
    changed="intervals that don't overlap ask for more than a difference that is resolved; the neurons are the same.",
)
def vanishing_naive(exponents: Exponents):
    need_arrivals(exponents)
    return tells_more(exponents.areas, "forecast", "distance now")


@claim(
    "ours",
    "It tells more than watching: the forecast beats the neuron's size carried on at its own measured slope.",
    LARGER,
    figure="beyond_vanishing",
    each=all_vanishing,
)
def vanishing_watching(exponents: Exponents):
    need_arrivals(exponents)
    return tells_more(exponents.areas, "forecast", "watching")


@claim(
    "ours",
    """Earlier than watching: from a window of 50 to 100 steps the exponent tells who vanishes, a measured slope
    doesn't.""",
    """Forecasts from the shortest window beat the sizes carried on at the slope of that window: 95 % interval above
    0.""",
    figure="beyond_edge",
    each=all_windows,
)
def windows_short(windows: list[Window]):
    shortest = windows[0]
    found = shortest.areas
    gain, low, high = found.difference("forecast", "watching")
    measured = numbers([found.found["forecast"], found.found["watching"]])
    note = f"{shortest.steps} steps, difference {gain:+.3f} ({low:+.3f} to {high:+.3f})"
    if low <= 0 <= high:
        raise NotResolved("the 95 % interval of the difference holds 0", "larger", measured, note)
    return Outcome("larger", measured, note, low > 0)


# ======================================================================================
# A change that hasn't happened yet
# ======================================================================================


@claim(
    "ours",
    """What watching can't have: exponents at another rate, batch size or label noise, at today's weights, tell the
    slopes after a switch.""",
    """In every switch their correlation with the slopes of the switched run is larger than that of the slopes
    before it, by over 2 s.e. (Fisher's z).""",
    figure="beyond_edge",
    each=all_switches,
)
def switch_foretold(switches: list[Switch]):
    gains, texts = [], []
    for one in switches:
        error = np.sqrt(2 / max(len(one.after) - 3, 1))
        gains.append((np.arctanh(one.told) - np.arctanh(one.watched)) / error)
        texts.append(f"{one.told:.2f} / {one.watched:.2f}")
    gains = np.array(gains)
    measured = Numbers(gains, ", ".join(texts))
    note = f"least {gains.min():.1f} s.e."
    if (gains < -2).any() or (gains > 2).all():
        return Outcome("told > watched", measured, note, bool((gains > 2).all()))
    raise NotResolved("a switch is within 2 s.e.", "told > watched", measured, note)


def need_going_on(switches: list[Switch]) -> None:
    if any(one.going_on is None for one in switches):
        raise NotRun("no network where nothing is changed")


@claim(
    "ours",
    "The exponents foretell which way a switch moves the neurons on average.",
    """In every switch of every seed the mean over neurons of the change of the slope (switched run less the one that
    goes on) has the sign of the mean change of the exponents.""",
    figure="beyond_edge",
    each=all_switches,
)
def switch_level(switches: list[Switch]):
    need_going_on(switches)
    told = np.array([one.change_told.mean() for one in switches])
    found = np.array([one.change.mean() for one in switches])
    pairs = ", ".join(f"{x:+.2f} / {y:+.2f}" for x, y in zip(told, found, strict=True))
    measured = Numbers(np.concatenate([told, found]), pairs)
    signs_agree = np.sign(told) == np.sign(found)
    return Outcome("the same signs", measured, f"{len(told)} switches", signs_agree.all())


@claim(
    "ours",
    "They foretell which neurons a switch moves most.",
    """In every switch of every seed the correlation over neurons of these two changes is above 0.3.""",
    figure="beyond_edge",
    each=all_switches,
)
def switch_difference(switches: list[Switch]):
    need_going_on(switches)
    values = np.array([np.corrcoef(one.change_told, one.change)[0, 1] for one in switches])
    return Outcome("> 0.3", numbers(values, ".2f"), f"{len(values)} switches", (values > 0.3).all())


# ======================================================================================
# Causes
# ======================================================================================


@claim(
    "ours",
    "Noise attracts: without it (the full batch) the exponents are higher.",
    """Their mean over pairs rises with every larger batch size up to the full batch, by over 2 s.e. each, weight
    decay as it is.""",
    figure="beyond_causes",
    each=all_causes,
    changed="""only the ends were compared, over pairs that were not independent; now the errors are those of
    replicas.""",
)
def causes_noise(causes: Causes):
    decay = causes.weight_decays[-1]
    rows = [causes.at(size, decay).exponent for size in causes.batch_sizes]
    measured = numbers([row.mean() for row in rows])
    expected = "rising with batch size"
    if len(rows) < 2 or len(rows[0]) < 2:
        raise NotResolved("1 replica, or one batch size", expected, measured)
    errors = np.array([standard_error(row) if len(row) > 1 else 0.0 for row in rows])  # the full batch has no noise
    gains = np.diff([row.mean() for row in rows])
    scores = gains / np.hypot(errors[1:], errors[:-1])
    limit = two_errors(len(rows[0]))
    note = f"least {scores.min():.1f} s.e., {len(rows[0])} replicas"
    if (scores > limit).all() or (scores < -limit).any():
        return Outcome(expected, measured, note, bool((scores > limit).all()))
    raise NotResolved(f"neighbours within {limit:.3g} s.e.", expected, measured, note)


@claim(
    "ours",
    "Weight decay attracts, with noise and without.",
    """At every batch size the mean exponent falls when decay is put back (on the same batches), by over 2 s.e. of
    the replicas.""",
    figure="beyond_causes",
    each=all_causes,
    changed="that its part is -eta x decay is an identity: it went to causes-split.",
)
def causes_decay(causes: Causes):
    gains, errors = [], []
    for size in causes.batch_sizes:
        free, both = (causes.at(size, decay).exponent for decay in (causes.weight_decays[0], causes.weight_decays[-1]))
        change = both - free
        gains.append(change.mean())
        errors.append(standard_error(change) if len(change) > 1 else 0.0)  # the full batch has no noise
    gains, errors = np.array(gains), np.array(errors)
    measured = numbers(gains)
    replicas = len(causes.at(causes.batch_sizes[0], causes.weight_decays[0]).exponent)
    if replicas < 2:
        raise NotResolved("1 replica", "< 0", measured)
    limit = two_errors(replicas)
    note = f"{errors.max():.3f}, {replicas} replicas"
    if (np.abs(gains) <= limit * errors).any():
        raise NotResolved(f"a batch size is within {limit:.3g} s.e.", "< 0", measured, note)
    return Outcome("< 0", measured, note, (gains < 0).all())


@claim(
    "check",
    "With and without noise and decay the exponent is curvature + noise + decay; without noise the noise part goes.",
    """In each case their sum is within a tenth of the largest part; the noise part of the full batch is under a
    tenth of the noisiest; the decay part is -eta x decay within 1 %.""",
    figure="beyond_causes",
    each=all_causes,
)
def causes_split(causes: Causes):
    gaps_of_sums = []
    gaps_of_decays = []
    for row in causes.rows:
        parts = np.array([row.curvature.mean(), row.noise.mean(), row.decay.mean()])
        gap = parts.sum() - row.exponent.mean()
        gaps_of_sums.append(abs(gap) / np.abs(parts).max())
        if row.weight_decay:
            pull = 1000 * causes.learning_rate / (1 - causes.momentum) * row.weight_decay
            gaps_of_decays.append(abs(row.decay.mean() / -pull - 1))
    sums_off, decays_off = max(gaps_of_sums), max(gaps_of_decays)
    decay = causes.weight_decays[-1]
    noisy = causes.at(causes.batch_sizes[0], decay).noise.mean()
    calm = causes.at(causes.batch_sizes[-1], decay).noise.mean()
    text = f"{sums_off:.3f}; {calm:.3f} against {noisy:.3f}; {decays_off:.1%}"
    measured = Numbers(np.array([sums_off, calm, noisy, decays_off]), text)
    holds = sums_off < 0.1 and abs(calm / noisy) < 0.1 and decays_off < 0.01
    return Outcome("< 0.1; < 0.1; < 1 %", measured, "", holds)


# ======================================================================================
# Networks that packages ship
# ======================================================================================


@claim(
    "ours",
    "Trained networks that packages ship have hardly collapsed at the paper's thresholds.",
    "In each, fewer than 5 % of the neurons have vanished or are redundant; at least five networks.",
    figure="beyond_wild",
    needs="beyond_wild",
    changed="it was stated when the result had been seen.",
)
def wild_share(networks: list[Shipped]):
    shares = np.array([one.collapsed for one in networks])
    measured = numbers(shares.max(), ".3f")
    if len(networks) < 5:
        raise NotResolved(f"{len(networks)} networks were installed", "< 0.05", measured)
    most = networks[int(shares.argmax())].name
    return Outcome("< 0.05", measured, f"{len(networks)} networks, most in {most}", shares.max() < 0.05)


@claim(
    "ours",
    "What lies on its invariant set to a thousandth is not needed: taking it out of networks in use changes nothing.",
    """Some networks lose parameters, and in these the largest change of an output is below 1e-4 of their standard
    deviation.""",
    figure="beyond_wild",
    needs="beyond_wild",
    changed="it was stated when the result had been seen.",
)
def wild_exact(networks: list[Shipped]):
    changes = np.array([one.exact.change for one in networks if one.removed(one.exact) > 0])
    if len(changes) == 0:
        raise NotResolved("no network lost a parameter")
    measured = numbers(changes.max(), ".1e")
    return Outcome("< 1e-4", measured, f"{len(changes)} networks", changes.max() < 1e-4)


@claim(
    "ours",
    "What has collapsed at the paper's thresholds in networks in use is not needed.",
    """In the networks that lose parameters the largest change of an output is below a tenth of their standard
    deviation.""",
    figure="beyond_wild",
    needs="beyond_wild",
    changed="it was stated when the result had been seen.",
)
def wild_paper(networks: list[Shipped]):
    cut = [one for one in networks if one.removed(one.paper) > 0]
    if not cut:
        raise NotResolved("no network lost a parameter")
    changes = np.array([one.paper.change for one in cut])
    over = sum(changes >= 0.1)
    return Outcome("< 0.1", numbers(changes.max(), ".2f"), f"{over} of {len(cut)} networks above", over == 0)
