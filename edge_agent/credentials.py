"""Keys in the device's folder: its own for the cloud, people's for its API, and the token it enrols with."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from primespark.core.identifiers import sha256_hex
from primespark.core.logging import get_logger
from primespark.core.paths import write_private
from primespark.core.settings import EdgeSettings
from primespark.core.web import Principal, Role
from primespark.errors import AuthenticationError, ConfigurationError
from primespark.sync.records import EnrolResponse, Limits

# What we make has 43 characters; a file this short was cut off, or made by hand.
_SHORTEST_KEY = 16

log = get_logger(__name__)


class Credentials(BaseModel):
    """What enrolment gave; kept apart from the database, so that a lost database can ask for a new epoch."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    device_id: str
    key: str
    trust: dict[str, str]
    limits: Limits
    token_sha256: str

    @classmethod
    def of(cls, answer: EnrolResponse, token: str) -> Credentials:
        """What the gate answered to `token`."""
        return cls(
            device_id=answer.replica_id,
            key=answer.key,
            trust={key.key_id: key.ed25519_public for key in answer.trust},
            limits=answer.limits,
            token_sha256=sha256_hex(token.encode()),
        )

    def trusted_keys(self) -> dict[str, bytes]:
        """Raw Ed25519 public keys by key id."""
        keys = {}
        for key_id, encoded in self.trust.items():
            with contextlib.suppress(binascii.Error, ValueError):
                keys[key_id] = base64.b64decode(encoded, validate=True)
        return keys


class CredentialFiles:
    """The files of one device.

    Args:
        folder: The device's state.
        settings: Its id, and the token it was given, if any.
    """

    def __init__(self, folder: Path, settings: EdgeSettings) -> None:
        self._key_file = folder / "device.key"
        self.token_file = folder / "enrolment.token"
        self._settings = settings
        self.current = self._load()
        if self.current is not None and self._token_in_file_was_used():
            self.token_file.unlink()  # a kill came between enrolment and here

    def token(self) -> str | None:
        """A token that was not used yet."""
        given = self._settings.enrolment_token
        for token in (given.get_secret_value() if given else None, self._read_token_file()):
            if token and (self.current is None or sha256_hex(token.encode()) != self.current.token_sha256):
                return token
        return None

    def save(self, credentials: Credentials) -> None:
        """Keep what enrolment gave; its token is no longer needed."""
        write_private(self._key_file, credentials.model_dump_json().encode())
        self.current = credentials
        if self._token_in_file_was_used():
            self.token_file.unlink()

    def _load(self) -> Credentials | None:
        try:
            loaded = Credentials.model_validate_json(self._key_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            cause = error.strerror if isinstance(error, OSError) else "not the file that enrolment wrote"
            raise ConfigurationError(
                f"{self._key_file}: {cause}", remedy="restore it, or remove it and enrol with a new token"
            ) from None
        if loaded.device_id != self._settings.device_id:
            raise ConfigurationError(
                f"{self._key_file} is of {loaded.device_id}, this device is {self._settings.device_id}",
                remedy="give each device a state directory of its own",
            )
        return loaded

    def _read_token_file(self) -> str | None:
        try:
            return self.token_file.read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def _token_in_file_was_used(self) -> bool:
        token = self._read_token_file()
        return (
            token is not None and self.current is not None and sha256_hex(token.encode()) == self.current.token_sha256
        )


class LocalKey:
    """The key for people at the device, made at first start; its role is admin.

    Raises:
        ConfigurationError: The file holds no whole key.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "local.key"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32).encode())
            log.info("local_key_made", file=str(path))
        if not path.is_file():
            raise ConfigurationError(f"{path} is no file", remedy="remove it: a new one is made at the next start")
        key = path.read_bytes().strip()
        if len(key) < _SHORTEST_KEY:
            raise ConfigurationError(
                f"{path} holds no whole key", remedy="remove it: a new one is made at the next start"
            )
        self._sha256 = sha256_hex(key)

    async def authenticate(self, token: str) -> Principal:
        """Who holds `token`.

        Raises:
            AuthenticationError: Nobody.
        """
        if not hmac.compare_digest(sha256_hex(token.encode()), self._sha256):
            raise AuthenticationError("unknown key", remedy="use the key in local.key of the device's state folder")
        return Principal("local", Role.ADMIN)
