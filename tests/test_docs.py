"""README and docs/ are true to the code: short enough, links lead somewhere, commands and Python run as printed.

Of the pages, blocks marked `bash` hold commands that work as they stand, and blocks marked `python` run by themselves.
Blocks marked `py` only show.
"""

import json
import re
import shlex
import shutil
import statistics
import subprocess

import pytest

import figures
from papers import pages, registry
from papers.beyond.readings import read_wild
from papers.result import load_result
from tests.processes import ROOT, run_script

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = ("claims.md", "published.md", "figures.md")  # by figures.py
WRITTEN = [page for page in PAGES if page.name not in GENERATED]


def read(page) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", read(page), re.S)


# ------------------------------------------------------------------------------ words


def test_the_readme_is_short():
    assert len(read(README).splitlines()) <= 220
    assert len(read(README).split()) <= 2500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", read(page), flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}; there is no such heading"


def anchors(page) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, hyphens for spaces."""
    found = set(re.findall(r'<a id="([^"]+)">', read(page)))
    for heading in re.findall(r"^#+ (.*)$", read(page), re.M):
        words = re.sub(r"[^\w\s-]", "", heading.lower())
        found.add(words.strip().replace(" ", "-"))
    return found


def test_nothing_of_one_machine_and_no_notes_to_ourselves():
    """In everything that is committed, so that this test is in it, too."""
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.toml"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    for name in listed.stdout.split("\n"):
        if (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8")
            found = re.search(r"(?<![\w.$}])/(work|root|Users)/\w|\b(TO" + r"DO|FIX" + r"ME)\b", text)
            assert found is None, f"{name}: {found[0]}"


# ------------------------------------------------------------------------------ numbers


def test_the_readmes_tally_is_that_of_the_claims():
    table = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))
    shown = re.search(r"<!-- tally -->\n(.*)<!-- /tally -->", read(README), re.S)
    assert shown[1].strip() == pages.tally(table).strip(), "python figures.py writes it"


def test_claims_that_the_pages_call_failing_fail():
    """A result that mends a claim asks for other words."""
    table = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))
    verdicts = {}
    for row in table:
        verdicts.setdefault(row["id"].partition(":")[0], []).append(row["holds"])
    named = 0
    for page in WRITTEN:
        section = re.search(r"^## What does not hold\n(.*?)\n\n[^|\n]", read(page), re.S | re.M)
        for row in re.findall(r"^\| (`.*?) \|", section[1], re.M) if section else ():
            for claim in re.findall(r"`([a-z0-9-]+)`", row):
                assert claim in verdicts, f"{page.name} names {claim}, which is no claim"
                assert False in verdicts[claim], f"{page.name} says that {claim} fails; it is {verdicts[claim]}"
                named += 1
    assert named > 10


def test_the_speed_table_is_that_of_the_results():
    rows = re.findall(
        r"^\| (\w+)[^|]*\|[^|]*\|[^|]*\| ([\d,]+) \(([\d,]+) to ([\d,]+)\)", read(ROOT / "docs" / "speed.md"), re.M
    )
    assert len(rows) > 5
    for name, *shown in rows:
        result = json.loads((ROOT / "results" / f"benchmark_{name}.json").read_text(encoding="utf-8"))
        measured = [result, result["published"]] if "published" in result else [result]
        numbers = [[one["speedup"], *one["speedup_range"]] for one in measured]
        as_shown = [[f"{number:,.0f}" for number in row] for row in numbers]
        assert shown in as_shown, f"docs/speed.md says of {name} {shown}, the result {as_shown}"


# ------------------------------------------------------------------------------ commands


def commands_of(page) -> list[list[str]]:
    """The words of each command in the blocks marked bash, and of those in tables: `python x.py ...`."""
    lines = [line for block in blocks(page, "(?:bash|sh)") for line in block.splitlines()]
    lines += re.findall(r"^\|.*?`((?:python|torchrun) [^`]*)`", read(page), re.M)
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            if words[0] in ("python", "torchrun"):
                found.append(words[:end])
            words = words[end + 1 :]
    return found


def script_and_options(words: list[str]) -> list[str]:
    """Without `python`, or torchrun and its options."""
    start = next(place for place, word in enumerate(words) if word.endswith(".py"))
    return words[start:]


def test_commands_are_understood(run_here, capsys):
    """All of them, by --status, which checks every option and starts nothing."""
    checked = set()
    for page in WRITTEN:
        for words in commands_of(page):
            script, *options = script_and_options(words)
            if (script, *options) in checked:
                continue
            checked.add((script, *options))
            if script == "figures.py":
                figures.parse_arguments(options, list(registry.FIGURES))  # ends the test where it is refused
                continue
            code, _, line = run_here(script, *options, "--status")
            assert code in (0, 3), f"{page.name}: {shlex.join(words)}: {line}"
    assert len(checked) > 20


QUICK_FORM = {  # one of its trainings, one of the figures: what takes longer has tests of its own
    "vgg_cifar10.py": ["lr", "--learning-rate", "0.1", "--steps", "20"],
    "figures.py": ["fig2_neuron"],
}


def test_the_readmes_commands_run_in_quick_form(tmp_path):
    places = {"figures.py": ["--figures", tmp_path / "figures"], "vgg_cifar10.py": ["--runs", tmp_path / "runs"]}
    done = set()
    for words in commands_of(README):
        script, *options = script_and_options(words)
        options = QUICK_FORM.get(script, options)
        if (script, *options) in done:
            continue
        done.add((script, *options))
        ran = run_script(ROOT / script, *options, "--quick", "--out", tmp_path, *places.get(script, []))
        assert ran.returncode == 0, (words, ran.stderr)
    assert {script for script, *_ in done} == {"toy_models.py", "figures.py", "vgg_cifar10.py"}
    assert (tmp_path / "figures" / "quick" / "fig2_neuron.png").exists()


# ------------------------------------------------------------------------------ Python

RUN_EACH = """
import torch
torch.set_num_threads(1)
for page, number, block in {blocks!r}:
    try:
        exec(block, {{}})
    except Exception:
        print(f"block {{number}} of {{page}}")
        raise
