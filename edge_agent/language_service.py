"""The language model of a device: loaded when first asked, one conversation at a time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from primespark.core.logging import get_logger
from primespark.core.settings import LanguageSettings
from primespark.errors import DeadlineExceededError, IntegrityError, NotFoundError, OverloadedError, UnavailableError
from primespark.inference import catalog
from primespark.inference.llama_engine import ChatMessage, LlamaEngine
from primespark.inference.predictions import Completion

MAX_WAITING = 8
_FETCHED = "smollm2"

log = get_logger(__name__)


class LanguageService:
    """Answers conversations on a thread of its own.

    Args:
        settings: Which model, and its limits.
    """

    def __init__(self, settings: LanguageSettings) -> None:
        self._settings = settings
        self._engine: LlamaEngine | None = None
        self._waiting = 0
        self._closing = Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="language")

    @property
    def model(self) -> str | None:
        """Name of the model that answers; None while there is no file."""
        file = self._settings.file
        if file is not None:
            return file.stem
        return _FETCHED if catalog.FETCHABLE[_FETCHED].path.exists() else None

    def stop(self) -> None:
        """End the answers under way and begin no more; who asked is told."""
        self._closing.set()

    def close(self) -> None:
        """`stop`, and release the model."""
        self.stop()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._engine = None

    async def complete(self, messages: Sequence[ChatMessage], max_tokens: int | None, temperature: float) -> Completion:
        """The model's next turn, whole.

        Raises:
            NotFoundError: Code `unknown_model`: there is no model.
            DeadlineExceededError: It took too long.
            OverloadedError: Code `inference_busy`: too many wait.
            UnavailableError: Code `stopping`.
            InvalidInputError: The conversation.
        """
        async with contextlib.aclosing(self.stream(messages, max_tokens, temperature)) as answers:
            return [answer async for answer in answers if not isinstance(answer, str)][-1]

    async def stream(
        self, messages: Sequence[ChatMessage], max_tokens: int | None, temperature: float
    ) -> AsyncGenerator[str | Completion, None]:
        """The model's next turn in pieces as they come, at last the whole; who stops listening ends it.

        Raises:
            PrimeSparkError: As `complete`.
        """
        if self._waiting >= MAX_WAITING:
            raise OverloadedError("too many conversations wait", remedy="ask again later", code="inference_busy")
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        unwanted = Event()
        deadline = time.monotonic() + self._settings.answer_timeout_s

        def on_text(piece: str) -> bool:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            return not unwanted.is_set() and not self._closing.is_set() and time.monotonic() < deadline

        def answer() -> Completion:
            if self._closing.is_set():
                raise _stopping()
            engine = self._loaded()
            limit = min(max_tokens or self._settings.max_answer_tokens, self._settings.max_answer_tokens)
            return engine.complete(messages, max_tokens=limit, temperature=temperature, on_text=on_text)

        self._waiting += 1
        answering = loop.run_in_executor(self._executor, answer)
        answering.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            whole = await answering
            if self._closing.is_set() and whole["finish_reason"] == "cancelled":
                raise _stopping()
            if whole["finish_reason"] == "cancelled":
                raise DeadlineExceededError(
                    f"no whole answer in {self._settings.answer_timeout_s:g} s", remedy="ask for fewer tokens"
                )
            yield whole
        finally:
            unwanted.set()
            answering.cancel()
            self._waiting -= 1

    def _loaded(self) -> LlamaEngine:
        """The model; only the one thread of the executor comes here."""
        if self._engine is None:
            settings = self._settings
            self._engine = LlamaEngine(_file(settings), settings.threads, settings.context_tokens)
            log.info("model_loaded", model=self.model)
        return self._engine


def _stopping() -> UnavailableError:
    return UnavailableError("the device is stopping", remedy="ask again when it is up", code="stopping")


def _file(settings: LanguageSettings) -> Path:
    if settings.file is not None:
        return settings.file
    fetched = catalog.FETCHABLE[_FETCHED]
    if not fetched.path.exists():
        raise NotFoundError(
            "no language model is here", remedy=f"primespark models fetch {_FETCHED}", code="unknown_model"
        )
    with fetched.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != fetched.sha256:
        raise IntegrityError(
            f"{fetched.path.name} has sha256 {digest[:16]}…",
            remedy=f"remove it, then primespark models fetch {_FETCHED}",
            code="bad_model",
        )
    return fetched.path
