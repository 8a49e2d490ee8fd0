"""Who may ask, and what every response carries."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from avdistill.cli import main
from avdistill.errors import ConfigError
from avdistill.server.config import Limits, ServeConfig, new_token
from avdistill.server.media import Workspace
from support.live_server import live

TOKEN = "0123456789abcdef"


def test_every_response_carries_the_policy_and_no_cors(server):
    for path in ("/", "/nothing", "/clip/train_1", "/media/thumbnail/train_1", "/static/style.css"):
        headers = server.ask(path, Origin="http://evil.example").headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_another_host_name_is_refused_on_loopback(server, host):
    assert server.ask("/", Host=host).status == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:8080"])
def test_loopback_names_are_accepted(server, host):
    assert server.ask("/", Host=host).status == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}]
)
def test_other_sites_change_nothing(server, headers):
    assert server.ask("/predict", "POST", b"", **headers).status == 403


def test_a_token_is_demanded_and_travels_as_a_cookie(served):
    config = ServeConfig(dataset=served[0].folder, token=TOKEN)
    with live(config) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "avdistill_token=wrong"}):
            for path in ("/", "/media/thumbnail/train_1", "/static/style.css", "/?token=wrong"):
                assert server.ask(path, **headers).status == 401
        assert server.ask("/", Authorization=f"Bearer {TOKEN}").status == 200
        first = server.ask(f"/?split=test&token={TOKEN}")
        assert (first.status, first.headers["location"]) == (303, "/?split=test")
        cookie = first.headers["set-cookie"]
        assert "httponly" in cookie.lower()
        assert "samesite=strict" in cookie.lower()
        assert server.ask("/", Cookie=cookie.partition(";")[0]).status == 200
        assert server.ask(f"//evil.example/?token={TOKEN}").headers["location"] == "/evil.example/"


def test_no_other_address_without_a_token(served):
    with pytest.raises(ConfigError, match="token: expected one"):
        ServeConfig(dataset=served[0].folder, host="0.0.0.0")
    assert ServeConfig(dataset=served[0].folder, host="0.0.0.0", token=new_token()).token
    for wrong in ("short", "with spaces in it!"):
        with pytest.raises(ConfigError, match="token: expected at least 16"):
            ServeConfig(dataset=served[0].folder, token=wrong)
    with pytest.raises(ConfigError, match="expected a dataset"):
        ServeConfig()


def test_slow_and_silent_clients_are_cut_off(served):
    limits = replace(Limits(), header_seconds=0.3, stalled_seconds=0.3)
    with live(ServeConfig(dataset=served[0].folder, limits=limits)) as server:
        for first, sent in (
            (b"", b""),
            (b"", b"GET / HT"),
            (b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HT"),
        ):
            with socket.create_connection(("127.0.0.1", server.port)) as client, _ended():
                client.settimeout(5)  # less than without these limits
                if first:
                    client.sendall(first)
                    assert client.recv(65536).startswith(b"HTTP/1.1 200")
                client.sendall(sent)
                while client.recv(65536):
                    pass
        assert server.ask("/").status == 200


class _ended:  # noqa: N801
    """The connection ends, in whatever way."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return kind is not None and issubclass(kind, ConnectionError)


def test_garbage_is_answered_or_cut_off_and_the_server_lives(server):
    for sent in (b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
                 b"GET /clip/%ff%fe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"):  # fmt: skip
        with socket.create_connection(("127.0.0.1", server.port)) as client, _ended():
            client.settimeout(20)
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    assert server.ask("/").status == 200


def test_folders_of_killed_servers_are_removed():
    killed = Workspace()
    killed._lock.close()  # as the end of its process does
    running = Workspace()
    again = Workspace()
    assert not killed.folder.exists()
    assert running.folder.exists()
    for each in (running, again):
        each.close()
        assert not each.folder.exists()


def test_calls_that_cannot_be_used_are_one_line(served, tmp_path, capsys):
    dataset = str(served[0].folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, code, message in (
            ([], 2, "expected a dataset, or --run RUN"),
            ([str(tmp_path)], 1, "no dataset here"),
            (["--run", str(tmp_path / "none")], 1, "expected a run, found no such folder"),
            ([dataset, "--port", port], 2, "cannot listen there"),
            ([dataset, "--host", "0.0.0.0", "--token", "short"], 2, "token: expected at least 16"),
            ([dataset, "--index", str(tmp_path)], 2, "no index here"),
        ):
            free = [] if "--port" in words else ["--port", "0"]
            assert main(["serve", *words, *free]) == code
            assert message in capsys.readouterr().err
