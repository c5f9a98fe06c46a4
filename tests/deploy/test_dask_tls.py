"""A TLS-encrypted Dask cluster works with certificates and gives a one-line error without them."""

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.running.pools import open_pool
from tests.running.conftest import config_for, run, values


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Yield the address of a one-worker, TLS-only cluster and the Dask settings to connect to it."""
    pytest.importorskip("cryptography")
    from distributed import LocalCluster, Security

    made = Security.temporary()
    folder = tmp_path_factory.mktemp("tls")
    settings = {"distributed.comm.require-encryption": True}
    for name, text in (("ca-file", made.tls_ca_file), ("client.cert", made.tls_client_cert),
                       ("client.key", made.tls_client_key)):  # fmt: skip
        (folder / name).write_text(text)
        settings[f"distributed.comm.tls.{name}"] = str(folder / name)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", protocol="tls://", security=made,
        dashboard_address="127.0.0.1:0",
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address, settings


@pytest.mark.slow
def test_certificates_in_dasks_settings_are_used(tls, archive, aoi, tmp_path):
    import dask

    address, settings = tls
    assert address.startswith("tls://")
    run(config_for(archive), aoi, tmp_path / "here.zarr")
    with dask.config.set(settings):
        run(config_for(archive), aoi, tmp_path / "there.zarr", cluster=address)
    assert np.array_equal(values(tmp_path / "here.zarr"), values(tmp_path / "there.zarr"))


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "with_settings"), [("tls", False), ("tcp", False), ("tcp", True)])
def test_no_certificate_no_cluster_in_one_line(tls, scheme, with_settings, monkeypatch):
    import dask

    monkeypatch.setattr("pipeline.running.dask_scheduler._CONNECT_TIMEOUT", "1s")
    address, settings = tls
    address = address.replace("tls", scheme)
    with (
        dask.config.set(settings if with_settings else {}),
        pytest.raises(UsageError, match=address) as caught,
        open_pool(address, 1, "x", "y"),
    ):
        pass
    assert "\n" not in str(caught.value)
