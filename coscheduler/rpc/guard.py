"""The one interceptor: errors become statuses, and calls in flight are known to the shutdown."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import grpc

from coscheduler.rpc import status

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"  # generic for type checkers only
PREFIX = "/coscheduler.v1."
WATCHES = ("/coscheduler.v1.JobService/WatchJob", "/coscheduler.v1.GpuService/WatchGpu")
BUILDERS: dict[tuple[bool, bool], Callable[..., Handler]] = {  # by (request, response) streaming
    (False, False): grpc.unary_unary_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
}


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every method of coscheduler.v1; health and reflection pass untouched."""

    def __init__(self) -> None:
        self._in_flight: set[asyncio.Task[Any]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Called by grpc for each call; returns the handler to use."""
        handler = await continuation(handler_call_details)
        call = handler_call_details.method
        if handler is None or not call.startswith(PREFIX):
            return handler
        method = handler.unary_unary or handler.stream_unary or handler.unary_stream
        wrap = self._stream if handler.response_streaming else self._single
        build = BUILDERS[handler.request_streaming, handler.response_streaming]
        return build(wrap(method, call), handler.request_deserializer, handler.response_serializer)

    async def settle(self, timeout_ms: int) -> None:
        """Wait until no call that moves data or changes state is in flight, at most `timeout_ms`.

        Watches do not count: they may last as long as their jobs, or the daemon.
        """
        if self._in_flight:
            await asyncio.wait(set(self._in_flight), timeout=timeout_ms / 1000)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call is always served in a task")
        self._in_flight.add(task)
        try:
            yield
        finally:
            self._in_flight.discard(task)

    def _single(self, method: Any, call: str) -> Callable[..., Any]:
        async def guarded(request: Any, context: Any) -> Any:
            with self._counted():
                try:
                    return await method(request, context)
                except Exception as error:
                    await status.abort(context, error, call)

        return guarded

    def _stream(self, method: Any, call: str) -> Callable[..., Any]:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            with nullcontext() if call in WATCHES else self._counted():
                try:
                    async for message in method(request, context):
                        yield message
                except Exception as error:
                    await status.abort(context, error, call)

        return guarded
