"""The verb that looks at this machine and this installation: doctor."""

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import tyro

from avdistill.commands.console import Printed, output
from avdistill.errors import ConfigError
from avdistill.media.decoder import read_clip
from avdistill.media.encoder import write_clip
from avdistill.teachers.registry import TEACHERS
from avdistill.training.run_dir import processor_name

# A requirement of a package's metadata: the name, and the extra that asks for it.
_REQUIREMENT = re.compile(r"""^([\w.-]+)[^;]*(?:;.*extra\s*==\s*['"]([\w.-]+)['"])?""")
# Extras of those who change the library itself; what a user may miss is in the others.
_OF_DEVELOPERS = ("dev", "docs", "panns")
_DISK_BYTES = 64 * 1024**2
_CLIP = {"seconds": 2, "fps": 25, "height": 360, "width": 640}


@dataclass(frozen=True)
class _Doctor(Printed):
    """Look at what is installed, the devices, the teachers that need no download, and the speed of disk and decoder."""

    folder: Path = Path()
    """The folder whose disk is measured; 64 MB are written there and removed."""


def doctor(arguments: list[str]) -> None:
    """`avdistill doctor`."""
    a = tyro.cli(_Doctor, args=arguments, prog="avdistill doctor")
    report = diagnose(a.folder)
    output(report, _lines(report), a.json)


def diagnose(folder: Path) -> dict[str, Any]:
    """What `avdistill doctor --json` prints: versions, devices, teachers, speed, and a paragraph of all of them.

    Raises:
        ConfigError: the folder does not exist or cannot be written to.
    """
    core, extras = _requirements()
    report: dict[str, Any] = {
        "avdistill": importlib.metadata.version("avdistill"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "devices": _devices(),
        "packages": {name: _version(name) for name in core},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in extras.items()},
        "ffmpeg": {name: ".".join(map(str, version)) for name, version in av.library_versions.items()},
        "encoders": {name: name in av.codec.codecs_available for name in ("libx264", "libvpx", "libopus")},
        "teachers": {name: spec.available() for name, spec in TEACHERS.items()},
        "disk": _disk(folder),
        "decode": _decode(),
    }
    return report | {"paragraph": _paragraph(report)}


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that avdistill needs, and those of each extra for users."""
    core: list[str] = []
    extras: dict[str, list[str]] = {}
    for text in importlib.metadata.requires("avdistill") or []:
        found = _REQUIREMENT.match(text)
        if found is None or found[1] == "avdistill" or found[2] in _OF_DEVELOPERS:
            continue
        (core if found[2] is None else extras.setdefault(found[2], [])).append(found[1])
    return core, extras


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    """Accelerators that PyTorch sees; without one everything runs on the processor."""
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"kind": "cuda", "name": each.name, "memory_gb": round(each.total_memory / 1e9, 1)} for each in found]


def _disk(folder: Path) -> dict[str, Any]:
    """Free space, and the speed of one large file, written through to the disk and read back past the cache."""
    data = np.random.default_rng(0).bytes(_DISK_BYTES)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".avdistill-doctor-") as file:
            began = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            wrote = time.perf_counter() - began
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            file.seek(0)
            while file.read(1024**2):
                pass
            read = time.perf_counter() - began
    except OSError as error:
        raise ConfigError(f"--folder {folder}: expected a folder to write to, found: {error.strerror}") from error
    return {
        "folder": str(folder.resolve()),
        "free_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
        "write_mb_per_s": round(_DISK_BYTES / 1e6 / wrote),
        "read_mb_per_s": round(_DISK_BYTES / 1e6 / read),
    }


def _decode() -> dict[str, Any]:
    """Frames a second of a clip made here, read as `prepare` reads: every frame, shorter side 64, with audio."""
    count, rate = _CLIP["seconds"] * _CLIP["fps"], 16000
    rows, columns = np.mgrid[: _CLIP["height"], : _CLIP["width"]]
    frames = np.stack(
        [np.stack([columns + 3 * n, rows + 2 * n, rows * columns // 64 + n], axis=2) for n in range(count)]
    ).astype(np.uint8)  # gradients that move, wrapped at 256
    waveform = (0.3 * np.sin(np.arange(_CLIP["seconds"] * rate) * 0.17)).astype(np.float32)
    form = "mp4" if "libx264" in av.codec.codecs_available else "avi"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{form}"
        write_clip(path, form, frames, _CLIP["fps"], waveform, rate)
        began = time.perf_counter()
        clip = read_clip(path, fps=None, short_side=64, sample_rate_hz=rate)
        seconds = time.perf_counter() - began
    found = 0 if clip.frames is None else len(clip.frames)
    codec = "H.264" if form == "mp4" else "MPEG-4"
    return {
        "clip": f"{codec}, {_CLIP['width']} x {_CLIP['height']}, {found} of {count} frames",
        "frames_per_second": round(found / seconds),
    }


def _paragraph(report: dict[str, Any]) -> str:
    """The report in one paragraph for a bug report; it holds no path and no name of the machine."""
    devices = ", ".join(each["name"] for each in report["devices"]) or "no accelerator"
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in report["packages"].items())
    complete = [extra for extra, names in report["extras"].items() if all(names.values())]
    teachers = [name for name, available in report["teachers"].items() if available]
    disk, decode = report["disk"], report["decode"]
    return (
        f"avdistill {report['avdistill']}, Python {report['python']}, {report['platform']}; {report['processor']}, "
        f"{report['cpus']} CPUs, {report['memory_gb']} GB, {devices}; {packages}; FFmpeg libavcodec "
        f"{report['ffmpeg'].get('libavcodec', 'unknown')}; extras: {', '.join(complete) or 'none'}; teachers: "
        f"{', '.join(teachers) or 'none'}; disk {disk['free_gb']} GB free, write {disk['write_mb_per_s']} MB/s, read "
        f"{disk['read_mb_per_s']} MB/s; decodes {decode['frames_per_second']} frames/s ({decode['clip']})"
    )


def _lines(report: dict[str, Any]) -> list[str]:
    disk, decode = report["disk"], report["decode"]
    devices = [f"{each['name']}, {each['memory_gb']} GB" for each in report["devices"]]
    lines = [
        f"avdistill {report['avdistill']}, Python {report['python']}, {report['platform']}",
        f"processor   {report['processor']}, {report['cpus']} CPUs, {report['memory_gb']} GB",
        f"device      {'; '.join(devices) or 'none but the processor; PyTorch sees no CUDA device'}",
        "packages    " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in report["packages"].items()),
        "FFmpeg      " + ", ".join(f"{name} {version}" for name, version in report["ffmpeg"].items()),
        "",
        "extras",
    ]
    for extra, names in sorted(report["extras"].items()):
        missing = [name for name, version in names.items() if version is None]
        lines.append(f"  {extra:<14}" + (f"not installed: {', '.join(missing)}" if missing else "installed"))
    lines += ["", "teachers that need no download"]
    lines += [f"  {name:<24}{'yes' if there else 'no'}" for name, there in report["teachers"].items()]
    return [
        *lines,
        "",
        f"disk        {disk['free_gb']} GB free, write {disk['write_mb_per_s']} MB/s, "
        f"read {disk['read_mb_per_s']} MB/s",
        f"decoder     {decode['frames_per_second']} frames/s ({decode['clip']})",
        "",
        "For a bug report:",
        "",
        report["paragraph"],
    ]