"""


def test_python_blocks_run(tmp_path):
    """Each by itself, as someone pastes it, in an empty folder."""
    found = []
    for page in WRITTEN:
        found += [(page.name, number, block) for number, block in enumerate(blocks(page, "python"), 1)]
    (tmp_path / "run_each.py").write_text(RUN_EACH.format(blocks=found), encoding="utf-8")
    ran = run_script("run_each.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout[-200:] + ran.stderr
    assert len(found) > 5


def changed(text: str, diff: str) -> str:
    """A text with a diff carried out: lines that begin with a space or minus are there, those with plus come in."""
    lines = diff.splitlines()
    old = "".join(f"{line[1:]}\n" for line in lines if line[:1] in " -")
    new = "".join(f"{line[1:]}\n" for line in lines if line[:1] in " +")
    assert text.count(old) == 1, f"these lines are there {text.count(old)} times:\n{old}"
    return text.replace(old, new)


TRAIN_RESNET34 = ["resnet34_cifar100.py", *"lr --quick --steps 4 --eval-every 4 --learning-rate 0.1".split()]
TRAIN_RESNET34 += ["--optimizer", "nesterov"]

CHECK_AND_DRAW = """
from pathlib import Path

import torch

import figures
from lib.data import load_dataset
from papers import registry


def write_idx(name, numbers):  # as the download leaves them
    sizes = [size.to_bytes(4, "big") for size in numbers.shape]
    header = bytes([0, 0, 8, numbers.ndim]) + b"".join(sizes)
    Path("data/KMNIST/raw", name).write_bytes(header + numbers.numpy().tobytes())


