"""The commands and settings in deploy/README.md match the programs."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pipeline import arguments, submit
from pipeline.archive.read import rate_limit
from pipeline.jobs.slurm import sbatch_options
from pipeline.running import dask_scheduler
from pipeline.store import lease, objects

FOLDER = Path(__file__).resolve().parents[2] / "deploy"
README = (FOLDER / "README.md").read_text()


def blocks(language=""):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(module):
    lines = [line for block in blocks() for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"python -m {module} ")]


@pytest.mark.parametrize("command", commands("pipeline.submit"))
def test_submit_commands_are_understood(command):
    words = submit._joined(shlex.split(command)[3:])
    understood = submit.parser().parse_args(words)
    submit.resources_of(understood)
    sbatch_options(understood.sbatch)
    assert not submit.plan_flags(words)  # every flag is one of submit or of the store


@pytest.mark.parametrize("command", commands("pipeline.run"))
def test_run_commands_are_understood(command):
    arguments.parser().parse_args(shlex.split(command)[3:])


def test_quoted_options_of_sbatch_are_understood():
    (found,) = re.findall(r'`--sbatch "(--signal[^"]*)"`', README)
    assert sbatch_options(found) == (found,)


def test_parameters_are_those_of_the_scripts_or_of_the_pipeline():
    scripts = "".join(path.read_text() for path in (FOLDER / "slurm").glob("*.sbatch"))
    code = {
        rate_limit.PROCESSES_VARIABLE, dask_scheduler.INSECURE_VARIABLE, lease.LAPSE_ENV, objects.PATIENCE_ENV,
    }  # fmt: skip
    for name in set(re.findall(r"SEN2FINE_\w+", README)) - code:
        assert f"${{{name}:" in scripts, name


def test_folders_and_files_named_exist():
    for name in re.findall(r"^\| `(\w+)/`", README, re.MULTILINE):
        assert (FOLDER / name).is_dir()
    for name in re.findall(r"deploy/[\w./]+\w", "\n".join(blocks())):
        assert (FOLDER.parent / name).exists(), name


def test_settings_for_tls_are_those_that_dask_reads():
    import dask
    from distributed import Security

    (settings,) = (found for block in blocks("yaml") if "distributed" in (found := yaml.safe_load(block)))
    with dask.config.set(dask.config.merge(dask.config.config, settings)):
        security = Security()
    assert security.require_encryption is True
    for role in ("scheduler", "worker", "client"):
        found = security.get_tls_config_for_role(role)
        assert (found["ca_file"], found["cert"], found["key"]) == (
            "/secure/ca.crt", "/secure/tls.crt", "/secure/tls.key",
        )  # fmt: skip


def test_settings_for_slurm_are_those_that_jobqueue_reads():
    jobqueue = pytest.importorskip("dask_jobqueue")
    import dask

    (settings,) = (found for block in blocks("yaml") if "jobqueue" in (found := yaml.safe_load(block)))
    assert jobqueue.SLURMCluster
    known = set(dask.config.get("jobqueue.slurm"))
    assert set(settings["jobqueue"]["slurm"]) <= known
