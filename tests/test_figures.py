"""figures.py: what it draws, what it writes, what it says, and that nothing a user does to it loses a figure."""

import dataclasses
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import figures
from papers import claim, pages, plots, registry
from papers.result import Result, ResultError, command_of
from papers.stochastic_collapse import figures as deep_figures
from papers.stochastic_collapse.readings import at_the_end, layers_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
matplotlib.use("Agg")
CHEAP = "fig5_minibatch"  # drawn in a fraction of a second


@pytest.fixture(scope="module")
def loaded():
    return figures.load(RESULTS, set(figures.known_results(RESULTS)), quick=False)


def raw(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def ended(capsys, *arguments):
    """(exit code, stdout, stderr) of figures.main."""
    code = 0
    try:
        figures.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture(autouse=True, scope="module")
def style():
    """That of the figures, for these tests alone."""
    before = dict(plots.plt.rcParams)
    plots.use_style()
    yield
    plots.plt.rcParams.update(before)


def folder_of(tmp_path, *names):
    """A folder of results with copies of these."""
    out = tmp_path / "mine"
    out.mkdir()
    for name in names:
        shutil.copy(RESULTS / f"{name}.json", out)
    return out


# ======================================================================================
# What is drawn
# ======================================================================================


def texts_of(figure):
    return [text for text in figure.findobj(plots.plt.Text) if text.get_text().strip() and text.get_visible()]


# Figure -> words of a title that states a finding: the claim that must hold for it
FINDINGS = {
    "fig1_quartic": {"the origin attracts": "quartic-threshold"},
    "fig2_neuron": {"step at the threshold": "neuron-sharpening", "Growth turns to decay": "neuron-threshold"},
    "fig5_teacher_student": {"the lower the test loss": "student-test", "are gone": "student-threshold"},
    "fig5_minibatch": {"end at a lower": "minibatch-size"},
    "chaos_pruning": {
        "hardly learns": "chaotic-hurts:pruning",
        "carry the loss": "positive-loss:pruning",
        "Curvature stays far below": "negative-is-chaotic:pruning",
    },
    "chaos_delay": {
        "The earlier pruning starts": "delay-ordering:delay",
        "The later, the better": "delay-ordering:delay",
    },
    "sparse_diagonal": {
        "far lower": "diagonal-large-helps",
        "Without noise": "diagonal-gd",
        "tuned to data set 0": "diagonal-divergence",
    },
    "sparse_surface": {"SGD ends at": "surface-published", "2-cycle": "surface-cycle"},
    "sparse_regression": {"simpler functions": "regression-large", "height of the step": "regression-peak"},
    "sparse_relu": {
        "Two layers: large steps lower": "two-layers-large",
        "They make features sparse": "two-layers-sparse",
        "test better": "three-layers-test",
    },
    "beyond_random": {"It matters which go": "extraction-random:beyond_extract_noisy"},
    "beyond_exponent": {"it is exact": "exponent-closed", "near the set": "exponent-near"},
    "beyond_vanishing": {"lowest exponents": "vanishing-roc:beyond_vanishing"},
    "beyond_causes": {"The less noise": "causes-noise:beyond_causes", "lower with decay": "causes-decay:beyond_causes"},
}


def titles_of(figure):
    return [panel.get_title(loc="left") for panel in figure.axes]


def test_every_figure_is_as_wide_as_the_page_can_be_read_and_states_only_what_holds(loaded):
    claims = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))
    holds = {row["id"]: row["holds"] for row in claims}
    plots.use_style()
    for name in registry.FIGURES:
        figure = figures.draw(name, loaded, width=None)
        if figure is None:  # its results are still to come
            assert set(registry.FIGURES[name].needs) - loaded.readings.keys(), name
            continue
        assert figure.get_figwidth() == pytest.approx(plots.WIDTH), name
        small = [text.get_text() for text in texts_of(figure) if text.get_fontsize() < 8]
        assert not small, (name, small)
        assert registry.FIGURES[name].draw.__doc__, name
        for words, claim_id in FINDINGS.get(name, {}).items():
            said = any(words in title for title in titles_of(figure))
            assert said and holds[claim_id] is True, (name, words, claim_id)
        plots.plt.close(figure)


