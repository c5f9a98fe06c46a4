"""`python -m pipeline.run` and `pipeline.check` as users meet them: arguments, words, JSON, exit codes."""

import importlib.metadata
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

import pipeline.archive.catalog
import pipeline.archive.search
from pipeline import check, index
from pipeline import run as command
from pipeline.bands import BAND_NAMES
from pipeline.bbox import joined
from pipeline.config import RunConfig
from pipeline.errors import StorageError, UsageError
from pipeline.models.bundle import load_bundle, load_tensors, save_bundle
from pipeline.planning.plan import Plan
from pipeline.running import choices, driver
from pipeline.running.choices import cluster_of
from pipeline.running.unit_queue import Summary
from pipeline.store.place import place_of
from pipeline.store.receipts import write_atomic
from pipeline.superres.registry import known
from pipeline.superres.weights import SHIPPED as WEIGHTS
from pipeline.terminal import Progress, counted, duration
from tests.archive.synthetic import make_archive, make_scene
from tests.conftest import without_log
from tests.running.conftest import LEFT, TOP, box, write_aoi

QUICK = ("--sr", "bicubic", "--cluster", "inline", "--workers", "1")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Index of one small scene."""
    folder = tmp_path_factory.mktemp("archive")
    return str(make_archive(folder, [make_scene(folder, scene_id="S2A_ONE", size_m=1200)]))


@pytest.fixture(scope="module")
def aoi(tmp_path_factory):
    path = tmp_path_factory.mktemp("aoi") / "lake_shore.geojson"
    return str(write_aoi(path, box(LEFT + 310, TOP - 890, LEFT + 890, TOP - 310)))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test starts in an empty folder of its own, so that what a command leaves is seen."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments, program=command):
        capsys.readouterr()
        try:
            code = program.main([str(word) for word in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, without_log(err)

    return run


def listing(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(Path(folder).rglob("*"))}


def refused(outcome, code=2):
    """The single line that a refusal consists of."""
    found, out, err = outcome
    assert (found, out) == (code, ""), (found, out, err)
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err


@pytest.fixture
def degrees(aoi):
    ring = json.loads(Path(aoi).read_text())["coordinates"][0]
    lons, lats = zip(*ring, strict=True)
    return [min(lons), min(lats), max(lons), max(lats)]


class TestDryRun:
    def test_says_all_and_writes_nothing(self, call, archive, aoi, empty_folder):
        before = [listing(folder) for folder in (empty_folder, Path(archive).parent, Path(aoi).parent)]
        code, out, err = call("--aoi", aoi, "--catalog", archive, *QUICK, "--dry-run")
        assert (code, err) == (0, "")
        for said in (
            r"plan for lake_shore: bicubic, 12 bands, lake_shore\.zarr \(not written\)",
            r"EPSG:32632  240 x 240 px of 2\.5 m, 1 time step\n",
            r"2024-06-17 +cloud 0\.0 % +offset +0 +S2A_ONE",
            r"area +0\.36 km2",
            r"57,600 pixels per band",
            r"work +1 unit, interpolated, without a network\n",
            r"time +about [1-9] s of computing\n",
            r"cost +(about 0\.00\d+|less than 0\.001) core-hours\n",
            r"storage +1\.4 MiB raw, about \d\.?\d* MiB stored",
            r"memory +about \d+ MiB per worker, 1 worker\n",
            r"time +about .* of computing",
        ):
            assert re.search(said, out), (said, out)
        assert [listing(folder) for folder in (empty_folder, Path(archive).parent, Path(aoi).parent)] == before

    def test_json_is_one_object(self, call, archive, aoi, empty_folder):
        code, out, _ = call("--aoi", aoi, "--catalog", archive, *QUICK, "--dry-run", "--json")
        said = json.loads(out)
        assert code == 0
        assert set(said) == {"plan", "estimate"}
        plan = Plan.from_json(said["plan"])
        assert said["estimate"]["units"] == len(list(plan.units())) == 1
        assert said["estimate"]["output_pixels"] == 240 * 240
        assert not listing(empty_folder)

    def test_the_size_foretold_is_that_of_the_store(self, call, empty_folder):
        """Overviews and the measured input included, on a real scene."""
        region = Path(__file__).parents[1] / "catalogs" / "sample" / "region.geojson"
        wanted = ("--aoi", region, "--catalog", "sample", *QUICK, "--json")
        foretold = json.loads(call(*wanted, "--dry-run")[1])["estimate"]["stored_mib"]
        said = json.loads(call(*wanted)[1])["stored_bytes"]
        there = sum(path.stat().st_size for path in (empty_folder / "region.zarr").rglob("c/**/*") if path.is_file())
        assert said == pytest.approx(there, rel=0.01), "all but coordinates"
        assert foretold == pytest.approx(there / 2**20, rel=0.15)

    def test_hours_reads_objects_and_money(self, call, archive, aoi):
        wanted = ("--aoi", aoi, "--catalog", archive, *QUICK, "--chunk-px", "144", "--unit-chunks", "1", "--json")
        foretold = json.loads(call(*wanted, "--dry-run", "--price-per-hour", "3600")[1])["estimate"]
        said = json.loads(call(*wanted, "--price-per-hour", "3600")[1])
        assert foretold["objects"] == said["objects"]
        there = [path for path in Path("lake_shore.zarr").rglob("c/**/*") if path.is_file()]
        data = [
            path for path in there if path.parts[-5:-4] != ("x",) and {"reflectance", "quality", "scl"} & {*path.parts}
        ]
        assert said["objects"] == len(data)
        assert said["device"] == foretold["device"]
        assert said["hours_of"] == "processors"
        assert said["cost"] == pytest.approx(3600 * said["hours"], abs=0.01), "a unit of money per second"
        assert 0 < said["cost"] < sum(said["stage_seconds"].values()) + 0.05
        receipts = [json.loads(path.read_text()) for path in Path("lake_shore.zarr/_run/receipts").glob("*.json")]
        assert foretold["windows"] == sum(receipt["windows"] for receipt in receipts) > 0
        assert foretold["cost"] == pytest.approx(3600 * foretold["hours"])
        assert said["hours"] / 5 < foretold["hours"] < 5 * said["hours"], "not only what interpolation takes"
        # Four units of 144 px with a halo lie in 1 to 4 blocks of each of 12 bands and SCL; each file has a header.
        assert 4 * 13 * 2 <= foretold["read_requests"] <= 4 * 13 * 5
        assert said["reads_estimated"]["requests"] == foretold["read_requests"]

    def test_what_was_measured_and_what_a_network_made(self, call, archive, aoi):
        wanted = ("--aoi", aoi, "--catalog", archive, *QUICK, "--out", "s.zarr", "--price-per-hour", "0.04")
        _, said, _ = call(*wanted, "--bands", "B04,B08,B11")
        assert (
            "4.7 values were measured for 100 stored (a value of 10 m became 16, 20 m became 64); the others are "
            in said
        )
        assert re.search(r"cost +[\w. ]+ core-hours: [\w. ]+ at 0\.04 per core-hour; about \d+ reads for ", said)
        _, said, _ = call(*wanted, "--dry-run")
        assert re.search(r"reads +about \d+ reads for [\d,]+ MiB", said)
        assert re.search(r"cost +[\w. ]+ core-hours: [\w. ]+ at 0\.04 per core-hour", said)

    @pytest.mark.parametrize("price", ["-1", "nan", "inf"])
    def test_a_price_that_is_none(self, call, archive, aoi, price):
        line = refused(call("--aoi", aoi, "--catalog", archive, f"--price-per-hour={price}", "--dry-run"))
        assert "--price-per-hour" in line

    def test_stdin(self, call, archive, aoi, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(aoi).read_bytes())))
        code, out, _ = call("--aoi", "-", "--catalog", archive, *QUICK, "--dry-run")
        assert code == 0
        assert "plan for stdin: bicubic, 12 bands, stdin.zarr" in out

    @pytest.mark.parametrize("form", ["{0} {1} {2} {3}", "{0},{1},{2},{3}", "{0}, {1}, {2}, {3}"])
    def test_bbox(self, call, archive, degrees, form):
        words = form.format(*degrees).split(" ")
        code, out, _ = call("--bbox", *words, "--catalog", archive, *QUICK, "--dry-run")
        assert code == 0
        assert re.search(r"plan for (bbox_10\.\S+): .* \1\.zarr", out)
        assert "S2A_ONE" in out

    def test_warnings_go_to_stderr_and_leave_json_alone(self, call, archive, tmp_path):
        tiny = write_aoi(tmp_path / "tiny.geojson", box(LEFT + 500, TOP - 520, LEFT + 520, TOP - 500))
        code, out, err = call("--aoi", tiny, "--catalog", archive, *QUICK, "--dry-run", "--json")
        assert code == 0
        assert re.fullmatch(r"warning: the area is 400\.\d m2, less than one 60 m block.*\n", err)
        json.loads(out)


class TestRun:
    def test_json_default_name_and_check(self, call, archive, aoi, empty_folder):
        code, out, err = call("--aoi", aoi, "--catalog", archive, *QUICK, "--json")
        said = json.loads(out)
        assert (code, err, out.count("\n")) == (0, "", 1)
        assert (said["status"], said["store"], said["picture"]) == ("complete", "lake_shore.zarr", "lake_shore.png")
        assert said["scenes"] == ["S2A_ONE"]
        assert said["computed"] == said["units"] == 1
        assert said["valid_fraction"] == 1
        assert {path.name for path in empty_folder.iterdir()} == {"lake_shore.zarr", "lake_shore.png"}
        assert call("lake_shore.zarr", program=check)[0] == 0

    def test_words_and_the_line_that_opens_it(self, call, archive, aoi, empty_folder):
        store = empty_folder / "deep" / "shore.zarr"
        store.parent.mkdir()
        code, out, err = call("--aoi", aoi, "--catalog", archive, *QUICK, "--out", store)
        assert (code, err) == (0, "")
        assert f"{store} is complete: 12 bands at 2.5 m, EPSG:32632 240 x 240 px, by bicubic" in out
        assert "2024-06-17  S2A_ONE" in out
        names = {}
        exec(re.search(r"open +(import .*)", out)[1], names)
        assert tuple(names["ds"].band.values) == BAND_NAMES

    def test_progress_on_a_terminal(self, call, archive, aoi, monkeypatch):
        screen = Screen()
        monkeypatch.setattr(command.sys, "stderr", screen)
        code = command.main(["--aoi", aoi, "--catalog", archive, *QUICK])
        assert code == 0
        shown = screen.getvalue().split("\r")
        for said in (
            "searching",
            "looking at the scenes' pixels, 1 of 1",
            "loading libraries and weights",
            "units 0/1, 1 at work",
            "units 1/1",
            "publishing",
            "drawing the quicklook",
        ):
            assert any(line[2:].startswith(said) for line in shown), said
        assert max(map(len, shown)) < 80
        assert shown[-1] == ""
        assert set(shown[-2]) == {" "}, "the line is taken away"

    def test_flags_reach_the_run(self, call, archive, aoi, monkeypatch):
        seen = {}

        def stop(plan, store, **given):
            seen.update(given, store=store, seed=plan.config.seed)
            raise KeyboardInterrupt

        monkeypatch.setattr(driver, "run_plan", stop)
        code, _, err = call(
            *("--aoi", aoi, "--catalog", archive, "--sr", "bicubic", "--cluster", "tcp://x:1", "--workers", "3"),
            *("--verify", "full", "--out", "kept.zarr", "--seed", "11"),
        )
        assert code == 130
        assert "run the same command again" in err
        assert seen.pop("patience").max_outage_s == 1800
        seen.pop("report")
        assert seen.pop("held").place == seen["store"]
        assert seen == {
            "cluster": "tcp://x:1", "workers": 3, "verify": "full", "store": place_of(Path("kept.zarr").resolve()),
            "seed": 11, "shard": None, "mixed": False,
        }  # fmt: skip


FLAGS = {  # RunConfig field: (arguments, value)
    "catalog": (["--catalog", "cdse"], "cdse"),
    "start": (["--start", "2024-06-01"], "2024-06-01"),
    "end": (["--end", "2024-07"], "2024-07"),
    "max_cloud": (["--max-cloud", "12.5"], 12.5),
    "composite": (["--composite", "median"], "median"),
    "exclude": (["--exclude", "S2A_ONE", "--exclude", "S2B_TWO"], ("S2A_ONE", "S2B_TWO")),
    "bands": (["--bands", "B02, B03,B04,"], ("B02", "B03", "B04")),
    "sr": (["--sr", "difffusr"], "difffusr"),
    "options": (["--option", "steps=5", "--option", "eta=0.1"], ("steps=5", "eta=0.1")),
    "conditions": (["--condition", "map=m.gpkg"], ("map=m.gpkg",)),
    "weights": (
        ["--weights", "w.safetensors", "--fusion-weights", "f.safetensors"],
        ("w.safetensors", "fusion=f.safetensors"),
    ),
    "members": (["--members", "4"], 4),
    "batch": (["--batch", "4"], 4),
    "seed": (["--seed", "18446744073709551615"], 2**64 - 1),
    "estimate": (["--estimate", "sample"], "sample"),
    "consistency": (["--consistency", "tent"], "tent"),
    "precision": (["--precision", "bfloat16"], "bfloat16"),
    "mtf": (["--mtf", "B02=0.25"], ("B02=0.25",)),
    "offset": (["--offset", "-1000"], -1000),
    "clip": (["--clip"], True),
    "chunk_px": (["--chunk-px", "240"], 240),
    "unit_chunks": (["--unit-chunks", "2"], 2),
    "shard": (["--shard"], True),
    "chunk_bands": (["--chunk-bands", "1"], "1"),
}


class TestArguments:
    @pytest.mark.parametrize("field", [field.name for field in fields(RunConfig)])
    def test_every_knob_has_a_flag(self, field):
        arguments, value = FLAGS[field]
        config = command.config_of(command.parser().parse_args(arguments))
        assert config == replace(RunConfig(), **{field: value})

    def test_no_flags_are_the_defaults(self):
        assert command.config_of(command.parser().parse_args([])) == RunConfig()
        assert set(FLAGS) == {field.name for field in fields(RunConfig)}

    @pytest.mark.parametrize(
        "words",
        [
            ["--bbox", "-60.5", "-35", "-60.25", "-34.9"],
            ["--bbox", "-60.5,-35,-60.25,-34.9"],
            ["--bbox=-60.5,-35,-60.25,-34.9"],
            ["--bbox", "-6.05e1,", "-35", "-60.25,-34.9"],
        ],
    )
    def test_western_and_southern_boxes(self, words):
        given = command.parser().parse_args(joined([*words, "--quiet"]))
        assert given.quiet
        assert command.aoi_of(given).shape.bounds == (-60.5, -35, -60.25, -34.9)

    @pytest.mark.parametrize(
        ("cluster", "units", "workers", "gpus", "chosen"),
        [
            ("auto", 5, 2, 0, "local"), ("auto", 1, 2, 0, "inline"), ("auto", 5, 1, 0, "inline"),
            ("auto", 5, 3, 1, "inline"), ("auto", 3, 6, 1, "inline"), ("auto", 5, 6, 1, "local"),
            ("auto", 5, 2, 4, "cuda"), ("inline", 5, 2, 4, "inline"),
        ],
    )  # fmt: skip
    def test_auto_cluster(self, monkeypatch, cluster, units, workers, gpus, chosen):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        assert cluster_of(cluster, units, workers) == chosen

    @pytest.mark.parametrize(
        ("cluster", "asked", "gpus", "at_work"),
        [
            ("auto", 6, 0, 6), ("auto", 2, 1, 6), ("auto", None, 1, 12), ("auto", 6, 4, 12), ("cuda", 6, 4, 12),
            ("inline", 6, 4, 3), ("local", 6, 4, 18), ("tcp://there:8786", 6, 1, 6),
        ],
    )  # fmt: skip
    def test_workers_are_counted_as_they_will_be(self, monkeypatch, cluster, asked, gpus, at_work):
        """Where there are GPUs, each process computes three units at once."""
        monkeypatch.setattr(choices, "gpus_here", lambda: gpus)
        monkeypatch.setattr(choices, "processes_per_gpu", lambda: 4)
        assert choices.at_work(cluster, asked) == at_work

    @pytest.mark.parametrize(
        ("processors", "gpu_gib", "mode", "processes"),
        [
            (16, 141, "Default", 4), (64, 141, "Default", 4), (8, 141, "Default", 2), (3, 141, "Default", 1),
            (16, 16, "Default", 2), (16, 6, "Default", 1), (16, 141, "Exclusive_Process", 1), (16, 141, None, 4),
        ],
    )  # fmt: skip
    def test_processes_at_a_gpu_by_processors_memory_and_its_mode(
        self, monkeypatch, processors, gpu_gib, mode, processes
    ):
        from types import SimpleNamespace

        import torch

        def asked(*_given, **_named):
            if mode is None:
                raise FileNotFoundError("nvidia-smi")
            return SimpleNamespace(stdout=f"{mode}\n")

        monkeypatch.setattr(choices, "processors", lambda: processors)
        monkeypatch.setattr(choices.subprocess, "run", asked)
        gpu = SimpleNamespace(total_memory=gpu_gib * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: gpu)
        assert choices.processes_per_gpu() == processes

    @pytest.mark.parametrize(
        ("cluster", "asked", "gpu", "units", "limit_mib", "found"),
        [
            ("auto", None, False, 8, 10_000, 6),  # six processes of 1000 MiB in 70 % of the memory
            ("auto", None, False, 8, 5_000, 3),
            ("auto", None, False, 2, 5_000, 6),  # two of 1200 MiB, three threads each
            ("auto", None, False, 2, 2_000, 3),
            ("auto", 6, False, 1, 2_200, 6),  # one of 1500 MiB
            ("auto", 6, False, 8, 5_000, None),
            ("inline", 6, False, 8, 2_200, 6),
            ("inline", None, True, 8, 13_000, None),  # CUDA takes 8 GiB of main memory
            ("local", None, True, 8, 30_000, 6),  # two processes of 9992 MiB with three units each
            ("local", None, True, 8, 14_000, 2),  # one with two units
            ("local", 2, True, 8, 28_000, 4),  # two processes were asked for, with two units each
            ("local", 2, True, 8, 14_000, None),
            ("tcp://there:8786", None, False, 8, 100, 6),
        ],
    )  # fmt: skip
    def test_workers_that_memory_allows(self, monkeypatch, cluster, asked, gpu, units, limit_mib, found):
        from types import SimpleNamespace

        from distributed import system

        monkeypatch.setattr(system, "MEMORY_LIMIT", limit_mib * 2**20)
        monkeypatch.setattr(choices, "device_name", lambda: "cuda" if gpu else "cpu")
        at_once = 3 if gpu else 1
        cost = SimpleNamespace(worker_mib=1000.0, thread_mib=100.0, unit_mib=400.0, units=units, at_once=at_once)
        if found is None:
            with pytest.raises(UsageError, match="MiB need"):
                choices.affordable(cluster, asked, 6, cost)
        else:
            assert choices.affordable(cluster, asked, 6, cost) == found

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--bbox", "--clip"], "--bbox: expected one argument"),
            (["--composite", "best"], "'mosaic', 'median', 'none'"),
            (["--offset", "1000"], "0, -1000"),
            (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        ],
    )
    def test_argparse_refuses(self, call, arguments, said):
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert said in err.splitlines()[-1]


class TestRefusals:
    """Exit 2 or 3 with one line that says what is wrong, and nothing written."""

    @pytest.fixture(autouse=True)
    def _nothing_is_written(self, empty_folder):
        before = listing(empty_folder)
        yield
        assert listing(empty_folder) == before

    def test_neither_or_both_areas(self, call, archive, aoi):
        assert "no area given" in refused(call("--catalog", "earth-search"))
        both = refused(call("--aoi", aoi, "--bbox", 1, 2, 3, 4, "--catalog", archive))
        assert "two areas given; expected either --aoi FILE or --bbox W,S,E,N" in both

    @pytest.mark.parametrize("words", ["1 2 3", "1,2,3", "a b c d", "a,b,c,d", "1 2 x 4", "1,2,3,4,5", "-1,2,-3"])
    def test_a_box_of_other_than_four_numbers(self, call, archive, words):
        said = refused(call("--bbox", *words.split(" "), "--catalog", archive))
        assert f"--bbox {words.replace(' ', ',')}; expected four degrees, W,S,E,N or W S E N; cure: " in said

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "empty"),
            ("not json", "line 1 column 1"),
            ('{"type": "Polygon", "coordinates": [[[1, 2], [3', "ends too early"),
            ("[1, 2]", "expected a GeoJSON object"),
            ('{"type": "FeatureCollection", "features": []}', "no features"),
            ('{"type": "Feature", "geometry": null, "properties": {}}', "geometry"),
            ('{"type": "Point", "coordinates": [7, 45]}', "Point"),
            ('{"type": "polygon", "coordinates": [[[1, 1], [2, 1], [2, 2], [1, 1]]]}', "polygon"),
            ('{"type": "Polygon", "coordinates": [[[1, 1], [2, 1], [NaN, 2], [1, 1]]]}', "NaN"),
            ('{"type": "Polygon", "coordinates": [[["1", 1], [2, 1], [2, 2], [1, 1]]]}', "[0]"),
            ('{"type": "Polygon", "coordinates": [[[1, 1], [2, 1], [1, 1]]]}', "[0]"),
            ('{"type": "Polygon", "coordinates": [[[1, 1], [2, 2], [2, 1], [1, 2], [1, 1]]]}', "--repair"),
            ('{"type": "Polygon", "coordinates": [[[45, 107], [46, 107], [46, 108], [45, 107]]]}', "swapped"),
            ('{"type": "Polygon", "coordinates": [[[6e5, 5e6], [6e5, 5.1e6], [7e5, 5.1e6], [6e5, 5e6]]]}', "ogr2ogr"),
            ('{"type": "Polygon", "coordinates": [[[0, 40], [20, 40], [20, 60], [0, 60], [0, 40]]]}', "200,000 km2"),
            ('{"rings": [[[1, 1], [2, 1], [2, 2], [1, 1]]]}', "Esri JSON"),
            ("[" * 100_000, "levels deep"),
        ],
    )
    def test_bad_aois(self, call, archive, tmp_path, content, said):
        path = tmp_path / "bad.geojson"
        path.write_text(content)
        line = refused(call("--aoi", path, "--catalog", archive, *QUICK))
        assert said in line
        assert "bad.geojson" in line
        assert len(line) < 500 + len(str(path))

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("missing.geojson", "No such file"),
            (".", "a folder"),
            ("fields.shp", "ogr2ogr"),
            ("https://example.com/a.geojson", "download it first"),
        ],
    )
    def test_bad_aoi_sources(self, call, archive, source, said):
        assert said in refused(call("--aoi", source, "--catalog", archive, *QUICK))

    @pytest.mark.parametrize(
        "numbers", [(8, 45, 7, 45), (7, 46, 8, 45), (45, 107, 46, 108), (600000, 5000000, 610000, 5010000)]
    )
    def test_bad_boxes(self, call, archive, numbers):
        assert "bounding box" in refused(call("--bbox", *numbers, "--catalog", archive, *QUICK))

    def test_limits_of_the_area(self, call, archive, aoi):
        assert "at most 0 km2" in refused(call("--aoi", aoi, "--catalog", archive, "--max-area-km2", "0.1"))

    def test_repair(self, call, archive, tmp_path):
        bow_tie = [(LEFT + 300, TOP - 300), (LEFT + 900, TOP - 900), (LEFT + 900, TOP - 300), (LEFT + 300, TOP - 900)]
        path = write_aoi(tmp_path / "bow.geojson", bow_tie)
        assert "--repair-aoi" in refused(call("--aoi", path, "--catalog", archive, *QUICK))
        code, _, err = call("--aoi", path, "--catalog", archive, *QUICK, "--repair-aoi", "--dry-run")
        assert code == 0
        assert err.startswith("warning: ")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--catalog", "smaple"], ["sample", "earth-search", "planetary-computer", "did you mean 'sample'?"]),
            (["--catalog", "http://stac.example.com"], ["https"]),
            (["--sr", "lit"], list(known())),
            (["--bands", "B02,B10"], ["B10", *BAND_NAMES]),
            (["--bands", " ,"], ["--bands", "B02"]),
            (["--sr", "difffusr"], ["needs weights", "--weights"]),
            (["--weights", "x.safetensors"], ["takes no weights"]),
            (["--start", "2024-13"], ["start '2024-13'", "2024-06-17"]),
            (["--start", "yesterday"], ["'yesterday'"]),
            (["--start", "2024-06", "--end", "2024-01"], ["before"]),
            (["--start", "2999-01-01"], ["future"]),
            (["--end", "2014"], ["2015-06-23"]),
            (["--max-cloud", "101"], ["0 to 100"]),
            (["--max-cloud", "nan"], ["0 to 100"]),
            (["--chunk-px", "100"], ["multiple of 24"]),
            (["--unit-chunks", "-1"], ["at least 1"]),
            (["--members", "1001"], ["0 to 1000"]),
            (["--seed", "-1"], ["2**64"]),
            (["--workers", "0"], ["--workers 0", "at least 1"]),
            (["--workers", "-2"], ["--workers -2"]),
            (["--config", "none.toml"], ["none.toml", "No such file"]),
        ],
    )
    def test_bad_values_say_what_would_do(self, call, archive, aoi, arguments, said):
        line = refused(call("--aoi", aoi, "--catalog", archive, *QUICK, *arguments))
        for word in said:
            assert word in line

    def test_config_file_with_unknown_name(self, call, archive, aoi, tmp_path):
        path = tmp_path / "run.toml"
        path.write_text("sead = 1")
        assert "sead" in refused(call("--aoi", aoi, "--catalog", archive, "--config", path))

    def test_far_from_any_scene(self, call, archive):
        line = refused(call("--bbox", -60.1, -35.1, -60, -35, "--catalog", archive, *QUICK), code=3)
        assert "outside the area" in line
        assert "check the AOI's place" in line

    def test_too_cloudy_or_another_time(self, call, archive, aoi):
        line = refused(call("--aoi", aoi, "--catalog", archive, *QUICK, "--end", "2020-01-01"), code=3)
        assert "outside the period" in line
        assert "--start" in line

    def test_sample_extra_is_missing(self, call, aoi, monkeypatch):
        def absent(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "files", absent)
        line = refused(call("--aoi", aoi, "--catalog", "sample", *QUICK))
        assert 'pip install "sen2fine[sample]"' in line


class Trap:
    """A pickle that would leave a file behind if anything opened it."""

    def __reduce__(self):
        return os.mkdir, ("pickle_was_opened",)


class TestWeights:
    """Unfit weights end the run before the archive is asked for anything."""

    @pytest.fixture(autouse=True)
    def _no_search(self, monkeypatch):
        def never(*_args, **_kwargs):
            pytest.fail("the archive was asked although the weights cannot be used")

        monkeypatch.setattr(pipeline.archive.catalog, "load_catalog", never)
        monkeypatch.setattr(pipeline.archive.search, "search", never)

    @staticmethod
    def write(what, path):
        shipped = WEIGHTS / "lite-sr.safetensors"
        content = shipped.read_bytes()
        if what == "beheaded":
            path.write_bytes(content[100:])
        elif what == "truncated header":
            path.write_bytes(content[:500])
        elif what == "truncated tensors":
            path.write_bytes(content[:-1000])
        elif what == "empty":
            path.write_bytes(b"")
        elif what == "pickle":
            path.write_bytes(pickle.dumps(Trap()))
        elif what == "another system":
            shutil.copy(WEIGHTS / "lite-fusion.safetensors", path)
        elif what in ("NaN", "shape"):
            bundle = load_bundle(shipped)
            tensors = load_tensors(bundle)
            name = next(n for n, t in tensors.items() if t.is_floating_point() and t.ndim > 1)
            tensors[name] = tensors[name] * float("nan") if what == "NaN" else tensors[name][:-1]
            save_bundle(path, bundle, tensors)
        else:
            path.mkdir()

    @pytest.mark.parametrize(
        ("what", "said"),
        [
            ("beheaded", "safetensors"),
            ("truncated header", "safetensors"),
            ("truncated tensors", "safetensors"),
            ("empty", "safetensors"),
            ("pickle", "safetensors"),
            ("another system", "'lite-fusion'; expected lite-sr"),
            ("NaN", "NaN"),
            ("shape", "wrong shape"),
            ("folder", "no weights at"),
        ],
    )
    def test_super_resolver(self, call, archive, aoi, tmp_path, empty_folder, what, said):
        path = tmp_path / "given.safetensors"
        self.write(what, path)
        line = refused(call("--aoi", aoi, "--catalog", archive, "--sr", "lite", "--weights", path))
        assert said in line
        assert "given.safetensors" in line
        assert not listing(empty_folder)

    def test_missing(self, call, archive, aoi, empty_folder):
        for flag in ("--weights", "--fusion-weights"):
            line = refused(call("--aoi", aoi, "--catalog", archive, "--sr", "lite", flag, "nowhere.safetensors"))
            assert "no weights at nowhere.safetensors" in line
        assert not listing(empty_folder)


class TestOutput:
    """Places that cannot be written, or must not be."""

    def test_a_file_or_a_folder_of_somebody_else(self, call, archive, aoi, empty_folder):
        (empty_folder / "thesis.zarr").write_text("years of work")
        (empty_folder / "photos").mkdir()
        (empty_folder / "photos" / "one.jpg").write_text("x")
        before = listing(empty_folder)
        for out in ("thesis.zarr", "photos"):
            assert "not a store of this pipeline" in refused(
                call("--aoi", aoi, "--catalog", archive, *QUICK, "--out", out)
            )
        assert listing(empty_folder) == before

    def test_below_a_file(self, call, archive, aoi, empty_folder):
        (empty_folder / "file").write_text("x")
        line = refused(call("--aoi", aoi, "--catalog", archive, *QUICK, "--out", "file/x.zarr"), code=6)
        assert "file/x.zarr" in line
        assert "--out" in line
        assert (empty_folder / "file").read_text() == "x"

    @pytest.mark.parametrize("more", [(), ("--dry-run",), ("--plan-only",), ("--overwrite",)])
    def test_a_folder_that_is_not_there(self, call, archive, aoi, empty_folder, more):
        out = empty_folder / "scrath" / "my runs" / "x.zarr"
        line = refused(call("--aoi", aoi, "--catalog", archive, *QUICK, "--out", out, *more))
        found = f"--out {out}: there is no folder {out.parent}; expected one that exists, to write into"
        assert line == f"error: {found}; cure: mkdir -p '{out.parent}', if the name is right\n"
        assert listing(empty_folder) == {}

    def test_an_index_in_a_folder_that_is_not_there(self, call, archive, empty_folder):
        line = refused(call(Path(archive).parent, "--datetime", "2024-06-17", "--out", "new/a.json", program=index))
        assert f"--out new/a.json: there is no folder {empty_folder / 'new'}; " in line
        assert listing(empty_folder) == {}

    @pytest.mark.parametrize(
        ("number", "said"),
        [("EACCES", "may not write to"), ("EROFS", "may not write to"), ("ENOSPC", "no space left while writing")],
    )
    @pytest.mark.parametrize("step", ["create_group", "consolidate_metadata"])
    def test_the_system_refuses(self, call, archive, aoi, monkeypatch, number, said, step):
        import errno

        import zarr

        def refuse(*_args, **_kwargs):
            raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

        monkeypatch.setattr(zarr, step, refuse)
        line = refused(call("--aoi", aoi, "--catalog", archive, *QUICK, "--out", "x.zarr"), code=6)
        assert re.search(rf"{said} \S*x\.zarr", line)

    def test_small_files_and_indexes_below_a_file(self, call, archive, empty_folder):
        (empty_folder / "file").write_text("x")
        with pytest.raises(StorageError, match="file/receipt.json"):
            write_atomic(Path("file/receipt.json"), b"{}")
        line = refused(call(Path(archive).parent, "--datetime", "2024-06-17", "--out", "file/a.json", program=index), 6)
        assert "file/a.json cannot be written" in line


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


class TestProgress:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr("pipeline.terminal.time.monotonic", lambda: now[0])
        return now

    @staticmethod
    def last(screen):
        return screen.getvalue().split("\r")[-1].rstrip()

    def test_units_speed_and_time_left(self, clock):
        screen = Screen()
        progress = Progress(stream=screen)
        summary = Summary(units=5, resumed=1, pixels=400_000)
        progress.units(summary, 0)
        assert self.last(screen) == "| units 1/5, starting workers"
        clock[0] = 10.0
        progress.units(summary, 2)
        assert self.last(screen) == "| units 1/5, 2 at work, 10 s"
        summary.computed, summary.pixels = (
            1,
            1_400_000,
        )  # a million pixels of 6.25 m2 in 10 s; what was found is not new
        progress.units(summary, 2)
        assert self.last(screen) == "| units 2/5, 2250 km2/h, 30 s left, 2 at work, 10 s"
        clock[0], summary.computed, summary.pixels = 400.0, 4, 4_400_000
        progress.units(summary, 0)
        assert self.last(screen) == "| units 5/5, 225 km2/h, 0 s left, finishing, 7 min"
        progress.clear()

    def test_a_shorter_line_covers_a_longer_one(self):
        screen = Screen()
        progress = Progress(stream=screen)
        progress.say("long " * 50)
        progress.say("short")
        widths = {len(line) for line in screen.getvalue().split("\r")[1:]}
        assert widths == {79}, "the last column of 80 stays free, or the cursor would be in the next line"
        progress.clear()
        assert screen.getvalue().endswith("\r" + " " * 7 + "\r")

    @pytest.mark.parametrize(("quiet", "stream"), [(True, Screen()), (False, io.StringIO())])
    def test_silent_when_asked_or_not_on_a_terminal(self, quiet, stream):
        progress = Progress(quiet=quiet, stream=stream)
        progress.say("searching")
        progress.units(Summary(units=2), 1)
        progress.clear()
        assert stream.getvalue() == ""

    def test_words(self):
        assert [duration(s) for s in (0.4, 42, 100, 5399, 5400, 90000)] == [
            "0 s", "42 s", "2 min", "90 min", "1.5 h", "25.0 h",
        ]  # fmt: skip
        assert [counted(n, "unit") for n in (0, 1, 2)] == ["0 units", "1 unit", "2 units"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, archive, aoi):
    """A complete store of four units."""
    store = tmp_path_factory.mktemp("check") / "done.zarr"
    arguments = ["--aoi", aoi, "--catalog", archive, *QUICK, "--chunk-px", "144", "--unit-chunks", "1"]
    assert command.main([*arguments, "--json", "--out", str(store)]) == 0
    return store


class TestCheck:
    @pytest.fixture
    def store(self, finished, tmp_path):
        return Path(shutil.copytree(finished, tmp_path / "copy.zarr"))

    @pytest.mark.parametrize("verify", ["none", "size", "full"])
    def test_sound(self, call, store, verify):
        before = listing(store)
        code, out, err = call(store, "--verify", verify, program=check)
        assert (code, err) == (0, "")
        assert re.match(rf"{store}: complete; 4 of 4 units sound \(.*, \d+ chunks\)\n  QGIS     ", out)
        assert f'ZARR:"{store}":/reflectance  (with GDAL 3.12 or later)' in out
        assert listing(store) == before

    def test_a_receipt_lost_from_a_complete_store(self, call, store):
        sorted((store / "_run" / "receipts").glob("*.json"))[0].unlink()
        code, out, _ = call(store, program=check)
        assert code == 7
        assert "3 of 4 units sound" in out
        assert "damaged  z32632-r0-c0-t0: _run/receipts/z32632-r0-c0-t0.json is missing" in out
        assert "--repair computes them" in out

    def test_damaged(self, call, store):
        chunk = sorted(path for path in store.glob("reflectance/c/**/*") if path.is_file())[0]
        chunk.write_bytes(chunk.read_bytes()[:-1])
        code, out, _ = call(store, "--json", program=check)
        assert code == 7
        (faults,) = json.loads(out)["damaged"].values()
        assert str(chunk.relative_to(store)) in faults[0]
        code, out, _ = call(store, program=check)
        assert code == 7
        assert "  damaged  z32632" in out

    @pytest.mark.parametrize("what", ["missing", "file", "empty folder"])
    def test_not_ours(self, call, empty_folder, what):
        path = empty_folder / "x.zarr"
        if what == "file":
            path.write_text("x")
        elif what == "empty folder":
            path.mkdir()
        assert "x.zarr holds no plan" in refused(call(path, program=check))

    def test_unreadable_plan(self, call, store):
        (store / "_run" / "plan.json").write_text("{")
        assert "plan.json cannot be read" in refused(call(store, program=check), code=7)

    def test_a_store_begun_and_left(self, call, archive, aoi, monkeypatch):
        def stop(*_args, **_kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(driver, "run_plan", stop)
        assert call("--aoi", aoi, "--catalog", archive, *QUICK, "--out", "begun.zarr")[0] == 130
        code, out, _ = call("begun.zarr", program=check)
        assert code == 75
        assert "begun.zarr: incomplete; 0 of 1 units sound" in out


class TestProcess:
    """The same through a real process."""

    @staticmethod
    def run(*arguments, **more):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, env=env, **more)

    def test_help_names_every_flag(self):
        done = self.run("pipeline.run", "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert all(words[0] in done.stdout for words, _ in FLAGS.values())
        assert self.run("pipeline.check", "--help").returncode == 0

    def test_a_reader_that_leaves_early_is_no_failure(self, finished):
        command_line = [sys.executable, "-m", "pipeline.check", str(finished)]
        with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            process.stdout.close()  # as `| head` does
            assert process.stderr.read() == ""
            assert process.wait() == 0

    @pytest.mark.slow
    def test_stdin_json_and_exit_codes(self, archive, aoi, empty_folder):
        done = self.run(
            "pipeline.run", "--aoi", "-", "--catalog", archive, *QUICK, "--json", input=Path(aoi).read_text()
        )
        assert (done.returncode, without_log(done.stderr)) == (0, "")
        assert json.loads(done.stdout)["store"] == "stdin.zarr"
        assert (empty_folder / "stdin.zarr").is_dir()
        empty = self.run("pipeline.run", "--aoi", "-", "--catalog", archive, input="")
        assert (empty.returncode, empty.stdout) == (2, "")
        assert re.fullmatch(r"error: stdin: \$: empty; .*\n", empty.stderr)
