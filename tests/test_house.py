"""The house keeps its shape: imports go down a floor, never up or in a circle, and nothing strange lies at the top."""

import ast
import sys

from tests.processes import ROOT

SCRIPTS = [
    "vgg_cifar10",
    "resnet_cifar100",
    "toy_models",
    "teacher_student",
    "chaotic_sgd",
    "sparse_features",
    "subnetworks",
]
FLOORS = [["collapse"], ["lib"], ["core"], ["experiments"], SCRIPTS, ["figures", "benchmark"]]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
PACKAGES = ["collapse", "lib", "experiments", "papers"]
OURS = [*FLOOR, "papers"]
AT_THE_TOP = {f"{name}.py" for name in OURS if name not in PACKAGES} | {"test_core.py"}


def modules() -> dict:
    """{dotted name: path} of all our modules, without the tests."""
    found = {}
    paths = [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    for path in paths:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not parts[0].startswith("test_"):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(path) -> set[str]:
    """Everything that a module imports, at its top or inside a function: `from a import b` is a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; name the package"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


MODULES = modules()
IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def roots(name: str) -> set[str]:
    """Top-level names that a module imports."""
    return {one.partition(".")[0] for one in IMPORTS[name]}


def test_imports_go_down():
    for name in MODULES:
        own = name.partition(".")[0]
        for imported in roots(name) & set(OURS) - {own}:
            if imported == "papers":
                assert own == "figures", f"{name} opens papers/; only figures.py does"
            else:
                assert own != "papers", f"{name} imports {imported}; papers/ stands alone"
                assert FLOOR[imported] < FLOOR[own], f"{name} imports {imported}, which is not below it"


def test_imports_make_no_circle():
    done = set()

    def visit(name: str, above: tuple[str, ...]):
        assert name not in above, f"a circle of imports: {' -> '.join([*above, name])}"
        if name in done:
            return
        for imported in IMPORTS[name] & MODULES.keys():
            visit(imported, (*above, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())


def test_papers_and_figures_do_without_torch():
    """On a laptop that draws results torch may be missing; test_figures.py tries it."""
    for name in MODULES:
        if name.partition(".")[0] in ("papers", "figures"):
            assert not roots(name) & {"torch", "torchvision", "core"}, name


def test_the_library_needs_torch_alone():
    """And nothing of ours. matplotlib is imported where something is drawn."""
    allowed = {*sys.stdlib_module_names, "torch", "collapse"}
    for name in MODULES:
        if name.partition(".")[0] == "collapse":
            assert roots(name) <= allowed | {"matplotlib"}, name
            needed = imported_at_once(MODULES[name])
            assert needed <= allowed, f"{name} needs {needed - allowed}"


def imported_at_once(path) -> set[str]:
    """Top-level names that a module imports when it is loaded, not in a function."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    return found


def test_the_top_level_shows_what_it_should():
    there = {path.name for path in ROOT.glob("*.py")}
    assert there == AT_THE_TOP, f"too much: {there - AT_THE_TOP}; missing: {AT_THE_TOP - there}"
