"""Where the daemon listens, and where it refuses to."""

import os
import socket
import stat
from pathlib import Path

import pytest

from coscheduler.client import AsyncClient
from coscheduler.errors import InvalidInput, Refused
from coscheduler.rpc import listen
from coscheduler.rpc.server import open_front
from tests.rpc.fake_daemon import FakeDaemon
from tests.rpc.support import asynchronous, serving, settings_for


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:5000",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:99999999",
        "127.0.0.1:80 ",
        "127.0.0.2:5000",
        "[::]:5000",
        "[::1]:5000",
        "localhost:5000",
        "192.168.1.7:5000",
        "dns:///127.0.0.1:5000",
        "unix-abstract:name",
        "unix:relative.sock",
        "unix:/" + "x" * 107,
        "",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        listen.check(address)
    assert caught.value.reason == "LISTEN_REFUSED"
    assert caught.value.numbers["address"] == address


@asynchronous
async def test_refused_address_leaves_nothing_listening(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        await open_front(FakeDaemon(), settings_for(tmp_path, listen="0.0.0.0:0"))


@asynchronous
async def test_socket_is_private_in_a_private_folder_and_goes_with_the_server(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / "d.sock"
    before = os.umask(0)
    try:
        async with serving(tmp_path, listen=f"unix:{path}") as (_, front):
            assert front.address == f"unix:{path}"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert os.umask(0) == 0, "the umask must be as it was"
    finally:
        os.umask(before)
    assert not path.exists()


@asynchronous
async def test_tcp_on_request_with_the_real_port(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, listen="127.0.0.1:0") as (_, front),
        AsyncClient(front.address) as client,
    ):
        assert not front.address.endswith(":0")
        assert (await client.gpu()).device_name == "fake"


@asynchronous
async def test_stale_socket_is_removed(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "d.sock"))
    left.close()
    async with serving(tmp_path) as (_, front), AsyncClient(front.address) as client:
        assert (await client.gpu()).device == "cpu"


@asynchronous
async def test_socket_of_a_living_server_is_left_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, front), AsyncClient(front.address) as client:
        with pytest.raises(Refused) as caught:
            await open_front(FakeDaemon(), settings_for(tmp_path))
        assert caught.value.reason == "ADDRESS_IN_USE"
        assert (await client.gpu()).device == "cpu"


@asynchronous
async def test_port_of_a_living_server_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, listen="127.0.0.1:0") as (_, front):
        with pytest.raises(Refused) as caught:
            await open_front(FakeDaemon(), settings_for(tmp_path, listen=front.address))
    assert caught.value.reason == "ADDRESS_IN_USE"


@asynchronous
async def test_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d.sock").write_text("precious")
    with pytest.raises(Refused) as caught:
        await open_front(FakeDaemon(), settings_for(tmp_path))
    assert caught.value.reason == "LISTEN_PATH_TAKEN"
    assert (tmp_path / "d.sock").read_text() == "precious"


@asynchronous
async def test_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(Refused) as caught:
        await open_front(FakeDaemon(), settings_for(tmp_path, listen=f"unix:{shared}/d.sock"))
    assert caught.value.reason == "LISTEN_FOLDER_SHARED"
    assert caught.value.numbers["mode"] == "0o777"