Path("data/KMNIST/raw").mkdir(parents=True)
for part, count in (("train", 20), ("t10k", 10)):
    write_idx(f"{part}-images-idx3-ubyte", torch.full((count, 28, 28), count, dtype=torch.uint8))
    write_idx(f"{part}-labels-idx1-ubyte", torch.arange(count, dtype=torch.uint8) % 10)
images = load_dataset("kmnist", "data")
assert images.train_images.shape == (20, 1, 28, 28) and (images.train_images == 20).all()
assert images.test_labels.tolist() == list(range(10))

assert "highest-rate-learns" in {one.name for claims in registry.CLAIMS for one in claims}
figures.main(["accuracy", "fig4_independent", "--quick"])
"""


def test_the_six_changes_work_as_written(tmp_path):
    """All of docs/extending.md in a copy of the house: train, draw, judge."""
    for name in ("collapse", "lib", "experiments", "papers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("core.py", "figures.py"):
        shutil.copy(ROOT / name, tmp_path)
    page = ROOT / "docs" / "extending.md"
    for block in blocks(page, "diff"):
        name, _, diff = block.partition("\n")
        file = tmp_path / name
        file.write_text(changed(file.read_text(encoding="utf-8"), diff), encoding="utf-8")
    for block in blocks(page, "py"):
        first, _, code = block.partition("\n")
        (tmp_path / first.removeprefix("# file: ")).write_text(code, encoding="utf-8")

    ran = run_script(*TRAIN_RESNET34, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    result = json.loads((tmp_path / "results" / "quick" / "resnet34_lr.json").read_text(encoding="utf-8"))
    assert result["settings"]["optimizer"] == "nesterov" and result["runs"][0]["log"][-1]["weight_norm"] > 0

    (tmp_path / "check.py").write_text(CHECK_AND_DRAW, encoding="utf-8")
    ran = run_script("check.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    drawn = {path.stem for path in (tmp_path / "figures" / "quick").glob("*.png")}
    assert drawn == {"accuracy", "fig4_independent"}


def test_every_claim_that_fails_is_named_on_a_page():
    """What failed is said in the pages, not only in the generated table."""
    pages_of_papers = ("stochastic_collapse", "chaotic_dynamics", "sparse_features", "beyond")
    words = "".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in pages_of_papers)
    claims = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))
    failing = {row["id"].partition(":")[0] for row in claims if row["holds"] is False}
    assert failing and {name for name in failing if f"`{name}`" not in words} == set()
    table = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    for row in claims:
        name = row["id"].partition(":")[0]
        assert f"| `{name}` |" in table, name


def test_the_table_of_networks_in_use_is_their_result():
    page = (ROOT / "docs" / "your_network.md").read_text(encoding="utf-8")
    result = load_result(ROOT / "results" / "beyond_wild.json", quick=False)
    for one in read_wild(result):
        cells = [
            one.name,
            *(f"{count:,}" for count in (one.parameters, one.width, one.vanishing, one.redundant, one.constant)),
        ]
        for cut in (one.paper, one.exact):
            answers = "" if cut.same_answer is None else f" ({cut.same_answer:.0%})"
            cells.append(f"{1 - one.removed(cut):.1%}, {cut.change:.2g}{answers}")
        assert f"| {' | '.join(cells)} |" in page


def test_the_seconds_in_the_table_of_reach_are_measured():
    page = (ROOT / "docs" / "your_network.md").read_text(encoding="utf-8")
    rows = {"torchvision": "torchvision's", "timm": "timm", "transformers": "transformers", "tasks": "fcn_resnet50"}
    found = []
    for name in ("networks", "tasks"):
        found += json.loads((ROOT / "results" / f"benchmark_{name}.json").read_text(encoding="utf-8"))["networks"]
    for source, start in rows.items():
        (line,) = re.findall(rf"^\| {start}.*$", page, re.M)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for who, place in (("ours", 5), ("torch_pruning", 8)):
            times = [row[who]["seconds"] for row in found if row["source"] == source and row[who]]
            assert cells[place] == f"{statistics.median(times):.2f} ({max(times):.2f})"
