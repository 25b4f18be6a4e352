"""One visitor of a Streamlit server, without a browser: its websocket, its reruns, the bytes that they send.

    async with Visitor(origin) as visitor:
        run = await visitor.visit("samples", "evaluation=7")

What a browser adds to these times is drawing; what it asks for besides is the static files, once.
"""

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run of a page's script, as its visitor sees it."""

    milliseconds: float
    """From the request to the message that ends the script."""
    received: int
    """Bytes of the websocket frames between the two."""
    error: str | None
    """The first exception that the page shows."""
    texts: tuple[str, ...]
    """HTML blocks that were sent."""


class Visitor:
    """A session; pages are visited one after the other."""

    def __init__(self, origin: str):
        self.origin = origin
        self._socket: Any = None

    async def __aenter__(self) -> "Visitor":
        from websockets.asyncio.client import connect

        address = f"{self.origin.replace('http', 'ws', 1)}/_stcore/stream"
        self._socket = await connect(address, subprotocols=["streamlit"], origin=self.origin, max_size=None)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._socket.close()

    async def visit(self, page: str = "", query: str = "", timeout: float = 60.0) -> Run:
        """Run a page's script ("" is the first page). Raises TimeoutError when it does not end in time."""
        from streamlit.proto.BackMsg_pb2 import BackMsg
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        request = BackMsg()
        request.rerun_script.page_name = page
        request.rerun_script.query_string = query
        received, error, texts = 0, None, []
        began = time.perf_counter()
        await self._socket.send(request.SerializeToString())
        async with asyncio.timeout(timeout):
            while True:
                frame = await self._socket.recv()
                received += len(frame)
                message = ForwardMsg.FromString(frame)
                element = message.delta.new_element
                if element.WhichOneof("type") == "exception":
                    error = error or element.exception.message
                elif element.WhichOneof("type") == "html":
                    texts.append(element.html.body)
                if message.WhichOneof("type") == "script_finished":
                    break
        return Run(1000 * (time.perf_counter() - began), received, error, tuple(texts))
