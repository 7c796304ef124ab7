"""The installation of docs/hailo.md, line by line, with the double as the system's package: doctor and an inference."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from primespark.inference import catalog
from tests.doubles import hailo
from tests.doubles.hailo import Hef, Stream
from tests.e2e.system_python import install_system_package, make_system_python

ROOT = Path(__file__).parents[2]
PACKAGES = ("primespark", "edge_agent", "streams", "resources", "primespark_assets")
INFERENCE = """
import json, sys
from pathlib import Path
import hailo_platform, numpy
from hailo_platform._machine import MACHINE
from primespark.inference import catalog
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.onnx_engine import OnnxEngine

MACHINE.plug_in()
image = numpy.random.default_rng(1).integers(0, 256, (1, 300, 300, 3), numpy.uint8)
chip = HailoInferenceEngine(Path(sys.argv[1]), HailoDevice(MACHINE.root))
answered = dict(zip(chip.output_names, chip.run({chip.input_names[0]: image}), strict=True))
cpu = OnnxEngine(catalog.read_bytes(catalog.find("coco-ssd")))
expected = dict(zip(cpu.output_names, cpu.run({cpu.input_names[0]: image}), strict=True))
print(json.dumps({
    "device": chip.device, "numpy": numpy.__version__, "package": hailo_platform.__file__,
    "same": {name: numpy.array_equal(value, expected[name]) for name, value in answered.items()},
}))
"""


def documented_commands() -> Iterator[str]:
    """The lines of the page's installation, without the vendor's package, which is here already."""
    page = (ROOT / "docs" / "hailo.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Install\n.*?\n((?:    [^\n]*\n)+)", page, re.DOTALL)
    return (line.strip() for line in block.splitlines() if not line.strip().startswith("sudo apt install"))


def checkout(folder: Path) -> Path:
    """What the installation needs of a checkout, so that nothing is built into this one."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    (folder / "requirements").symlink_to(ROOT / "requirements")
    return folder


def coco_ssd_hef() -> bytes:
    """The bundled detector as a HEF of the double, its two raw heads as outputs."""
    scores, boxes = "Postprocessor/Slice:0", "Postprocessor/ExpandDims_1:0"
    outputs = (Stream(boxes, (1917, 1, 4), boxes, "FLOAT32"), Stream(scores, (1917, 90), scores, "FLOAT32"))
    image = Stream("image_tensor:0", (300, 300, 3), "image_tensor:0")
    return Hef("coco-ssd", (image,), outputs, onnx=catalog.read_bytes(catalog.find("coco-ssd"))).to_bytes()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that goes at once: pytest would keep the environments of three runs, 0.3 GB each."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_the_documented_installation_runs_a_model_on_the_system_package(place: Path) -> None:
    system = make_system_python(place / "system")
    install_system_package(system, Path(hailo.__file__).parent / "hailo_platform")
    folder = checkout(place / "checkout")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {
        "PATH": f"{system.parent}:{os.environ['PATH']}", "PRIMESPARK_HOME": str(place / "home"),
        "HAILO_DOUBLE_ROOT": str(place / "machine"), "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # fmt: skip

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    *installing, doctor = documented_commands()
    assert len(installing) == 3
    for command in installing:
        run(*command.split())
    checks = {check["name"]: check for check in json.loads(run(*doctor.split(), "--json"))["checks"]}
    assert checks["extra edge"]["state"] == "ok"
    assert checks["hailo package"] == {
        "name": "hailo package", "state": "ok", "found": "hailo_platform 4.23.0, numpy 1.26.4", "remedy": "",
    }  # fmt: skip

    (place / "model.hef").write_bytes(coco_ssd_hef())
    listed = json.loads(run(".venv/bin/primespark", "models", "hailo", "--folder", str(place), "--json"))
    assert [(item["name"], item["network"], item["runs_on"]) for item in listed["items"]] == [
        ("model", "coco-ssd", ["hailo8"])
    ]
    told = json.loads(run(".venv/bin/python", "-I", "-c", INFERENCE, str(place / "model.hef")))
    assert told["same"] == {"Postprocessor/Slice:0": True, "Postprocessor/ExpandDims_1:0": True}
    assert (told["device"], told["numpy"]) == ("hailo8", "1.26.4")
    assert Path(told["package"]).is_relative_to(place / "system")


# numpy 1 has no wheel for later Pythons, and a test that is skipped would be a gap.
test_the_documented_installation_runs_a_model_on_the_system_package.__test__ = (  # type: ignore[attr-defined]
    sys.version_info < (3, 13)
)
