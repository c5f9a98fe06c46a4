"""The command: which bundles it takes, what it writes, and what it says when it cannot."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models import difffusr, difffusr_fusion, span_fusion
from pipeline.models.bundle import Bundle, load_bundle, save_bundle
from pipeline.models.lite import LATTICE, NORMALISATION, RGB_BANDS, SYSTEM, LiteNetwork
from pipeline.models.wavediffur import wavediffur_bundle
from pipeline.models.wavelet_network import WaveletNetwork
from tests.models.small import DIFFFUSR, LITE
from tests.models.test_wavediffur import TINY
from training import evaluate, evaluate_cascade
from training.data.places import split_of
from training.quality import cost, judge

TOML = r"""
name = "towns"
licence = "the town"

[[source]]
name = "dubai_1m"
role = "hr"
path = "images/*.png"
gsd_m = 1.0
place = '(tile\d+)'
"""


@pytest.fixture
def towns(tmp_path, monkeypatch):
    """A training file with one held-out image, and windows small enough to be timed at once."""
    monkeypatch.setattr(judge, "WINDOW_PX", 64)
    monkeypatch.setattr(cost, "SIDE_60M_PX", 4)
    assert split_of("dubai_1m/tile2") == "held-out"
    blocks = np.random.default_rng(0).integers(40, 200, (17, 17, 3)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(np.kron(blocks, np.ones((10, 10, 1), np.uint8))).save(tmp_path / "images" / "tile2_part_1.png")
    (tmp_path / "mine.toml").write_text(TOML)
    return tmp_path / "mine.toml"


@pytest.fixture
def run(tmp_path):
    """The folder of a run with a lite bundle of two steps."""
    torch.manual_seed(0)
    sampler = {"name": "dpm++2m", "steps": 2}
    bundle = Bundle(SYSTEM, LITE, RGB_BANDS, RGB_BANDS, 4, LATTICE, NORMALISATION, sampler=sampler)
    save_bundle(tmp_path / "run" / "tiny-sr.safetensors", bundle, LiteNetwork(**LITE).state_dict())
    return tmp_path / "run"


@pytest.fixture
def cascade(tmp_path):
    """The file of a x2 level, untrained."""
    torch.manual_seed(0)
    path = tmp_path / "cascade" / "wavediffur.safetensors"
    network = WaveletNetwork(**TINY, bands=3)
    save_bundle(path, wavediffur_bundle(TINY, RGB_BANDS, sampler={"steps": 2}), network.state_dict())
    return path


@pytest.mark.slow
def test_a_run_is_measured_and_every_score_is_written(towns, run, tmp_path, capsys):
    out = tmp_path / "new" / "table.md"
    command = [str(run), "--on", str(towns), "--out", str(out), "--picture", str(tmp_path / "sheets")]
    assert evaluate.main(command) == 0
    report = out.read_text()
    assert report.strip() == capsys.readouterr().out.strip()
    assert "| dubai_1m (1) |" in report
    for said in (
        "stored lite: mean of 8, sensor",
        "hallucination",
        "2 steps of dpm++2m",
        "sigma_px=2.2",
        "in LPIPS: package",
        "is below bicubic: ",
        "| 1.5 px | 1.8 px | 2.2 px |",
        "| sample, box |",
    ):
        assert said in report
    assert "no held-out scene of the data holds a patch" in report
    assert "no scene of the data has all 12 bands" in report
    rows = list(csv.DictReader((tmp_path / "new" / "table.csv").read_text().splitlines()))
    assert {row["table"] for row in rows} == {
        "quality",
        "generated detail",
        "spread",
        "spread, pooled",
        "sigma 1.5 px",
        "sigma 1.8 px",
    }
    assert {row["statistic"] for row in rows} == {"value", "mean", "sd"}
    assert all(row["LPIPS"] == "null" for row in rows if row["table"] == "quality")
    assert len({row["digest"] for row in rows}) == 1
    assert len(list((tmp_path / "sheets").glob("lite-dubai_1m-*.png"))) == 1


@pytest.mark.slow
def test_weights_of_one_system_are_told_apart(towns, run, tmp_path, capsys):
    other, out = tmp_path / "later" / "tiny-sr.safetensors", tmp_path / "table.md"
    torch.manual_seed(1)
    save_bundle(other, load_bundle(run / "tiny-sr.safetensors"), LiteNetwork(**LITE).state_dict())
    command = [
        "--on",
        str(towns),
        "--per-set",
        "1",
        "--members",
        "0",
        "--out",
        str(out),
        "--picture",
        str(tmp_path / "sheets"),
    ]
    targets = [str(run), str(other), str(run / "tiny-sr.safetensors")]
    assert evaluate.main([*targets, "--only", "images", *command]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line.startswith("### ")]
    assert len(set(titles)) == len(titles)
    assert titles[:2] == ["### weights", "### comparison"]
    assert {title.split(":")[0] for title in titles[2:]} == {"### run", "### later"}
    assert sum(str(other) in line for line in lines) == 1
    compared = [
        line.split("|")[1].strip()
        for line in lines[lines.index(titles[1]) : lines.index(titles[2])]
        if line[:2] == "| "
    ]
    networks = [name for of in ("run", "later") for name in (of, f"{of}, network alone")]
    assert compared == ["", "nearest", "bicubic", "IBP", "IBP, true kernel", *networks]
    rows = list(csv.DictReader(out.with_suffix(".csv").read_text().splitlines()))
    assert not any(row["table"].startswith("spread") for row in rows)
    assert {(row["name"], row["digest"]) for row in rows} == {
        ("run", load_bundle(run / "tiny-sr.safetensors").digest),
        ("later", load_bundle(other).digest),
    }
    assert {path.name.split("-")[0] for path in (tmp_path / "sheets").iterdir()} == {"run", "later"}


def test_steps_are_compared(towns, run, capsys):
    assert (
        evaluate.main([str(run / "tiny-sr.safetensors"), "--on", str(towns), "--steps", "1,3", "--per-set", "1"]) == 0
    )
    shown = capsys.readouterr().out
    assert "\n| 1 |" in shown
    assert "\n| 3 |" in shown
    assert "against the truth" not in shown


def test_a_cascade_is_measured_by_scale(towns, cascade, tmp_path, capsys):
    out = tmp_path / "table.md"
    command = [str(cascade), "--on", str(towns), "--cascade", "4,2", "--out", str(out)]
    assert evaluate.main(command) == 0
    report = capsys.readouterr().out
    assert [line for line in report.splitlines() if line.startswith("### ")] == [
        "### weights",
        "### wavediffur-sr: cascade on held-out places, sensor",
        "### wavediffur-sr: decline with scale on held-out places, sensor",
        "### wavediffur-sr: cascade on held-out places, means",
        "### wavediffur-sr: decline with scale on held-out places, means",
    ]
    assert report.index("| x2 | 1 | 1 |") < report.index("| x4 | 1 | 1 |")
    rows = list(csv.DictReader(out.with_suffix(".csv").read_text().splitlines()))
    assert {row["table"] for row in rows} == {"sensor x2", "sensor x4", "means x2", "means x4"}
    assert {row["digest"] for row in rows} == {load_bundle(cascade).digest}
    assert "cascade, one draw" in {row["method"] for row in rows}


def test_a_cascade_without_draws_with_references_or_over_systems(towns, cascade, tmp_path, capsys):
    out = tmp_path / "table.md"
    command = [str(cascade), "--on", str(towns), "--out", str(out), "--cascade", "4"]

    def written(*more):
        assert evaluate.main([*command, *more]) == 0
        rows = list(csv.DictReader(out.with_suffix(".csv").read_text().splitlines()))
        return {row["table"] for row in rows}, {row["method"] for row in rows}

    tables, methods = written("--members", "0")
    assert tables == {"sensor x4", "means x4"}
    assert "cascade" in methods
    assert "cascade, one draw" not in methods
    tables, methods = written("--reference")
    assert tables == {"reference, sensor x4", "reference, means x4"}
    assert {"no reference", "1 px", "1 px, off by 2 px"} <= methods
    tables, methods = written("--backbones", "bicubic")
    assert tables == {"backbone bicubic, sensor x4", "backbone bicubic, means x4"}
    assert methods == {"cascade over it", "it again and again"}
    capsys.readouterr()


def test_difffusr_is_measured_through_predict(towns, tmp_path, capsys):
    torch.manual_seed(0)
    bundle = difffusr.difffusr_bundle(DIFFFUSR, sampler={"name": "ddim", "steps": 2, "spacing": "trailing"})
    path = tmp_path / "difffusr.safetensors"
    save_bundle(path, bundle, difffusr.Networks(**bundle.architecture).state_dict())
    assert evaluate.main([str(path), "--on", str(towns), "--steps", "2"]) == 0
    assert "difffusr-sr sha256" in capsys.readouterr().out


def test_a_fusion_without_held_out_scenes_says_so(towns, tmp_path, capsys):
    bundle = difffusr_fusion.difffusr_fusion_bundle({"channels": 8, "growth": 4, "blocks": 1})
    path = tmp_path / "fusion.safetensors"
    save_bundle(path, bundle, difffusr_fusion.FusionNetworks(**bundle.architecture).state_dict())
    assert evaluate.main([str(path), "--on", str(towns)]) == 0
    assert "no Sentinel-2 scene of the data is held out" in capsys.readouterr().out
    capsys.readouterr()
    assert evaluate.main([str(path), "--on", str(towns), "--steps", "1,2"]) == 2
    assert "--steps: a fusion has no sampling steps" in capsys.readouterr().err


def test_fusions_of_one_stage_are_judged_by_their_task_and_shown_in_no_sheet(towns, tmp_path, capsys):
    paths = []
    for kind in (span_fusion.X2, span_fusion.X4):
        bundle = span_fusion.fusion_bundle(kind, {"features": 4, "blocks": 1, "graph": "chained"})
        paths.append(tmp_path / f"{kind}.safetensors")
        save_bundle(paths[-1], bundle, span_fusion.network(bundle.architecture, bundle.normalisation).state_dict())
    words = [str(path) for path in paths] + ["--on", str(towns), "--picture", str(tmp_path / "sheets")]
    assert evaluate.main(words) == 0
    report, said = capsys.readouterr()
    assert all(kind in report for kind in span_fusion.SCALES)
    assert "no Sentinel-2 scene of the data is held out" in report
    assert "fusion-x4: no sheets" in said
    assert evaluate.main([*words, "--only", "images"]) == 0
    assert capsys.readouterr().err.count("is judged by Wald's protocol: --only wald") == len(paths)


@pytest.mark.slow
def test_a_super_resolver_without_held_out_images_says_so(towns, run, tmp_path, capsys):
    towns.write_text(TOML + 'split = "train"\n')
    assert evaluate.main([str(run), "--on", str(towns), "--picture", str(tmp_path / "sheets")]) == 0
    shown = capsys.readouterr()
    assert "### lite: held-out places\n\nnull: no image of the data is held out" in shown.out
    assert "lite: no sheet, since no image is held out" in shown.err
    assert not (tmp_path / "sheets").exists()


def test_without_arguments_the_shipped_weights_are_meant():
    assert {bundle.system for bundle in evaluate.bundles_of([])} == {"lite-sr", "lite-fusion"}
    assert [path.stem for path in evaluate.shipped_files({"wavediffur-sr"})] == [
        "lite-fusion",
        "lite-sr",
        "wavediffur-sr",
    ]
    assert [path.stem for path in evaluate_cascade.shipped_files()] == ["wavediffur-sr"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["{empty}"], "no weights in"),
        (
            ["{run}/none.safetensors"],
            "none.safetensors does not exist; expected the folder of a run, or a .safetensors",
        ),
        (["{run}", "--on", "{empty}"], "empty is a folder without hr, hr_more, s2_l2a; expected a training file"),
        (["{run}", "--on", "{towns}", "--out", "{empty}"], "empty is a folder; expected a file to write"),
        (["{run}", "--on", "{empty}/none.toml"], "is no file"),
        (["{run}", "--on", "{towns}", "--steps", "99"], "99 sampling steps"),
        (["{run}", "--on", "{towns}", "--out", "{towns}/table.md"], "cannot be written"),
        (["{cascade}", "--cascade", "2,3"], "--cascade 3; expected scales among 2, 4, 8, 16, 32, 64, 128"),
        (["{cascade}", "--cascade", "256"], "--cascade 256; expected scales among"),
        (["{run}", "--cascade", "2"], "holds lite-sr, which no cascade repeats; expected weights of kind wavediffur"),
        (["{cascade}", "--cascade", "2", "--steps", "4"], "--cascade together with --steps; expected one of them"),
        (["{cascade}", "--cascade", "2", "--only", "images"], "--cascade together with --only"),
        (["{cascade}", "--cascade", "2", "--picture", "{empty}"], "--cascade together with --picture"),
        (["{cascade}", "--reference"], "--reference or --backbones without --cascade"),
        (["{cascade}", "--cascade", "4", "--reference", "--backbones", "bicubic"], "--reference together with --back"),
        (["{cascade}", "--on", "{towns}", "--cascade", "8", "--backbones", "bicubic"], "--backbones at x8; expected"),
        (["{cascade}", "--on", "{towns}", "--cascade", "4", "--backbones", "cubic"], "--sr cubic is not known"),
    ],
)
def test_failures_are_one_line_and_leave_nothing(command, said, towns, run, cascade, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    named = {"empty": tmp_path / "empty", "run": run, "towns": towns, "cascade": cascade}
    before = sorted(tmp_path.rglob("*"))
    assert evaluate.main([part.format(**named) for part in command]) in (2, 6)
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "1,x"], "'x' is no whole number"),
        (["--cascade", "2,x"], "'x' is no whole number"),
        (["--out", "a.csv"], "is for the tables"),
        (["--per-set", "0"], "'0'"),
        (["--members", "1"], "'1' is neither 0 nor a whole number of at least 2"),
    ],
)
def test_bad_arguments_are_refused(arguments, said, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(arguments)
    assert said in capsys.readouterr().err


def test_a_missing_device_is_said_before_reading(capsys):
    assert evaluate.main(["--device", "cuda:99"]) == 2
    assert "--device" in capsys.readouterr().err


def test_whole_systems_pair_every_super_resolver_and_fusion(run, tmp_path):
    (shipped_fusion,) = (bundle for bundle in evaluate.bundles_of([]) if bundle.system == "lite-fusion")
    (own,) = evaluate.bundles_of([run])
    bundle = difffusr_fusion.difffusr_fusion_bundle({"channels": 8, "growth": 4, "blocks": 1})
    path = tmp_path / "fusion.safetensors"
    save_bundle(path, bundle, difffusr_fusion.FusionNetworks(**bundle.architecture).state_dict())
    other = load_bundle(path)

    def digests(*bundles):
        return [(choice.name, *(file.sha256 for file in choice.weights)) for choice in evaluate.whole_choices(bundles)]

    assert digests(own) == [("lite", own.digest, shipped_fusion.digest)]
    (alone,) = digests(shipped_fusion)
    assert alone[2] == shipped_fusion.digest
    assert digests(own, shipped_fusion) == digests(own)
    assert digests(other) == []  # of DiffFuSR, whose super-resolver is not here
