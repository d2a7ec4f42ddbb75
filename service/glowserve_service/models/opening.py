"""The opening of a model's third graph, when a call first needs it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from glowserve.runtime.errors import BundleError
from glowserve.runtime.explanation import Explainer
from glowserve.runtime.repository import EXPLAIN, Bundle
from glowserve_service.models.daemon_threads import call_in_daemon_thread
from glowserve_service.models.loading import public_sentence


class Opening:
    """Opens an explainer in a thread beside the event loop.

    One thread at a time, however many calls wait for it. A call that is cancelled leaves it to the others. After a
    failure the next call tries again.

    Args:
        explainer: what is opened.
        bundle: its bundle.
        seconds: how long a call waits for it; 0 for any time.
    """

    def __init__(self, explainer: Explainer, bundle: Bundle, seconds: float) -> None:
        self._explainer, self._bundle, self._seconds = explainer, bundle, seconds
        self._thread: Future[object] | None = None

    async def wait(self) -> None:
        """Returns when the explainer is open.

        Raises:
            MissingFileError: the bundle was exported without a file that this takes.
            BundleError: a file is damaged, or the opening takes too long. The message shows no path.
            DeviceError: the device can no longer be used.
        """
        if self._thread is None or (self._thread.done() and self._thread.exception()):
            self._thread = call_in_daemon_thread(self._explainer.open)
        try:
            async with asyncio.timeout(self._seconds or None) as limit:
                await asyncio.wrap_future(self._thread)
        except BundleError as error:
            raise BundleError(public_sentence(str(error), self._bundle.path)) from None
        except TimeoutError:
            if not limit.expired():  # it is the file system's
                raise
            manifest = self._bundle.manifest
            raise BundleError(
                f"{EXPLAIN} of {manifest.model} version {manifest.version} has not opened in load_timeout_seconds, "
                f"{self._seconds:g} s"
            ) from None
