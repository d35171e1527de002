"""What W&B has written on disk: it has no public reader, so its records are parsed with its own protobuf."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record


class WandbFile:
    """The records of one offline run, once its last one is there.

    Args:
        path: The folder offline-run-DATE-ID.
        finished: Whether it must have ended.
    """

    def __init__(self, path: Path, *, finished: bool = True) -> None:
        (self.path,) = path.glob("run-*.wandb")
        self.kinds: dict[str, list[Any]] = {}
        # W&B's service process still writes when the run is finished; its last record is `exit`.
        for _ in range(300):
            self.kinds = {}
            for record in map(Record.FromString, _records(self.path)):
                name = record.WhichOneof("record_type")
                self.kinds.setdefault(name, []).append(getattr(record, name))
            if "exit" in self.kinds or not finished:
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.path} was not finished")

    @property
    def run(self) -> Any:
        """Name, group, job type, tags, id."""
        (run,) = self.kinds["run"]
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The configuration it began with."""
        return _values(self.run.config.update)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The metrics, row by row."""
        return [_values(row.item) for row in self.kinds.get("history", [])]

    @property
    def summary(self) -> dict[str, Any]:
        """The last value of everything."""
        return {
            key: value
            for record in self.kinds.get("summary", [])
            for key, value in _values(record.update).items()
        }

    @property
    def exit_code(self) -> int:
        """0 where the run ended well."""
        (end,) = self.kinds["exit"]
        return end.exit_code

    @property
    def text(self) -> str:
        """Everything that would be sent, as text."""
        return "\n".join(str(record) for records in self.kinds.values() for record in records)


def offline_runs(folder: Path) -> list[WandbFile]:
    """Every offline run of a folder in the order they were begun."""
    return [WandbFile(path) for path in sorted(folder.glob("wandb/offline-run-*"))]


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(path: Path) -> Iterator[bytes]:
    """LevelDB's log format behind 7 bytes of header."""
    data, offset, record = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:  # too little left in the block for a header
            offset += 32768 - offset % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4) and offset <= len(data):  # whole, or the last part
            yield record
            record = b""
