"""Event files, byte by byte, as they were read by TensorBoard 2.21 when they were recorded."""

from __future__ import annotations

from pathlib import Path

from trialkeeper.results.tensorboard import NAME, EventFile, crc32c

GOLDEN = (
    "1a00000000000000129bd82d09000000000000000010001a0d627261696e2e4576656e743a3231e6c78b1e00000000000000d9dc12320900"
    "000000004c8f4010012a110a0f0a0876616c2f6c6f7373150000003f79d8eb0d1e00000000000000d9dc1232090000000000548f4010022a"
    "110a0f0a0876616c2f6c6f7373150000803e40b1f1751e00000000000000d9dc12320900000000005c8f4010032a110a0f0a0876616c2f6c"
    "6f737315000010418aeabf2a0f000000000000006d532b09090000000000548f4010023a02080173c5d7171e00000000000000d9dc123209"
    "0000000000548f4010022a110a0f0a0876616c2f6c6f7373150000003ec71c20c91f00000000000000514b441809000000000052944010ac"
    "022a110a0f0a0876616c2f6c6f7373150000807f87b97c0c"
)


def test_checksums_are_those_of_the_rfc() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


def test_a_file_is_what_tensorboard_reads(tmp_path: Path) -> None:
    """It found val/loss = 0.5 at 1, 0.125 at 2 (instead of 0.25, and of 9.0 at 3), infinity at 300."""
    file = EventFile(tmp_path / "run" / NAME)
    for step, value in ((1, 0.5), (2, 0.25), (3, 9.0), (2, 0.125), (300, 1e300)):
        file.write(1000.5 + step, step, {"val/loss": value})
    file.close()
    assert (tmp_path / "run" / NAME).read_bytes().hex() == GOLDEN
