"""Python processes whose imports are done: forked from a server that has imported the modules already.

Most of what a test's `python -m avdistill ...` costs are imports. A process of this module is one of its own in all
else: a child of the test's, with its own descriptors, environment, folder, process group, limits, signals and exit
code. What a fresh interpreter does is tested where `subprocess` starts it; so are the processes that such a process
starts itself.

python warm_python.py DESCRIPTOR MODULE ...
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Self

AVAILABLE = sys.platform == "linux"
_PR_SET_CHILD_SUBREAPER = 36
_MOST_BYTES, _MOST_DESCRIPTORS = 1 << 17, 16


class WarmPython:
    """A server, started with the first process; a context manager."""

    def __init__(self, *modules: str) -> None:
        self._modules, self._lock = modules, threading.Lock()
        self._channel: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._channel is not None:
            self._channel.close()
            self._server.wait()

    def popen(self, words: list[str], **options: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` of `[sys.executable, "-c" | "-m" | script, ...]`."""
        return _Process(self, words, **options) if AVAILABLE else subprocess.Popen(words, **options)

    def run(self, words: list[str], *, timeout: float | None = None, check: bool = False, **options: Any) -> Any:
        """`subprocess.run` of the same, with both outputs captured."""
        with self.popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(words, process.returncode, out, err)
        if check:
            done.check_returncode()
        return done

    def fork(self, request: dict[str, Any], descriptors: list[int]) -> int:
        """Start a process; returns its id."""
        with self._lock:
            if self._channel is None:
                self._start()
            assert self._channel is not None
            _adopt_orphans(True)
            try:
                socket.send_fds(self._channel, [pickle.dumps(request)], descriptors)
                pid = int(self._channel.recv(32))
                assert self._channel.recv(32) == b"adopted"
            finally:
                _adopt_orphans(False)
        return pid

    def _start(self) -> None:
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno()), *self._modules],
                pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, cwd="/", process_group=0,
            )  # fmt: skip


def _adopt_orphans(wanted: bool) -> None:
    """While it is wanted, a process whose parent has ended becomes a child of this one."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


class _Process(subprocess.Popen):
    """All but the start is `subprocess`'s own."""

    def __init__(self, server: WarmPython, words: list[str], **options: Any) -> None:
        self._server = server
        super().__init__(words, **options)

    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
        start_new_session, process_group,
    ):  # fmt: skip
        assert args[0] == sys.executable
        assert preexec_fn is None
        request = {
            "words": [os.fspath(word) for word in args[1:]],
            "env": dict(os.environ if env is None else env),
            "cwd": os.getcwd() if cwd is None else os.fspath(cwd),
            "process_group": 0 if start_new_session else process_group,
            "umask": os.umask(0o22),
            "descriptors": [0, 1, 2, *pass_fds],
        }
        os.umask(request["umask"])
        standard = [number if given == -1 else given for number, given in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            self.pid = self._server.fork(request, [*standard, *pass_fds])
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def serve(descriptor: int, modules: list[str]) -> list[str]:
    """Fork processes; returns in each of them the words that follow the interpreter's name. Ends with its parent."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    paths = os.environ.pop("PYTHONPATH").split(os.pathsep)
    for name in modules:
        import_module(name)
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    threads = {(task / "comm").read_text().strip() for task in tasks}
    assert threads <= {"jemalloc_bg_thd"}, "a thread would be missing after a fork"  # jemalloc minds forks itself
    gc.collect()
    gc.freeze()
    server = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, _MOST_BYTES, _MOST_DESCRIPTORS)
        if not message:
            os._exit(0)
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                server.close()
                return _settle(pickle.loads(message), descriptors, paths)
            server.send(str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        server.send(b"adopted")
        for each in descriptors:
            os.close(each)


def _settle(request: dict[str, Any], descriptors: list[int], paths: list[str]) -> list[str]:
    """Take on what `subprocess` gives a process; returns its words."""
    if request["process_group"] >= 0:
        os.setpgid(0, request["process_group"])
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *paths]
    away = [fcntl.fcntl(each, fcntl.F_DUPFD, 200) for each in descriptors]  # from the numbers that they will have
    for each in descriptors:
        os.close(each)
    for each, number in zip(away, request["descriptors"], strict=True):
        os.dup2(each, number)
        os.close(each)
    return request["words"]


def main() -> None:
    what, *sys.argv = serve(int(sys.argv[1]), sys.argv[2:])
    if what == "-c":
        program, sys.argv[0] = sys.argv[0], "-c"
        sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), vars(sys.modules["__main__"]))
    elif what == "-m":
        module, sys.argv[0] = sys.argv[0], "-m"
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv.insert(0, what)
        sys.path[0] = str(Path(what).resolve().parent)
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    main()
