"""Settings of processes that compute units."""

import subprocess
import sys

import numpy as np
import pytest

from pipeline.process import peak_rss_mib, share_heap

HEAPS = """
import ctypes, sys, threading
from pipeline.process import peak_rss_mib, share_heap
assert share_heap()
library = ctypes.CDLL(None)
library.malloc.restype = library.fopen.restype = ctypes.c_void_p
gate = threading.Barrier(4)
def take():
    gate.wait()
    assert library.malloc(5000)
threads = [threading.Thread(target=take) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
out = ctypes.c_void_p(library.fopen(sys.argv[1].encode(), b"w"))
assert library.malloc_info(0, out) == 0
library.fclose(out)
"""


def test_threads_of_the_command_share_a_heap(tmp_path):
    """Else each keeps a heap of its own, and the memory that was freed there."""
    if not share_heap():
        pytest.skip("the C library is not glibc")
    told = tmp_path / "heaps.xml"
    subprocess.run([sys.executable, "-c", HEAPS, str(told)], check=True)
    assert told.read_text().count("<heap nr=") == 1
    subprocess.run([sys.executable, "-c", HEAPS.replace("assert share_heap()", ""), str(told)], check=True)
    assert told.read_text().count("<heap nr=") > 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not begin with the peak of another")
def test_the_peak_is_that_of_the_process_itself():
    """A run that a large notebook starts is not as large as the notebook."""
    held = np.ones(2**26)  # 512 MiB
    done = subprocess.run(
        [sys.executable, "-c", "from pipeline.process import peak_rss_mib; print(peak_rss_mib())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 5 < float(done.stdout) < 450
    assert peak_rss_mib() > held.nbytes / 2**20