def test_layers_have_the_papers_names(loaded):
    names = layers_of(loaded.readings["vgg_lr_width8"])
    assert names == [*(f"conv{k}" for k in range(1, 14)), "fc14", "fc15"]
    maps = {one.layer for one in loaded.readings["vgg_lr_width8"].maps}
    assert maps == {"conv5", "conv11", "fc14"}
    resnet = layers_of(loaded.readings["resnet_lr_width8"])
    assert resnet[0] == "conv1" and "layer4.1.conv1" in resnet


def narrower(name, **changes):
    """A reading of a committed result under another name, its runs' settings changed."""
    content = raw("vgg_lr_width8")
    for record in content["runs"]:
        record["run"] |= changes
    content["settings"] |= changes
    return registry.read(name, Result(content))


def test_a_new_network_is_drawn_without_touching_the_figures(loaded):
    readings = {"resnet34_lr": narrower("resnet34_lr", model="resnet34", width=64)}
    figure = registry.FIGURES["fig4_independent"].draw(readings, None)
    titles = titles_of(figure)
    assert any("resnet34, CIFAR-10, width 64" in title for title in titles)


def test_the_widest_is_drawn_and_another_on_demand():
    names = ("vgg_lr_width8", "vgg_lr_width16", "vgg_lr", "vgg_lr_mnist_width16", "vgg_lr_width16_controls")
    readings = {}
    for name in names:
        width = deep_figures.parse_sweep(name).width
        dataset = "mnist" if "mnist" in name else "cifar10"
        readings[name] = narrower(name, width=width, dataset=dataset)
    assert [one.name for one in deep_figures.chosen_sweeps(readings, None)] == ["vgg_lr", "vgg_lr_mnist_width16"]
    shown = [one.name for one in deep_figures.chosen_sweeps(readings, 16)]
    assert shown == ["vgg_lr_width16", "vgg_lr_mnist_width16"]
    figure = registry.FIGURES["fig4_independent"].draw(readings, 16)
    titles = titles_of(figure)
    assert any(title.startswith("Controls") for title in titles) and any("MNIST, width 16" in title for title in titles)


def with_rates(sweep, *rates):
    """A reading without the runs of other rates."""
    return dataclasses.replace(sweep, runs=[run for run in sweep.runs if run.value in rates])


def test_a_wider_result_of_one_rate_does_not_hide_a_sweep():
    sweep = narrower("vgg_lr_width8")
    single = with_rates(narrower("vgg_lr_width16", width=16), 0.05)
    readings = {"vgg_lr_width8": sweep, "vgg_lr_width16": single}
    assert [one.name for one in deep_figures.chosen_sweeps(readings, None)] == ["vgg_lr_width8"]
    assert [one.name for one in deep_figures.chosen_sweeps(readings, 16)] == ["vgg_lr_width16"]
    assert [one.name for one in deep_figures.chosen_sweeps({"vgg_lr_width16": single}, None)] == ["vgg_lr_width16"]


def test_data_sets_are_compared_at_a_rate_that_all_have_and_the_hardest_come_first():
    names = {
        "mnist": "vgg_lr_mnist_width16",
        "cifar10": "vgg_lr_width16",
        "fashion_mnist": "vgg_lr_fashion_mnist_width16",
    }
    readings = {}
    for dataset, name in names.items():
        readings[name] = narrower(name, width=16, dataset=dataset)
    readings["vgg_lr_mnist_width16"] = with_rates(readings["vgg_lr_mnist_width16"], 0.02, 0.05)
    readings["vgg_lr_width8"] = narrower("vgg_lr_width8")  # narrower: not drawn
    readings["vgg_lr_cifar100_width16"] = narrower("vgg_lr_cifar100_width16", width=16, dataset="cifar100", steps=10)
    (sweeps,) = deep_figures.same_but_for_data(readings, None)
    assert [one.settings["dataset"] for one in sweeps] == ["cifar10", "fashion_mnist", "mnist"]
    assert deep_figures.rate_in_common(sweeps) == 0.05
    figure = registry.FIGURES["fig4_data"].draw(readings, None)
    drawn = figure.axes[0].get_lines()
    for line, sweep in zip(drawn, sweeps, strict=True):
        assert line.get_ydata() == pytest.approx(at_the_end(sweep)[0.05].mean(0))
    alone = {"vgg_lr_width16": readings["vgg_lr_width16"]}
    assert registry.FIGURES["fig4_data"].draw(alone, None) is None


