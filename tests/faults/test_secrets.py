"""Secrets of archives: an expired token is renewed, and nothing that a run writes or says holds one."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from pipeline.archive.read import retry
from pipeline.planning.plan import load_plan
from pipeline.store import layout
from tests.conftest import without_log
from tests.faults.conftest import call, online, words_for
from tests.faults.signing import sign_here, token_service
from tests.running.conftest import PYTHON, chunk_digests

TOKEN, KEY, PASSWORD = "CANARY-token-7d41", "CANARY-key-93bf", "CANARY-password-0c2a"
ROOT = Path(__file__).resolve().parents[2]
# Every process of the run signs on loopback, and logs all it has to say, whoever says it, into a file of its own.
SITE = """
import logging, os
from tests.faults.signing import sign_here
sign_here(setattr, os.environ["TEST_TOKENS"])
logging.basicConfig(level=logging.DEBUG, filename=os.path.join(os.environ["TEST_LOGS"], f"{os.getpid()}.log"))
"""


@pytest.mark.slow
def test_a_token_that_ends_early_is_renewed_once(scenes, aoi, golden, tmp_path, monkeypatch, capsys):
    """All tokens are revoked when the first unit is at work. Each container is signed once more, no more than that."""
    monkeypatch.setattr(retry, "MAX_WAIT_S", 0.05)
    with token_service(TOKEN) as tokens:
        sign_here(monkeypatch.setattr, tokens.url)

        def rule(name, count, request):
            if "S2A_MSIL2A_ONE_B11" in name and count == 0:
                tokens.revoke()
            return None if tokens.good(request) else "403"

        with online(scenes, rule, signing="planetary-computer") as (toml, _):
            assert call(toml, aoi, tmp_path / "run.zarr") == 0, capsys.readouterr().err
    assert {container: len(given) for container, given in tokens.given.items()} == {
        "S2A_MSIL2A_ONE": 2,
        "S2B_MSIL2A_TWO": 2,
    }
    assert tokens.refused >= 1
    assert chunk_digests(tmp_path / "run.zarr") == golden
    assert files_with(TOKEN, tmp_path) == []


def test_access_that_stays_refused_is_one_line_with_the_cure(scenes, aoi, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retry, "MAX_WAIT_S", 0.05)
    with token_service(TOKEN) as tokens, online(scenes, lambda *_: "403", signing="planetary-computer") as (toml, _):
        sign_here(monkeypatch.setattr, tokens.url)
        assert call(toml, aoi, tmp_path / "run.zarr") == 5
    said = capsys.readouterr()
    assert "403" in said.err
    assert len(without_log(said.err).splitlines()) == 1
    assert TOKEN not in said.out + said.err


def files_with(secret, folder):
    """Files below `folder` that hold `secret`, or pictures whose text does."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".png":
            with Image.open(path) as image:
                content += repr(image.info).encode()
        if secret.encode() in content:
            found.append(str(path.relative_to(folder)))
    return found


@pytest.fixture
def environment(tmp_path):
    """(variables, folder of logs) of a run whose processes log everything, with a key among their variables."""
    site, logs = tmp_path / "site", tmp_path / "logs"
    site.mkdir()
    logs.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "AWS_SECRET_ACCESS_KEY": KEY,
        "OMP_NUM_THREADS": "1",
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path / "dask"),
        "TEST_LOGS": str(logs),
    }
    return variables, logs


@pytest.mark.slow
def test_nothing_that_a_run_writes_or_says_holds_a_secret(scenes, aoi, golden, tmp_path, environment):
    """Two workers, tokens in every address, a password in a listed one, a key in the environment, and failures.

    The first run meets a file that is gone for good, refused tokens, 503 and half a body; the second, without workers,
    ends well.
    """
    variables, logs = environment
    gone = {"still": True}

    def with_password(item):
        """An item that lists its files with a user name and password: refused, and that is told."""
        assets = {
            band: {**asset, "href": asset["href"].replace("://", f"://me:{PASSWORD}@").replace(".tif", ".x.tif")}
            for band, asset in item["assets"].items()
        }
        return [{**item, "id": f"{item['id']}_P", "assets": assets}]

    with token_service(TOKEN) as tokens:

        def rule(name, count, request):
            if "ONE_B11" in name and count == 0:
                tokens.revoke()
            if not tokens.good(request):
                return "403"
            if "ONE_B08" in name and gone["still"] and (store / "_run" / "plan.json").exists():
                return "404"
            if "TWO_B8A" in name and count < 4:
                return "503"
            return "truncated" if "ONE_B05" in name and count == 3 else None

        store = tmp_path / "out" / "run.zarr"
        store.parent.mkdir()
        with online(
            scenes, rule, "planetary-computer", lambda href: f"{href}?se=2020&sig={TOKEN}-listed", with_password
        ) as (toml, faults):
            words, said = [*words_for(toml, aoi, store), "--workers", "2", "--unit-chunks", "1"], []
            for cluster in ("local", "inline"):
                done = subprocess.run(
                    [PYTHON, "-m", "pipeline.run", *words, "--cluster", cluster], capture_output=True, text=True,
                    cwd=ROOT, env={**variables, "TEST_TOKENS": tokens.url}, timeout=240,
                )  # fmt: skip
                said.append((done.returncode, done.stdout + done.stderr))
                (tmp_path / f"said-{len(said)}.txt").write_text(said[-1][1])
                gone["still"] = False
    assert [code for code, _ in said] == [5, 0], said
    assert chunk_digests(store) == golden

    logged = [path.read_text() for path in logs.glob("*.log")]
    assert len(logged) >= 4, "two drivers and two workers logged all that they had to say, and so did their gateways"
    assert any("[redacted]" in text for text in logged), "some of it with tokens in it"
    assert "carries a user name or password" in said[0][1] or "carries a user name" in json.dumps(
        load_plan(store).notes
    )
    assert any(TOKEN in path for _, _, path in faults.requests), "tokens were in use"
    assert (store / "_run" / "receipts").is_dir()
    assert layout.status(store) == layout.STATUS_COMPLETE
    assert {secret: files_with(secret, tmp_path) for secret in ("CANARY", TOKEN, KEY, PASSWORD)} == {
        secret: [] for secret in ("CANARY", TOKEN, KEY, PASSWORD)
    }


def test_the_search_would_find_one(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("comment", TOKEN, zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.json").write_text(json.dumps({"x": TOKEN}))
    (tmp_path / "d.txt").write_text("nothing")
    assert files_with(TOKEN, tmp_path) == ["a.png", "b/c.json"]
