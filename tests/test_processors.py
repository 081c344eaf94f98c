"""The default number of threads, on made-up machines and containers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkvsts.processors import threads_here

PAIRS = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
ALL = set(PAIRS)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four cores of two hyperthreads each."""
    for processor, siblings in PAIRS.items():
        folder = tmp_path / f"sys/devices/system/cpu/cpu{processor}/topology"
        write(folder / "core_cpus_list", siblings)
    return tmp_path


def v2(root: Path, path: str, **limits: str) -> None:
    """A control group of version 2, `path` as the process sees it, and the groups' limits."""
    write(root / "proc/self/cgroup", f"0::{path}")
    for group, limit in limits.items():
        where = "" if group == "top" else group.replace("__", "/")
        write(root / "sys/fs/cgroup" / where / "cpu.max", limit)


def v1(root: Path, path: str, mount: str, groups: dict[str, tuple[int, int]]) -> None:
    write(root / "proc/self/cgroup", f"9:name=systemd:/\n4:memory:/m\n3:cpu,cpuacct:{path}\n0::/")
    for group, (quota, period) in groups.items():
        folder = root / "sys/fs/cgroup" / mount / group
        write(folder / "cpu.cfs_quota_us", str(quota))
        write(folder / "cpu.cfs_period_us", str(period))


def test_hyperthreads_of_one_core_count_once(root: Path) -> None:
    assert threads_here(root, ALL) == 4
    assert threads_here(root, {0, 4}) == 1
    assert threads_here(root, {0, 1, 4}) == 2
    assert threads_here(root, {4, 5, 6}) == 3


def test_the_older_name_of_the_same_fact(root: Path) -> None:
    for processor in PAIRS:
        folder = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        (folder / "core_cpus_list").rename(folder / "thread_siblings_list")
    assert threads_here(root, ALL) == 4


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert threads_here(tmp_path, {3, 5, 9}) == 3
    assert threads_here(tmp_path, set()) == 1


@pytest.mark.parametrize(
    ("limit", "threads"),
    [
        ("max 100000", 4),
        ("200000 100000", 2),
        ("150000 100000", 2),  # one and a half processors
        ("50000 100000", 1),
        ("900000 100000", 4),
        ("", 4),
        ("nonsense", 4),
        ("1000 0", 4),
    ],
)
def test_quota_of_version_2(root: Path, limit: str, threads: int) -> None:
    v2(root, "/", top=limit)
    assert threads_here(root, ALL) == threads


def test_the_tightest_group_above_counts(root: Path) -> None:
    v2(root, "/a/b/c", a="300000 100000", a__b="200000 100000", a__b__c="max 100000")
    assert threads_here(root, ALL) == 2
    v2(root, "/a", a="300000 100000")
    assert threads_here(root, ALL) == 3


def test_a_path_above_the_container_is_not_followed(root: Path) -> None:
    """A process moved out of its namespace's root is seen at "/../x"."""
    v2(root, "/../x", top="100000 100000")
    write(root / "sys/fs/x/cpu.max", "10000 100000")
    assert threads_here(root, ALL) == 1


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_quota_of_version_1(root: Path, mount: str) -> None:
    v1(root, "/docker/1f", mount, {"docker/1f": (250_000, 100_000)})
    assert threads_here(root, ALL) == 3
    v1(root, "/docker/1f", mount, {"docker/1f": (-1, 100_000), "docker": (100_000, 100_000)})
    assert threads_here(root, ALL) == 1


def test_inside_a_container_the_mount_is_the_group(root: Path) -> None:
    v1(root, "/docker/1f", "cpu,cpuacct", {"": (200_000, 100_000)})
    assert threads_here(root, ALL) == 2


def test_other_controllers_say_nothing(root: Path) -> None:
    write(root / "proc/self/cgroup", "2:cpuacct:/\n3:cpuset:/")
    write(root / "sys/fs/cgroup/cpuacct/cpu.cfs_quota_us", "1000")
    write(root / "sys/fs/cgroup/cpuacct/cpu.cfs_period_us", "1000")
    assert threads_here(root, ALL) == 4


def test_this_machine() -> None:
    assert 1 <= threads_here() <= (os.cpu_count() or 1)


def real_group(tmp_name: str) -> Path:
    """A control group of this machine in which a quota can be set; skips where none can be made."""
    mount = Path("/sys/fs/cgroup")
    for base, file in ((mount / "cpu", "cpu.cfs_quota_us"), (mount, "cpu.max")):
        group = base / tmp_name
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / file).exists():
            return group
        group.rmdir()
    pytest.skip("no control group with a CPU quota can be made here: needs root and a mount")


def printed(folder: Path, code: str, *arguments: str) -> str:
    """What Python prints in a folder of no sources, which would stand before what is installed."""
    command = [sys.executable, "-c", code, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


several = pytest.mark.skipif(threads_here() < 2, reason="one thread is all there is anyway")


@several
def test_a_real_quota(tmp_path: Path) -> None:
    """A process in a group of one processor's time starts one thread, whatever it may run on."""
    group = real_group(f"rwkvsts-test-{os.getpid()}")
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text("100000 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("100000")
        code = (
            "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
            "from rwkvsts.processors import threads_here; print(threads_here())"
        )
        assert printed(tmp_path, code, str(group / "cgroup.procs")) == "1"
    finally:
        group.rmdir()


@several
def test_a_real_affinity_mask(tmp_path: Path) -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from rwkvsts.processors import threads_here; print(threads_here())"
    )
    assert printed(tmp_path, code) == "1"