def stars_of(figure):
    return sum(line.get_marker() == "*" for panel in figure.axes for line in panel.get_lines())


def test_published_points_stand_beside_ours_only_where_the_settings_agree(loaded):
    agreeing = narrower("vgg_lr", width=64, batch_size=256, steps=100_000)
    other = narrower("vgg_lr", width=64, batch_size=128, steps=100_000)
    draw = registry.FIGURES["fig4_independent"].draw
    assert stars_of(draw({"vgg_lr": agreeing}, None)) == 4 and stars_of(draw({"vgg_lr": other}, None)) == 0
    for name in ("fig1_quartic", "fig2_neuron", "fig3_pair", "fig5_teacher_student", "chaos_delay", "sparse_diagonal"):
        assert stars_of(figures.draw(name, loaded, None)) > 0, name


def test_drops_are_aligned_and_joined_to_their_run(loaded):
    figure = registry.FIGURES["fig6_drop"].draw({"vgg_drop_width8": loaded.readings["vgg_drop_width8"]}, None)
    curves = [line.get_xdata() for line in figure.axes[1].get_lines()]
    assert len(curves) == 3 and all(x[0] == 0 and x[-1] == 5000 for x in curves)


def test_what_has_nothing_to_show_is_not_drawn(loaded):
    reading = loaded.readings["vgg_lr_width8"]
    none = dataclasses.replace(reading, maps=[])
    lost = [dataclasses.replace(run, diverged=True) for run in reading.runs]
    assert registry.FIGURES["fig3_distances"].draw({"vgg_lr_width8": none}, None) is None
    everything_lost = dataclasses.replace(reading, runs=lost)
    assert registry.FIGURES["fig4_independent"].draw({"vgg_lr_width8": everything_lost}, None) is None
    assert registry.FIGURES["fig6_drop"].draw({"vgg_drop": everything_lost}, None) is None


# ======================================================================================
# What is written and said
# ======================================================================================


