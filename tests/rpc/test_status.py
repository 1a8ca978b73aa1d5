"""Every kind of error crosses the wire and arrives as what it was."""

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from coscheduler import errors
from coscheduler.client import AsyncClient
from coscheduler.errors import CoschedulerError
from coscheduler.rpc import status
from coscheduler.v1 import gpu_pb2, gpu_pb2_grpc
from tests.rpc.support import asynchronous, serving

KINDS = [
    (errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Refused, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.LedgerRefusal, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.EngineFault, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.StoreFault, grpc.StatusCode.INTERNAL),
]


def test_every_kind_of_the_tree_has_a_code() -> None:
    def kinds(cls: type[CoschedulerError]) -> set[str]:
        return {cls.kind}.union(*(kinds(sub) for sub in cls.__subclasses__()))

    assert kinds(CoschedulerError) == set(status.CODES)


@pytest.mark.parametrize(("cls", "code"), KINDS)
@asynchronous
async def test_error_arrives_as_its_own_class_with_its_numbers(
    tmp_path: Path, cls: type[CoschedulerError], code: grpc.StatusCode
) -> None:
    async with serving(tmp_path) as (daemon, front), AsyncClient(front.address) as client:
        daemon.faults["gpu"] = cls("NOT_THERE", "4 GiB asked, 2 there", required_bytes=4, free=2)
        with pytest.raises(cls) as caught:
            await client.gpu()
        assert type(caught.value) is cls
        assert caught.value.reason == "NOT_THERE"
        assert caught.value.message == "4 GiB asked, 2 there"
        assert caught.value.numbers == {"required_bytes": "4", "free": "2"}

        daemon.faults["gpu"] = cls("NOT_THERE", "4 GiB asked, 2 there", required_bytes=4, free=2)
        raw = await raw_failure(front.address)
        assert raw.code() is code
        assert [detail.TypeName() for detail in details(raw)] == ["google.rpc.ErrorInfo"]


async def raw_failure(address: str) -> grpc.aio.AioRpcError:
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gpu_pb2_grpc.GpuServiceStub(channel).GetGpu(gpu_pb2.GetGpuRequest())
    return caught.value


def details(error: grpc.aio.AioRpcError) -> list[Any]:
    found: dict[Any, Any] = dict(error.trailing_metadata())
    return list(Status.FromString(found["grpc-status-details-bin"]).details)


@asynchronous
async def test_unexpected_error_becomes_internal_with_an_id_and_no_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as (daemon, front):
        daemon.faults["gpu"] = ZeroDivisionError("secret 42")
        with caplog.at_level(logging.ERROR):
            raw = await raw_failure(front.address)
    (detail,) = details(raw)
    info = ErrorInfo()
    assert detail.Unpack(info)
    assert raw.code() is grpc.StatusCode.INTERNAL
    assert info.reason == "INTERNAL"
    assert info.domain == "coscheduler"
    told = raw.details() or ""
    assert "secret" not in told
    assert "Traceback" not in told
    assert info.metadata["error_id"] in told
    assert info.metadata["error_id"] in caplog.text
    assert "ZeroDivisionError: secret 42" in caplog.text


def test_retry_time_is_also_given_as_retry_info() -> None:
    made = status.to_status(errors.Exhausted("QUEUE_FULL", "full", queue_max=2, retry_ms=1500))
    infos = [detail for detail in made.details if detail.Is(ErrorInfo.DESCRIPTOR)]
    retry = RetryInfo()
    assert len(infos) == 1
    assert made.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


@asynchronous
async def test_long_text_is_cut_and_still_arrives(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, front), AsyncClient(front.address) as client:
        numbers = {f"n{index}": "é" * 5000 for index in range(100)}
        daemon.faults["gpu"] = errors.EngineFault("MODEL_CORRUPT", "ж" * 100_000, **numbers)
        with pytest.raises(errors.EngineFault) as caught:
            await client.gpu()
    assert caught.value.reason == "MODEL_CORRUPT"
    assert caught.value.message.endswith("…")
    assert len(caught.value.message) == status.MESSAGE_CHARACTERS_MAX
    assert len(caught.value.numbers) == status.NUMBERS_MAX


def test_text_that_is_not_unicode_is_replaced() -> None:
    made = status.to_status(errors.InvalidInput("FILE", "no \udcff", path="\udcff.wav"))
    assert made.message == "no ?"


@asynchronous
async def test_no_server_is_unreachable_with_the_address(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'nobody.sock'}"
    async with AsyncClient(address) as client:
        with pytest.raises(errors.Unavailable) as caught:
            await client.gpu()
    assert caught.value.reason == "SERVER_UNREACHABLE"
    assert caught.value.numbers == {"address": address}
