"""Every error of Prime Spark, one tree.

    PrimeSparkError
    ├── TransientError                 the same request may succeed later; loops retry these and nothing else
    │   ├── UnavailableError           a dependency (store, broker, cloud, device) does not answer
    │   ├── OverloadedError            a bound was reached (queue full, too many requests)
    │   └── DeadlineExceededError      the caller's deadline passed before the work was done
    └── PermanentError                 the same request fails again
        ├── InvalidInputError          well formed, but not valid
        │   ├── MalformedError         not parseable, or its digest does not match
        │   ├── TooLargeError          over a stated limit
        │   └── UnsupportedMediaError  a content type or encoding that is not accepted
        ├── AuthenticationError        no credential, or an unknown one
        ├── AuthorizationError         a known credential without the right
        ├── NotFoundError              the named thing does not exist
        ├── GoneError                  what was asked for is no longer kept
        ├── ConflictError              a key used again for other content, or a wrong state
        ├── PreconditionError          If-Match does not hold
        ├── ConfigurationError         settings that cannot work
        ├── IntegrityError             stored or transferred bytes are not what was signed or promised
        └── MissingDependencyError     an optional package or program is not installed

Each carries `code` (stable snake_case, the same in problem+json, logs and metrics), `http_status`, `retryable`,
and, where the user can do something about it, `remedy`: one line naming the next step.
"""

from __future__ import annotations

from typing import ClassVar


class PrimeSparkError(Exception):
    """Base of all errors; `str()` is the cause in one line.

    Args:
        message: What was tried and what came of it, one line, no secrets.
        remedy: The next step for the user, one line; empty when there is none.
        code: A narrower code than the class's, listed in docs/errors.md.
        errors: Machine-readable parts, each with `loc` and `msg`.
        retry_after_s: Seconds after which a retry makes sense.
    """

    code: str = "internal"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        code: str | None = None,
        errors: list[dict[str, object]] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.errors = errors or []
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code


class TransientError(PrimeSparkError):
    """The same request may succeed later."""

    code = "transient"
    http_status = 503
    retryable = True


class UnavailableError(TransientError):
    """A dependency does not answer."""

    code = "unavailable"


class OverloadedError(TransientError):
    """A bound was reached; nothing was taken."""

    code = "overloaded"
    http_status = 429


class DeadlineExceededError(TransientError):
    """The caller's deadline passed before the work was done."""

    code = "deadline_exceeded"
    http_status = 504


class PermanentError(PrimeSparkError):
    """The same request fails again."""

    code = "permanent"
    http_status = 422


class InvalidInputError(PermanentError, ValueError):
    """Well formed, but not valid."""

    code = "invalid_input"


class MalformedError(InvalidInputError):
    """Not parseable, or its digest does not match."""

    code = "malformed"
    http_status = 400


class TooLargeError(InvalidInputError):
    """Over a stated limit."""

    code = "too_large"
    http_status = 413


class NotAcceptableError(InvalidInputError):
    """An answer in none of the formats the caller takes."""

    code = "not_acceptable"
    http_status = 406


class UnsupportedMediaError(InvalidInputError):
    """A content type or encoding that is not accepted."""

    code = "unsupported_media"
    http_status = 415


class AuthenticationError(PermanentError):
    """No credential, or an unknown one."""

    code = "unauthenticated"
    http_status = 401


class AuthorizationError(PermanentError):
    """A known credential without the right."""

    code = "forbidden"
    http_status = 403


class NotFoundError(PermanentError):
    """The named thing does not exist."""

    code = "not_found"
    http_status = 404


class GoneError(PermanentError):
    """What was asked for is no longer kept."""

    code = "gone"
    http_status = 410


class ConflictError(PermanentError):
    """A key used again for other content, or a wrong state."""

    code = "conflict"
    http_status = 409


class PreconditionError(PermanentError):
    """If-Match does not hold."""

    code = "precondition_failed"
    http_status = 412


class ConfigurationError(PermanentError):
    """Settings that cannot work."""

    code = "bad_configuration"
    http_status = 500


class IntegrityError(PermanentError):
    """Stored or transferred bytes are not what was signed or promised."""

    code = "integrity"


class MissingDependencyError(PermanentError, ImportError):
    """An optional package or program is not installed."""

    code = "missing_dependency"
    http_status = 501
