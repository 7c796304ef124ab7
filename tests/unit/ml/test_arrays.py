"""Arrays as blobs."""

from __future__ import annotations

import io
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from primespark.errors import IntegrityError
from primespark.ml.arrays import pack, unpack


@given(arrays(np.float32, array_shapes()), arrays(np.int64, array_shapes()))
def test_what_was_packed_comes_back(first: np.ndarray, second: np.ndarray) -> None:
    found = unpack(pack(first=first, second=second))
    assert sorted(found) == ["first", "second"]
    np.testing.assert_array_equal(found["first"], first)
    np.testing.assert_array_equal(found["second"], second)
    assert found["first"].dtype == np.float32


def test_the_same_arrays_give_the_same_bytes_at_another_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(5)
    before = pack(b=values, a=values)
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.0)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2_000_000_000.0))
    assert pack(a=values, b=values) == before


def test_objects_are_neither_written_nor_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "made"),))

    with pytest.raises(ValueError, match="Object arrays"):
        pack(evil=np.array([Evil()], dtype=object))
    file = io.BytesIO()
    np.savez(file, evil=np.array([Evil()], dtype=object))
    for data in (file.getvalue(), pickle.dumps(1), b"", b"PK\x03\x04"):
        with pytest.raises(IntegrityError) as raised:
            unpack(data)
        assert raised.value.code == "bad_arrays"
    assert not (tmp_path / "made").exists()
