"""A version comes into service step by step, beside the one that serves; what speaks against it takes it back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from edge_agent.inference_service import Given, Inference, InferenceService
from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import SigningKey
from primespark.core.settings import InferenceSettings
from primespark.core.slot_settings import CanarySettings, ShadowSettings, SlotSettings, TrialSettings
from primespark.inference.images import decode_image
from primespark.inference.models import InputKind
from tests.integration.edge_agent.device import Device, running_device, until
from tests.integration.edge_agent.digits import Version, digit_png
from tests.integration.edge_agent.gate import GateOracle, RunningGate
from tests.integration.edge_agent.odd_models import Oddity, make_odd_version, reader, sign
from tests.integration.edge_agent.test_deployment import desire, reported, serves

# Long enough that requests end the phases, on the busiest machine.
BY_REQUESTS = SlotSettings(
    shadow=ShadowSettings(share=1.0, requests=10, max_s=60),
    canary=CanarySettings(share=0.5, requests=10, max_s=60),
    max_latency_ratio=20,
)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.load_or_create(tmp_path_factory.mktemp("key") / "signing.key")


@pytest.fixture
def oracle(gate: RunningGate, key: SigningKey) -> GateOracle:
    gate.oracle = GateOracle(key)
    return gate.oracle


def want(oracle: GateOracle, version: Version) -> None:
    version.leave_in(oracle)
    desire(oracle, {"digits": version.pointer})


async def ask(service: InferenceService, index: int) -> Inference:
    decode = partial(decode_image, digit_png(index), 10_000)
    return await service.answer(Given(InputKind.IMAGE, decode), "digits", None)


@contextlib.asynccontextmanager
async def asked_all_the_time(device: Device) -> AsyncIterator[list[Inference]]:
    """What is answered to somebody who asks again as soon as there is an answer."""
    service, answers = InferenceService(device.slots, InferenceSettings()), list[Inference]()

    async def asking() -> None:
        while True:
            answers.append(await ask(service, len(answers) % 100))
            await asyncio.sleep(0.002)  # the pace of somebody who asks

    task = asyncio.create_task(asking())
    try:
        yield answers
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        service.close()


def states(oracle: GateOracle, seen: list[str]) -> Callable[[], bool]:
    """Collects the states that are reported, until the last is live again."""

    def look() -> bool:
        state = reported(oracle).get("state")
        if state is not None and (not seen or seen[-1] != state):
            seen.append(state)
        return len(seen) > 1 and seen[-1] == "live"

    return look


async def test_a_version_goes_through_shadow_and_canary(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    async with running_device(tmp_path, gate.url, models=BY_REQUESTS) as device:
        want(oracle, make_odd_version(1, key))
        await until(lambda: reported(oracle).get("state") == "live")
        since = reported(oracle)["since"]
        async with asked_all_the_time(device) as answers:
            want(oracle, make_odd_version(2, key))
            await until(lambda: reported(oracle).get("state") == "shadow")
            assert (reported(oracle)["version"], reported(oracle)["candidate"]) == (1, 2)
            assert reported(oracle)["since"] == since
            await until(lambda: reported(oracle).get("state") == "canary")
            assert reported(oracle)["version"] == 1
            await until(lambda: reported(oracle).get("version") == 2, 30)
            first = len(answers)
            await until(lambda: len(answers) > first + 10)
        assert "candidate" not in reported(oracle)
        assert "error" not in reported(oracle)
        versions = [answer.model_version for answer in answers]
        last_of_live = max(place for place, version in enumerate(versions) if version == 1)
        # In canary both answered, each under its own digest.
        assert 2 in versions[:last_of_live]
        assert {(answer.model_version, answer.model_digest) for answer in answers} == {
            (number, sha256_hex(reader(Oddity.NONE, number))) for number in (1, 2)
        }
        assert versions[-10:] == [2] * 10


async def test_without_requests_the_time_lets_a_version_on(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    phases = SlotSettings(shadow=ShadowSettings(max_s=0.3), canary=CanarySettings(max_s=0.3))
    async with running_device(tmp_path, gate.url, models=phases) as device:
        want(oracle, make_odd_version(1, key))
        await until(lambda: serves(device) == 1)
        want(oracle, make_odd_version(2, key))
        seen: list[str] = ["live"]
        await until(states(oracle, seen))
        await until(lambda: serves(device) == 2)


@pytest.mark.parametrize(
    ("oddity", "settings", "code"),
    [
        (Oddity.WORSE, BY_REQUESTS, "candidate_disagrees"),
        (Oddity.FAILING, BY_REQUESTS, "candidate_failed"),
        (Oddity.SLOW, BY_REQUESTS, "candidate_slower"),
        # Without a shadow the canary finds it out.
        (Oddity.WORSE, BY_REQUESTS.model_copy(update={"shadow": ShadowSettings(requests=0)}), "candidate_disagrees"),
        (Oddity.FAILING, BY_REQUESTS.model_copy(update={"shadow": ShadowSettings(requests=0)}), "candidate_failed"),
        (Oddity.HUGE, BY_REQUESTS, "model_too_large"),
        (Oddity.ENDLESS, BY_REQUESTS.model_copy(update={"trial": TrialSettings(timeout_s=3)}), "model_too_slow"),
    ],
)  # fmt: skip
async def test_a_bad_version_is_taken_back_with_its_reason(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path, oddity: Oddity, settings: SlotSettings,
    code: str,
) -> None:  # fmt: skip
    async with running_device(tmp_path, gate.url, models=settings) as device:
        want(oracle, make_odd_version(1, key))
        await until(lambda: serves(device) == 1)
        async with asked_all_the_time(device) as answers:
            want(oracle, make_odd_version(2, key, oddity))
            await until(lambda: reported(oracle).get("error"), 40)
            told, count = reported(oracle), len(answers)
            await until(lambda: len(answers) > count + 20)
        assert told["error"] == code
        assert (told["version"], told["state"], told["candidate"]) == (1, "live", 2)
        assert {answer.model_version for answer in answers[-10:]} == {1}
        assert len(list((tmp_path / "models" / "blobs").iterdir())) == 2
    # What was let in and taken back is not tried again after a start; a trial is, with the same end.
    kept = json.loads((tmp_path / "models" / "digits.json").read_bytes())
    is_remembered = told["error"].startswith("candidate_")
    assert kept.get("refused", {}).get("code") == (told["error"] if is_remembered else None)
    assert "attempt" not in kept
    async with running_device(tmp_path, gate.url, models=settings) as device:
        await until(lambda: serves(device) == 1)
        await until(lambda: reported(oracle).get("error") == told["error"], 40)


async def test_a_version_that_was_taken_back_may_be_desired_again_after_it_was_withdrawn(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    good, bad = make_odd_version(1, key), make_odd_version(2, key, Oddity.WORSE)
    async with running_device(tmp_path, gate.url, models=BY_REQUESTS) as device:
        want(oracle, good)
        await until(lambda: serves(device) == 1)
        async with asked_all_the_time(device):
            want(oracle, bad)
            await until(lambda: reported(oracle).get("error") == "candidate_disagrees", 40)
        desire(oracle, {"digits": None})
        await until(lambda: reported(oracle) == {})
        # Nothing serves that it could be compared with, so its golden input decides.
        want(oracle, bad)
        await until(lambda: serves(device) == 2)


async def test_what_is_desired_meanwhile_replaces_what_is_on_its_way(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    endless = BY_REQUESTS.model_copy(update={"shadow": ShadowSettings(max_s=3600)})
    async with running_device(tmp_path, gate.url, models=endless) as device:
        first = make_odd_version(1, key)
        want(oracle, first)
        await until(lambda: serves(device) == 1)
        want(oracle, make_odd_version(2, key))
        await until(lambda: reported(oracle).get("state") == "shadow")
        want(oracle, make_odd_version(3, key))
        await until(lambda: reported(oracle).get("candidate") == 3 and reported(oracle)["state"] == "shadow")
        desire(oracle, {"digits": first.pointer})
        await until(lambda: reported(oracle).get("state") == "live" and "candidate" not in reported(oracle))
        assert serves(device) == 1
        slot = device.slots.get("digits")
        assert slot is not None
        assert slot.model is slot.model.current
        desire(oracle, {"digits": None})
        await until(lambda: reported(oracle) == {})
        assert serves(device) == 0


async def test_a_version_of_another_type_does_not_take_a_name_in_service(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    async with running_device(tmp_path, gate.url) as device:
        want(oracle, make_odd_version(1, key))
        await until(lambda: serves(device) == 1)
        onnx = reader(Oddity.NONE, 2)
        want(oracle, sign(2, key, onnx, model_type="tabular", golden=None))
        await until(lambda: reported(oracle).get("error") == "other_model_type")
        assert serves(device) == 1


async def test_a_lower_rollback_counter_never_comes_back(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    old, new = (make_odd_version(number, key, rollback_counter=number) for number in (1, 2))
    async with running_device(tmp_path, gate.url) as device:
        for version in (old, new):
            want(oracle, version)
            await until(lambda version=version: serves(device) == version.version)  # type: ignore[misc]
        desire(oracle, {"digits": old.pointer})
        await until(lambda: reported(oracle).get("error") == "rolled_back_version")
        assert serves(device) == 2
        # Nor by way of nothing, nor after a start.
        desire(oracle, {"digits": None})
        await until(lambda: reported(oracle) == {})
    async with running_device(tmp_path, gate.url) as device:
        desire(oracle, {"digits": old.pointer})
        await until(lambda: reported(oracle).get("error") == "rolled_back_version")
        assert serves(device) == 0
        # Who holds the key signs the old file anew.
        want(oracle, sign(3, key, old.onnx, rollback_counter=2))
        await until(lambda: reported(oracle).get("version") == 3)
        assert reported(oracle)["digest"] == sha256_hex(old.onnx)


async def test_equal_counters_leave_the_way_back_open(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    old, new = (make_odd_version(number, key, rollback_counter=7) for number in (1, 2))
    async with running_device(tmp_path, gate.url) as device:
        for version in (old, new, old):
            want(oracle, version)
            await until(lambda version=version: serves(device) == version.version)  # type: ignore[misc]


async def test_a_download_goes_on_where_it_broke_off(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    version = make_odd_version(1, key)
    size = len(version.onnx)
    version.leave_in(oracle)
    # The manifest comes whole, the file in three pieces.
    oracle.blob_cuts.extend([10**9, 1000, 1500])
    async with running_device(tmp_path, gate.url) as device:
        desire(oracle, {"digits": version.pointer})
        await until(lambda: serves(device) == 1)
    assert size > 2500
    assert oracle.blob_ranges == [None, None, "bytes=1000-", "bytes=2500-"]


async def test_a_process_that_ends_in_the_middle_again_and_again_gives_a_version_up(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    version = make_odd_version(2, key)
    async with running_device(tmp_path, gate.url) as device:
        want(oracle, make_odd_version(1, key))
        await until(lambda: serves(device) == 1)
    path = tmp_path / "models" / "digits.json"
    kept = json.loads(path.read_bytes())
    for count, expected in ((2, None), (3, "model_crashed")):
        # As three kills leave it, see test_slot_kill.py.
        kept["attempt"] = {"manifest": version.pointer["manifest"], "count": count}
        path.write_text(json.dumps(kept))
        async with running_device(tmp_path, gate.url) as device:
            want(oracle, version)
            if expected is None:
                await until(lambda: serves(device) == 2)
                assert "attempt" not in json.loads(path.read_bytes())
                want(oracle, make_odd_version(1, key))
                await until(lambda: serves(device) == 1)
                kept = json.loads(path.read_bytes())
            else:
                await until(lambda: reported(oracle).get("error") == expected)  # noqa: B023 (awaited in the loop)
                assert serves(device) == 1


async def test_the_end_of_a_device_in_the_middle_of_a_phase_leaves_the_live_version_and_no_process(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    endless = BY_REQUESTS.model_copy(update={"shadow": ShadowSettings(max_s=3600)})
    async with running_device(tmp_path, gate.url, models=endless) as device:
        want(oracle, make_odd_version(1, key))
        await until(lambda: serves(device) == 1)
        want(oracle, make_odd_version(2, key))
        await until(lambda: reported(oracle).get("state") == "shadow")
    kept = json.loads((tmp_path / "models" / "digits.json").read_bytes())
    assert "attempt" not in kept
    assert kept["artifact"] == sha256_hex(reader(Oddity.NONE, 1))
    assert not any("trial_child" in " ".join(child.cmdline()) for child in psutil.Process().children())
    async with running_device(tmp_path, "http://127.0.0.1:9") as device:
        await until(lambda: serves(device) == 1)
