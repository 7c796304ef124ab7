"""Enrolment, keys and epochs; keys of people."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from primespark.errors import AuthenticationError, ConflictError, InvalidInputError, NotFoundError, PrimeSparkError
from primespark.store import access, devices
from tests.integration.store.builders import enrol

HOUR = timedelta(hours=1)


def _token(engine: Engine, uses: int = 1, lifetime: timedelta = HOUR) -> str:
    with engine.begin() as connection:
        return devices.create_token(connection, uses, lifetime)


def _enrol(engine: Engine, token: str, device_id: str = "edge-1") -> devices.Enrolment:
    with engine.begin() as connection:
        return devices.enrol(connection, token, device_id, {"cpu": 4}, {"primespark": "1"})


def _authenticate(engine: Engine, key: str) -> str | None:
    with engine.begin() as connection:
        return devices.authenticate(connection, key)


def test_a_token_gives_a_key_once(store_engine: Engine) -> None:
    token = _token(store_engine)
    enrolment = _enrol(store_engine, token)
    assert enrolment.epoch == 1
    assert _authenticate(store_engine, enrolment.key) == "edge-1"
    for device_id in ("edge-1", "edge-2"):
        with pytest.raises(AuthenticationError) as caught:
            _enrol(store_engine, token, device_id)
        assert caught.value.code == "bad_token"
    with store_engine.begin() as connection:
        (row,) = devices.list_devices(connection)
        assert row == devices.find(connection, "edge-1")
        stored = connection.execute(
            text("SELECT d::text || t::text FROM sync.device d, sync.enrolment_token t")
        ).scalar_one()
    assert (row.capabilities, row.versions, row.epoch) == ({"cpu": 4}, {"primespark": "1"}, 1)
    assert row.last_seen_at is not None
    assert enrolment.key not in stored
    assert token not in stored


def test_a_lost_answer_is_given_again_for_no_further_use(store_engine: Engine) -> None:
    token = _token(store_engine, uses=2)
    lost = _enrol(store_engine, token)
    again = _enrol(store_engine, token)
    assert (lost.epoch, again.epoch) == (1, 2)
    assert _authenticate(store_engine, lost.key) is None
    assert _authenticate(store_engine, again.key) == "edge-1"
    # It has shown its key now, so it is a device that exists.
    with pytest.raises(ConflictError) as caught:
        _enrol(store_engine, token)
    assert caught.value.code == "device_exists"
    assert _enrol(store_engine, token, "edge-2").epoch == 1
    with pytest.raises(AuthenticationError):
        _enrol(store_engine, token, "edge-3")


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(days=-2)])
def test_an_expired_token_is_refused(store_engine: Engine, lifetime: timedelta) -> None:
    with pytest.raises(AuthenticationError) as caught:
        _enrol(store_engine, _token(store_engine, lifetime=lifetime))
    assert caught.value.code == "bad_token"


def test_a_device_that_exists_needs_to_be_forgotten_first(store_engine: Engine) -> None:
    first = _enrol(store_engine, _token(store_engine))
    other = _token(store_engine)
    with pytest.raises(ConflictError) as caught:
        _enrol(store_engine, other)
    assert caught.value.code == "device_exists"
    with store_engine.begin() as connection:
        devices.forget(connection, "edge-1")
        assert devices.list_devices(connection) == []
    assert _authenticate(store_engine, first.key) is None
    assert _enrol(store_engine, other).epoch == 2, "the refusal cost the token a use"


def test_a_forgotten_device_does_not_come_back_with_its_old_token(store_engine: Engine) -> None:
    token = _token(store_engine)
    _enrol(store_engine, token)
    with store_engine.begin() as connection:
        devices.forget(connection, "edge-1")
    with pytest.raises(AuthenticationError):
        _enrol(store_engine, token)


def test_a_new_key_ends_the_old_one(store_engine: Engine) -> None:
    old = _enrol(store_engine, _token(store_engine)).key
    with store_engine.begin() as connection:
        new = devices.rotate(connection, "edge-1")
    assert _authenticate(store_engine, old) is None
    assert _authenticate(store_engine, new) == "edge-1"


def test_an_unknown_device_is_not_found(store_engine: Engine) -> None:
    for act in (devices.find, devices.forget, devices.rotate, devices.begin_epoch):
        with pytest.raises(NotFoundError), store_engine.begin() as connection:
            act(connection, "nobody")


def test_a_tokens_last_use_goes_to_one_of_many(store_engine: Engine) -> None:
    token = _token(store_engine, uses=2)
    together = threading.Barrier(6)

    def attempt(number: int) -> str:
        try:
            with store_engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                together.wait()
                devices.enrol(connection, token, f"edge-{number}", {}, {})
                connection.commit()
        except PrimeSparkError as error:
            return error.code
        return "enrolled"

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(attempt, range(6))) == ["bad_token"] * 4 + ["enrolled"] * 2


def test_one_id_goes_to_one_of_two_tokens(store_engine: Engine) -> None:
    tokens = [_token(store_engine) for _ in range(4)]
    together = threading.Barrier(4)

    def attempt(token: str) -> str:
        together.wait()
        try:
            _enrol(store_engine, token)
        except PrimeSparkError as error:
            return error.code
        return "enrolled"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(attempt, tokens)) == ["device_exists"] * 3 + ["enrolled"]


def test_being_seen_is_noted_now_and_then_and_never_waits(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        key = enrol(connection)
    _authenticate(store_engine, key)
    with store_engine.begin() as connection:
        seen = devices.find(connection, "edge-1").last_seen_at
    _authenticate(store_engine, key)
    with store_engine.begin() as connection:
        assert devices.find(connection, "edge-1").last_seen_at == seen
        connection.execute(text("UPDATE sync.device SET last_seen_at = last_seen_at - interval '1 minute'"))
    with store_engine.begin() as holder:
        holder.execute(text("SELECT 1 FROM sync.device FOR UPDATE"))
        assert _authenticate(store_engine, key) == "edge-1"
    _authenticate(store_engine, key)
    with store_engine.begin() as connection:
        last = devices.find(connection, "edge-1").last_seen_at
    assert last is not None
    assert seen is not None
    assert last >= seen


def test_keys_of_people(store_engine: Engine) -> None:
    with store_engine.begin() as connection:
        key = access.create_api_key(connection, "ann", "viewer")
        access.ensure_admin_key(connection, "first")
        access.ensure_admin_key(connection, "second")
        assert access.find_api_key(connection, key) == ("ann", "viewer")
        assert access.find_api_key(connection, "second") == ("admin", "admin")
        assert access.find_api_key(connection, "first") is None
        with pytest.raises(ConflictError):
            access.create_api_key(connection, "ann", "admin")
        with pytest.raises(InvalidInputError):
            access.create_api_key(connection, "bob", "root")
