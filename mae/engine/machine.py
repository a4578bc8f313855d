"""This machine's processor, and its free memory: of a GPU, or beside all other processes."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from data.environment import ranks_here

GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # bytes; version 1 of control groups writes about 2**63 where there is no limit


def processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take, without what others use.

    On a GPU: what its driver calls free, and what torch holds without using it. Otherwise the lesser of what the system
    calls available and what the control group (a container, a Slurm job) has left, divided among this machine's ranks.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)

    return min([_available(), *_left_by_groups()]) // ranks_here()


def memory_in_use() -> int:
    """Bytes that this process has in memory; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def _available() -> int:
    """What is free, and what the system can take back from its caches."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    half = 0.5  # other systems do not say how much others use
    return int(half * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _left_by_groups() -> Iterator[int]:
    """What each control group that this process belongs to has left; caches count as free."""
    if sys.platform != "linux":
        return
    for folder, limit, usage, cache in _groups():
        with suppress(OSError, ValueError):
            most = (folder / limit).read_text(encoding="ascii").strip()
            if most == "max" or int(most) > UNLIMITED:
                continue
            used = int((folder / usage).read_text(encoding="ascii"))
            yield max(int(most) - used + _statistic(folder / "memory.stat", cache), 0)


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """Folders of control groups of both versions, from this process's own up to the root, with their files' names."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "":
                root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in kinds.split(","):
                root, names = (
                    GROUPS / "memory",
                    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
                )
            else:
                continue

            # in a container the path may be the host's, and only the root is there
            folder = root / path.strip("/")
            while folder != root and root in folder.parents:
                yield folder, *names
                folder = folder.parent
            yield root, *names


def _statistic(path: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines():
            word, number = line.split()
            if word == name:
                return int(number)
    return 0
