"""Language models in GGUF files, run by llama.cpp through xllamacpp."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from primespark.core.extras import how_to_add
from primespark.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    MissingDependencyError,
    UnavailableError,
)
from primespark.inference.predictions import Completion

_MAGIC = b"GGUF"
_BAD_REQUEST = 400
_QUIET = -1


class ChatMessage(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class LlamaEngine:
    """A language model in memory; answers one conversation after another, whatever thread asks.

    Args:
        file: The GGUF file, with the template of its conversations inside.
        threads: More than one only on a machine of its own: llama.cpp's threads spin where they meet.
        context_tokens: Most tokens of a conversation and its answer together.

    Raises:
        MissingDependencyError: xllamacpp is not installed.
        IntegrityError: Code `bad_model`: no GGUF file, or one that llama.cpp does not load.
    """

    device = "cpu"

    def __init__(self, file: Path, threads: int = 1, context_tokens: int = 2048) -> None:
        xllamacpp = _import_xllamacpp()
        _check_magic(file)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.n_ctx = context_tokens
        parameters.n_parallel = 1
        parameters.n_threads_http = 1
        parameters.warmup = False
        parameters.ui = False
        parameters.verbosity = _QUIET
        # The library always listens on a port of loopback as well; without this key nobody gets anything from there.
        parameters.api_keys = [secrets.token_hex(32)]
        try:
            self._server: Any = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise IntegrityError(f"{file.name} is not loaded: {error}"[:300], code="bad_model") from None
        try:
            # Released before its own thread runs, as after a load that nobody used, the library's server hangs for ever
            # (xllamacpp 2026.10: three times of six). An answer also shows that the file has a template.
            self.complete([{"role": "user", "content": "."}], max_tokens=1)
        except (InvalidInputError, UnavailableError) as error:
            raise IntegrityError(f"{file.name} does not converse: {error.message}"[:300], code="bad_model") from None

    def complete(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        on_text: Callable[[str], bool] | None = None,
    ) -> Completion:
        """The model's next turn.

        Args:
            messages: The conversation, its last turn the user's.
            max_tokens: The answer is cut there, `finish_reason` is then `length`.
            temperature: 0 is the most probable answer, always the same.
            on_text: Called with each piece of the answer; one that returns False ends it, `finish_reason` is then
                `cancelled`. It must not raise.

        Raises:
            InvalidInputError: Code `bad_conversation`, or `context_too_long`.
            UnavailableError: Code `inference_failed`.
            ConflictError: Code `engine_closed`.
        """
        if self._server is None:
            raise ConflictError("the model is closed", code="engine_closed")
        answer = _Answer(on_text)
        request = {
            "messages": list(messages), "max_tokens": max_tokens, "temperature": temperature, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        try:
            self._server.handle_chat_completions(request, answer.take)
        except ValueError as error:
            raise InvalidInputError(str(error)[:300], code="bad_conversation") from None
        except RuntimeError as error:
            raise UnavailableError(f"the model did not answer: {error}"[:300], code="inference_failed") from None
        return answer.whole()

    def close(self) -> None:
        """Release the model; an answer under way ends as if it were open."""
        self._server = None


class _Answer:
    """An answer as it comes, chunk by chunk in OpenAI's form."""

    def __init__(self, on_text: Callable[[str], bool] | None) -> None:
        self._on_text = on_text
        self._pieces: list[str] = []
        self._usage: dict[str, int] = {}
        self._finish_reason = "cancelled"
        self._error: dict[str, Any] | None = None

    def take(self, chunk: dict[str, Any]) -> bool:
        """Note a chunk; true ends the answer, as xllamacpp has it."""
        self._error = chunk.get("error", self._error)
        self._usage = chunk.get("usage", self._usage)
        for choice in chunk.get("choices", ()):
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            piece = choice["delta"].get("content")
            if piece:
                self._pieces.append(piece)
                if self._on_text is not None and not self._on_text(piece):
                    return True
        return False

    def whole(self) -> Completion:
        if self._error is not None:
            message = str(self._error.get("message"))[:300]
            if self._error.get("code") == _BAD_REQUEST:
                raise InvalidInputError(message, remedy="send a shorter conversation", code="context_too_long")
            raise UnavailableError(f"the model did not answer: {message}", code="inference_failed")
        return {
            "text": "".join(self._pieces),
            "prompt_tokens": self._usage.get("prompt_tokens", 0),
            "completion_tokens": self._usage.get("completion_tokens", len(self._pieces)),
            "finish_reason": self._finish_reason,
        }


def _import_xllamacpp() -> Any:
    try:
        import xllamacpp
    except ImportError:
        raise MissingDependencyError("language models need xllamacpp", remedy=how_to_add("llm")) from None
    return xllamacpp


def _check_magic(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_MAGIC))
    except OSError as error:
        raise IntegrityError(f"{file.name} cannot be read: {error.strerror}", code="bad_model") from None
    if magic != _MAGIC:
        raise IntegrityError(f"{file.name} is not a GGUF file", code="bad_model")