def test_a_folder_of_ones_own_is_drawn_into_itself_and_nothing_else_is_run(tmp_path, monkeypatch, capsys):
    out = folder_of(tmp_path, "minibatch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "run_experiments", None)
    code, shown, _ = ended(capsys, "--out", "mine")
    assert code == 0 and CHEAP in shown and "fig2_neuron" not in shown.split("claims")[0] and "missing" not in shown
    found = {path.name for path in (out / "figures").iterdir()}
    assert found == {f"{CHEAP}.png", "claims.json", "claims.md", "published.md", "figures.md"}
    rows = json.loads((out / "figures" / "claims.json").read_text(encoding="utf-8"))
    assert {row["holds"] for row in rows if row["id"] == "minibatch-size"} == {True}


def test_missing_experiments_are_run_and_named_first(tmp_path, monkeypatch, capsys):
    out = folder_of(tmp_path, "minibatch")
    calls = []
    monkeypatch.setattr(figures, "run_experiments", lambda names, args, folder: calls.append(names))
    code, shown, _ = ended(capsys, CHEAP, "fig1_quartic", "--out", out, "--figures", tmp_path / "figures")
    assert code == 0 and calls == [["quartic"]]
    assert "missing: python toy_models.py quartic" in shown and "fig1_quartic" in shown
    ended(capsys, CHEAP, "--out", out, "--fresh", "--figures", tmp_path / "figures")
    assert calls[1:] == [["minibatch"]]


def test_experiments_are_run_beside_figures_py_and_their_refusal_is_shown(tmp_path, monkeypatch, capsys):
    script = tmp_path / "toy_models.py"
    script.write_text("import sys; print(sys.argv[1:]); open(sys.argv[-1] + '/quartic.json', 'w').write('x')\n")
    monkeypatch.setattr(figures, "HERE", tmp_path)
    args = figures.parse_arguments([], list(registry.FIGURES))
    figures.run_experiments(["quartic"], args, tmp_path)
    assert "running quartic" in capsys.readouterr().out and (tmp_path / "quartic.json").exists()
    script.write_text("raise SystemExit(2)\n")
    with pytest.raises(SystemExit) as stop:
        figures.run_experiments(["quartic"], args, tmp_path)
    assert stop.value.code == 2


def test_the_ending_fits_a_terminal_and_names_what_fails(loaded):
    table = claim.judge(registry.CLAIMS, loaded.readings)
    missing = figures.missing_commands(list(registry.FIGURES), list(loaded.readings))
    lines = pages.ending(table, list(registry.FIGURES), Path("figures"), missing, Path("docs/claims.md"), 12.0)
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "torchrun --nproc_per_node=8 vgg_cifar10.py lr noise batch drop" in text and "docs/claims.md" in text
    words = set(re.split(r"[\s,]+", text))
    for row in table:
        assert row["holds"] is True or row["id"].partition(":")[0] in words, row["id"]
    many = [row | {"id": f"{row['id']}-{k}", "holds": False} for row in table for k in range(9)]
    many += [row | {"holds": "not run"} for row in table]
    lines = pages.ending(many, list(registry.FIGURES), Path("figures"), missing, Path("docs/claims.md"), 12.0)
    assert len(lines) <= 40 and lines[-2].startswith("not run: ") and lines[-2].endswith(" ...")
    few = [row for row in table if row["id"] == "pair-rate"]
    lines = pages.ending(few, [], Path("figures"), {}, Path("docs/claims.md"), 12.0)
    assert any(line.startswith("fails: pair-rate: ") and "expected 1" in line for line in lines)


def test_the_tally_counts_kinds_apart():
    rows = [{"kind": "check", "holds": True}, {"kind": "ours", "holds": False}, {"kind": "ours", "holds": "not run"}]
    text = pages.tally(rows)
    assert "| check: an identity or a cost: that the code is right, no finding | 1 | 0 | 0 | 0 |" in text
    assert "| ours: a statement that no paper makes | 0 | 1 | 0 | 1 |" in text


def test_the_tally_is_put_between_its_marks_and_nowhere_else():
    rows = [{"kind": "ours", "holds": True}]
    page = "# Title\n<!-- tally -->\nbefore the tally\n<!-- /tally -->\nafter\n"
    put = pages.put_tally(page, rows)
    assert put.startswith("# Title\n<!-- tally -->\n| kind | hold |") and put.endswith("<!-- /tally -->\nafter\n")
    assert "before the tally" not in put and pages.put_tally(put, rows) == put
    for unmarked in ("no marks", "<!-- tally -->\n"):
        assert pages.put_tally(unmarked, rows) == unmarked


def test_pages_say_what_failed_first_and_which_criteria_changed(loaded):
    table = claim.judge(registry.CLAIMS, loaded.readings)
    changed = [row | {"holds": False} for row in table if row["id"] == "pair-noise"]
    page = pages.claims_page(table, {"seed 0": table, "seed1": changed})
    assert page.index("## What fails") < page.index("## Stochastic Collapse")
    assert "**Criterion changed after a result was seen:**" in page and "| pair-noise | yes | **no** |" in page
    numbers = pages.published_page(table, loaded.origins)
    assert "`python toy_models.py quartic`" in numbers and "2.353, 2.056, 1.889, 1.803" in numbers


def test_commands_of_results_can_be_pasted():
    assert command_of("quartic") == "python toy_models.py quartic"
    assert command_of("sparse_diagonal") == "python sparse_features.py diagonal"
    assert command_of("beyond_extract") == "python subnetworks.py extract"
    assert command_of("pruning_cnn") == "python chaotic_sgd.py pruning_cnn"
    assert command_of("resnet_noise") == "torchrun --nproc_per_node=8 resnet_cifar100.py noise"
    deep = "torchrun --nproc_per_node=8 vgg_cifar10.py lr"
    assert command_of("vgg_lr_controls") == f"{deep} --controls"
    assert command_of("vgg_lr_width16") == f"{deep} --width 16"
    assert command_of("vgg_lr_mnist") == f"{deep} --dataset mnist"
    assert command_of("vgg_lr_cifar100_width8") == f"{deep} --dataset cifar100 --width 8"
    assert (
        command_of("vgg_lr_fashion_mnist_width16_controls") == f"{deep} --controls --dataset fashion_mnist --width 16"
    )
    assert command_of("sparse_deep_densenet100") == "python sparse_features.py deep --model densenet100"


def test_captions_and_pages_are_replaced_whole(tmp_path):
    page = tmp_path / "page.md"
    pages.write_whole(page, "R² one")
    pages.write_whole(page, "R² two")
    assert page.read_bytes() == "R² two".encode() and [path.name for path in tmp_path.iterdir()] == ["page.md"]


# ======================================================================================
# What a user, a shell or a disk may do
# ======================================================================================


def test_from_another_folder_in_the_c_locale_with_a_reader_that_leaves(tmp_path):
    """As `LC_ALL=C python .../figures.py fig5_minibatch | head -1` in a folder with a space and another alphabet."""
    here = tmp_path / "ein Ordner ä"
    here.mkdir()
    line = f'"{sys.executable}" "{ROOT / "figures.py"}" {CHEAP} --figures drawn | head -1; exit "${{PIPESTATUS[0]}}"'
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["MPLBACKEND"] = "module://a.notebook.sets"
    ran = subprocess.run(["bash", "-c", line], cwd=here, env=environment, capture_output=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert (here / "drawn" / f"{CHEAP}.png").exists() and b"Traceback" not in ran.stderr
    assert ran.stdout.count(b"\n") == 1 and [path.name for path in here.iterdir()] == ["drawn"]


class FullDisk:
    def write(self, words):
        raise OSError(28, "No space left on device")

    def flush(self):
        pass


def test_words_that_cannot_be_written_stop_no_drawing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", FullDisk())
    figures.main([CHEAP, "--figures", str(tmp_path), "--format", "png", "pdf"])
    assert {path.name for path in tmp_path.iterdir()} == {f"{CHEAP}.png", f"{CHEAP}.pdf"}


def test_drawing_the_same_again_gives_the_same_bytes_and_leaves_no_rest(tmp_path):
    saved = []
    for _ in range(2):
        figures.main([CHEAP, "--figures", str(tmp_path)])
        saved.append((tmp_path / f"{CHEAP}.png").read_bytes())
        (tmp_path / f"{CHEAP}.png").unlink()
    assert saved[0] == saved[1] and not list(tmp_path.iterdir())


def test_a_picture_is_drawn_again_only_where_something_it_is_made_of_has_changed(tmp_path, monkeypatch):
    """Another version of Matplotlib draws other bytes, and `git status` would show them all."""
    out = folder_of(tmp_path, "minibatch")
    result, picture = out / "minibatch.json", out / "figures" / f"{CHEAP}.png"
    draws = []
    whole = figures.draw
    monkeypatch.setattr(figures, "draw", lambda name, *rest: draws.append(name) or whole(name, *rest))

    def times_drawn(*options):
        draws.clear()
        figures.main([CHEAP, "--out", str(out), *options])
        return len(draws)

    assert times_drawn() == 1 and times_drawn() == 0
    assert times_drawn("--width", "8") == 1 and times_drawn() == 1
    assert times_drawn("--format", "png", "pdf") == 1
    picture.write_bytes(picture.read_bytes()[:-20])
    assert times_drawn() == 1 and times_drawn() == 0
    content = json.loads(result.read_text(encoding="utf-8"))
    content["settings"]["note"] = "another result"
    result.write_text(json.dumps(content), encoding="utf-8")
    assert times_drawn() == 1 and times_drawn() == 0
    monkeypatch.setattr(figures, "mark_of", lambda *_: "f" * 64)  # as other code has
    assert times_drawn() == 1


def test_figures_need_no_torch_and_of_the_other_floors_only_what_catches_ctrl_c():
    code = """
import sys
import figures
try:
    figures.main(["--help"])
except SystemExit:
    others = {"torch", "core", "collapse", "lib"}
    print("above:", sorted(name for name in sys.modules if name.partition(".")[0] in others))
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and "above: ['lib', 'lib.interrupts']" in ran.stdout and "--width" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense",), "unknown figure nonsense: choose from fig1_quartic"),
        (("--format", "gif"), "invalid choice"),
        (("--width", "0"), "expected a positive number"),
        (("--width", "wide"), "invalid int value"),
        (("--out", "nowhere"), "nowhere is no folder of results"),
        (("--device", "mps"), "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, line = ended(capsys, *arguments)
    assert code == 2 and words in line and line.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_found_out_first(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, line = ended(capsys, CHEAP, "--figures", tmp_path / "file")
    assert code == 2 and "can't write" in line and line.count("\n") == 1


DAMAGES = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[1, 2]",
    "no text": lambda text: "\x00\x01",
    "a huge number": lambda text: text.replace('"test": [[', '"test": [[1e300,', 1),
    "a number without end": lambda text: text.replace('"test": [[', f'"test": [[1{"0" * 400},', 1),
    "infinity": lambda text: text.replace('"test": [[', '"test": [[Infinity,', 1),
    "a null array": lambda text: json.dumps(json.loads(text) | {"test": None}),
    "foreign": lambda text: json.dumps({"experiment": "pair", "settings": {}, "quick": False}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_one_line_and_the_other_figures_are_drawn(damage, tmp_path, capsys):
    out = folder_of(tmp_path, "minibatch")
    path = out / "minibatch.json"
    path.write_text(DAMAGES[damage](path.read_text(encoding="utf-8")), encoding="utf-8")
    code, shown, line = ended(capsys, "--out", out)
    assert code == 2 and str(path) in line and line.count("\n") == 1 and "Traceback" not in line
    assert "0 figures" in shown and not (out / "figures" / "claims.json").exists()


def test_a_bug_in_a_figure_is_a_traceback_that_names_it(monkeypatch, tmp_path):
    def broken(minibatch):
        return minibatch.tset

    monkeypatch.setitem(registry.FIGURES, CHEAP, plots.Figure(broken, needs=("minibatch",)))
    with pytest.raises(RuntimeError, match=CHEAP) as stop:
        figures.main([CHEAP, "--figures", str(tmp_path)])
    assert isinstance(stop.value.__cause__, AttributeError)


def test_a_quick_result_among_full_ones_is_refused(tmp_path):
    out = folder_of(tmp_path, "minibatch")
    path = out / "minibatch.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"quick": True}), encoding="utf-8")
    found = figures.load(out, {"minibatch"}, quick=False)
    assert "a quick result among full ones" in found.damaged["minibatch"] and not found.readings
    assert figures.load(out, {"minibatch"}, quick=True).readings


def test_ctrl_c_is_one_line_and_exit_code_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(matplotlib, "use", interrupted)
    monkeypatch.setattr(sys, "argv", ["figures.py"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "figures.py"), run_name="__main__")
    line = capsys.readouterr().err
    assert stop.value.code == 130 and line.strip().count("\n") == 0 and "interrupted" in line


def test_readings_and_errors_are_of_their_own_kind():
    assert issubclass(ResultError, ValueError)
    with pytest.raises(ResultError, match=r"a\.json: rows has 1 entries, expected 2"):
        Result({"rows": [[1.0]]}, "a.json").array("rows", 2, 2)
    assert np.isnan(Result({"rows": [1.0, None]}).array("rows", "seeds")[1])


def test_quick_results_of_a_script_are_drawn(tmp_path, capsys):
    """What the experiments write today is what readings expect."""
    import sparse_features

    settings = ["--quick", "--out", str(tmp_path), "--device", "cpu", "--seeds", "1"]
    sparse_features.main(["diagonal", *settings, "--steps", "300", "--set", "points=8", "surface_grid=20"])
    sparse_features.main(["regression", *settings, "--steps", "100"])
    names = ["sparse_diagonal", "sparse_regression"]
    figures.main([*names, "--quick", "--out", str(tmp_path), "--figures", str(tmp_path / "drawn")])
    drawn = {path.stem for path in (tmp_path / "drawn" / "quick").glob("*.png")}
    assert drawn == set(names), capsys.readouterr()


def test_a_run_that_is_not_tuned_is_drawn_without_its_tuned_accuracy():
    content = raw("beyond_extract")
    for record in content["networks"][:1]:
        record["before"]["tuned"] = record["after"]["tuned"] = None
    reading = registry.read("beyond_extract", Result(content))
    assert math.isnan(reading.networks[0].after["tuned"]) and not math.isnan(reading.networks[1].after["tuned"])
    plots.plt.close(registry.FIGURES["beyond_extraction"].draw(reading))
