"""Work over many WebDataset shards: the shard is the unit. A result shard appears whole, under the name of the shard it
is of, or not at all: a run that was killed, however, and is started again does what is missing, no sample lost or
doubled. Several processes (torchrun, or simply two of them) share the shards; `--engine ray` spreads them over a
cluster.

    00000.tar  KEY.mp4 KEY.json ...  ->  OUT/00000.tar  KEY.json, and what the verb makes: KEY.tokens.safetensors
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyramid.files import replacing
from tasks.console import Console, one_line, user_can_mend

FORMAT, FORMAT_VERSION = "pyramid.corpus", 1
_BLOCK, _ENDS = 512, 1 << 16  # bytes: a tar is made of blocks; what a shard is known by


@dataclass(frozen=True)
class Sample:
    """What a shard has under one key: bytes by extension."""

    key: str
    parts: dict[str, bytes]

    def video(self) -> tuple[str, bytes]:
        """The extension and the bytes of its clip. Raises ValueError for none."""
        from pyramid.data.folder import CLIP_SUFFIXES

        for extension, data in self.parts.items():
            if f".{extension.rsplit('.', 1)[-1].lower()}" in CLIP_SUFFIXES:
                return extension.rsplit(".", 1)[-1], data
        raise ValueError(f"{self.key}: expected a clip, got {', '.join(sorted(self.parts)) or 'nothing'}")

    def fields(self) -> dict[str, Any]:
        """Its JSON, an empty dict where there is none or it is damaged."""
        with suppress(ValueError):
            found = json.loads(self.parts.get("json", b"{}"))
            return found if isinstance(found, dict) else {}
        return {}


@dataclass(frozen=True)
class Made:
    """What is written for a sample: bytes by extension; `broken`: its clip could not be read."""

    key: str
    parts: dict[str, bytes]
    broken: bool = False


# The samples of a shard, one after the other, to what is made of each of them: all keys come back, in order.
Work = Callable[[Iterable[Sample]], Iterator[Made]]


def read_shard(path: Path) -> Iterator[Sample]:
    """Raises ValueError for what is no tar of samples, or is cut short."""
    import webdataset

    _check_end(path)
    try:
        # Which shards a process reads is decided above; its own split by ranks is off.
        found = webdataset.WebDataset(
            str(path), shardshuffle=False, empty_check=False, handler=_refuse, nodesplitter=lambda urls: urls
        )
        for item in found:
            parts = {name: value for name, value in item.items() if not name.startswith("__")}
            yield Sample(item["__key__"], parts)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: expected a WebDataset shard, got {type(error).__name__}: {error}") from None


def _check_end(path: Path) -> None:
    """Raises ValueError for a tar without its end: what is cut between two samples reads like a shorter one."""
    with path.open("rb") as file:
        head = file.read(_BLOCK)
        file.seek(max(0, path.stat().st_size - _BLOCK))
        if head[257:262] == b"ustar" and file.read().strip(b"\0"):
            raise ValueError(f"{path}: expected a WebDataset shard, got one that is cut short: a tar ends in zeros")


def _identity(path: Path) -> str:
    """Of a shard, by its size and both of its ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read())
    return f"{size}-{digest.hexdigest()[:12]}"


def _refuse(error: Exception) -> bool:
    raise error


def shards_of(inputs: Sequence[str]) -> list[Path]:
    """The shards that files, globs and folders stand for; none where they stand for clips. Raises ValueError for both
    beside each other."""
    from pyramid.data.folder import CLIP_SUFFIXES

    found: list[Path] = []
    others = 0
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            there = [file for file in sorted(path.iterdir()) if file.suffix.lower() in (".tar", *CLIP_SUFFIXES)]
        else:
            there = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        inside = [match for match in there if match.suffix == ".tar"]
        found += inside
        others += len(there) - len(inside) or not inside
    if found and others:
        raise ValueError(f"expected shards or clips, got some of each: {found[0]} beside {others} that are none")
    return find_shards(found)


def find_shards(inputs: Sequence[Path]) -> list[Path]:
    """The .tar files, each once. Raises ValueError for two of one name, whose results would be one."""
    shards = list(dict.fromkeys(inputs))
    names: dict[str, Path] = {}
    for shard in shards:
        if (other := names.setdefault(shard.name, shard)) != shard:
            raise ValueError(f"{shard}: expected shards of different names, got {other} beside it")
    return shards


def run_shards(
    shards: Sequence[Path],
    out: Path,
    make_work: Callable[[], Work],
    settings: dict[str, Any],
    console: Console,
    engine: str = "torchrun",
) -> dict[str, Any]:
    """Work through what is missing of the shards in `out`, this process's share of them, and return the index of what
    is there. `make_work` is called once, if there is anything to do; `settings`: what results depend on.

    Raises ValueError for an `out` of other settings or shards, a shard that is another one since, and an engine that
    there is not; OSError and ValueError for a shard that cannot be read, when the others are done.
    """
    if engine not in ("torchrun", "ray"):
        raise ValueError(f"--engine: expected torchrun or ray, got {engine!r}")
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _settle(out, {"shards": [shard.name for shard in shards], **settings})
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    todo = [shard for shard in shards if not (out / shard.name).exists()]
    for shard in set(shards).difference(todo):
        if json.loads((out / f"{shard.name}.json").read_text(encoding="utf8")).get("source") != _identity(shard):
            raise ValueError(f"{shard}: expected the shard that {out / shard.name} was made of, got another one")
    if len(todo) < len(shards):
        console.note(f"{out}: {len(shards) - len(todo)} of {len(shards)} shards are there")
    faults: list[Exception] = []
    progress = _Progress(console, todo if engine == "ray" else todo[rank::world])
    if engine == "ray":
        _by_ray(todo, out, make_work, progress, faults)
    elif mine := todo[rank::world]:
        work = make_work()
        for shard in mine:
            try:
                done = do_shard(shard, out, work, progress.sample)
            except (OSError, ValueError) as error:
                faults.append(error)
                console.fault(error)
                continue
            if done is None:
                console.note(f"{shard}: another process is at it")
            progress.shard(shard)
    with _alone(out):
        index = write_index(shards, out, settings)
    for row in index["shards"]:
        if not row["samples"]:
            console.note(f"{row['name']}: expected samples, found none; links inside a shard are not followed")
    if faults:
        raise faults[0]
    return index


def do_shard(shard: Path, out: Path, work: Work, told: Callable[[], object] = lambda: None) -> dict[str, int] | None:
    """One shard; its counts, or None where another process holds it, or has done it."""
    held = out / f".{shard.name}.lock"
    with held.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when a process dies
        except BlockingIOError:
            return None
        try:
            return None if (out / shard.name).exists() else _fill_shard(shard, out, work, told)
        finally:
            held.unlink(missing_ok=True)  # who has it open already finds the shard there


def _fill_shard(shard: Path, out: Path, work: Work, told: Callable[[], object]) -> dict[str, int]:
    import webdataset

    begin, source = time.monotonic(), _identity(shard)
    for stale in out.glob(f".{shard.name}.*.part"):  # of a process that died
        stale.unlink()
    part = out / f".{shard.name}.{os.getpid()}.part"
    counts = {"samples": 0, "broken": 0}
    try:
        with part.open("wb") as file:
            writer = webdataset.TarWriter(file, mtime=0)
            for made in work(read_shard(shard)):
                writer.write({"__key__": made.key, **made.parts})
                counts["samples"] += 1
                counts["broken"] += made.broken
                told()
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        record = {"name": shard.name, "source": source, **counts, "seconds": round(time.monotonic() - begin, 2)}
        with replacing(out / f"{shard.name}.json") as told_file:
            told_file.write_text(json.dumps(record) + "\n", encoding="utf8")
        part.rename(out / shard.name)  # last: a shard that is there is whole
    finally:
        part.unlink(missing_ok=True)
    return counts


def write_index(shards: Sequence[Path], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Counts of the shards that are there; kept as index.json when all are, and what killed processes left goes."""
    there = [shard.name for shard in shards if (out / shard.name).exists()]
    rows = [json.loads((out / f"{name}.json").read_text(encoding="utf8")) for name in there]
    index = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        **settings,
        "shards": rows,
        "samples": sum(row["samples"] for row in rows),
        "broken": sum(row["broken"] for row in rows),
        "missing": len(shards) - len(there),
    }
    if not index["missing"]:
        for left in (path for pattern in (".*.part", ".*.tar.lock") for path in out.glob(pattern)):
            left.unlink(missing_ok=True)
        with replacing(out / "index.json") as part:
            part.write_text(json.dumps(index, indent=2) + "\n", encoding="utf8")
    return index


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Among all processes that work on a folder, for what takes no time."""
    held = out / ".lock"
    while True:
        with held.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(lock.fileno()).st_nlink:  # who had it before took its name away
                continue
            try:
                yield
            finally:
                held.unlink(missing_ok=True)
            return


def _settle(out: Path, settings: dict[str, Any]) -> None:
    """What this folder's results depend on, kept at the first run."""
    file = out / "settings.json"
    if file.exists():
        found = json.loads(file.read_text(encoding="utf8"))
        if found != settings:
            changed = sorted(name for name in found | settings if found.get(name) != settings.get(name))
            raise ValueError(f"{out}: expected results of the same settings, got others: {', '.join(changed)}")
        return
    if strange := sorted(path.name for path in out.iterdir() if not path.name.startswith(".")):
        raise ValueError(f"{out}: expected an empty folder or one of such results, found {strange[0]}")
    with replacing(file) as part:
        part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf8")


class _Progress:
    """Says how far it is, and how long the rest may take, by the bytes of the shards."""

    def __init__(self, console: Console, shards: Sequence[Path]) -> None:
        self.console, self.begin = console, time.monotonic()
        self.sizes = {shard: shard.stat().st_size if shard.exists() else 0 for shard in shards}
        self.samples = self.done = 0
        self.bytes = 0

    def sample(self) -> None:
        self.samples += 1
        rate = self.samples / max(1e-9, time.monotonic() - self.begin)
        self.console.pulse(f"{self.samples} samples, {rate:.1f} a second,", self.begin)

    def shard(self, shard: Path) -> None:
        self.done, self.bytes = self.done + 1, self.bytes + self.sizes[shard]
        took, total = time.monotonic() - self.begin, sum(self.sizes.values())
        left = took / max(1, self.bytes) * (total - self.bytes)
        self.console.note(f"{shard.name}: {self.done} of {len(self.sizes)} shards in {took:.0f} s, {left:.0f} s left")


def _by_ray(
    shards: Sequence[Path], out: Path, make_work: Callable[[], Work], progress: _Progress, faults: list[Exception]
) -> None:
    """A worker for each core of the cluster, shards as they become free."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise ValueError("--engine ray: expected the package ray; pip install semantic-pyramid[scale]") from None

    class Worker:
        def __init__(self) -> None:
            self.work = make_work()

        def do(self, shard: Path) -> tuple[Path, str]:
            try:
                do_shard(shard, out.resolve(), self.work)
            except (OSError, ValueError) as error:
                return shard, str(error)
            return shard, ""

    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        count = max(1, min(len(shards), int(ray.cluster_resources().get("CPU", 1))))
        remote = ray.remote(Worker)
        pool = ActorPool([remote.remote() for _ in range(count)])
        for shard, fault in pool.map_unordered(lambda worker, shard: worker.do.remote(shard), list(shards)):
            if fault:
                faults.append(ValueError(fault))
                progress.console.fault(faults[-1])
            else:
                progress.shard(shard)
    finally:
        if own:
            ray.shutdown()


def unreadable(sample: Sample, error: Exception) -> Made:
    """A sample whose clip cannot be read keeps its place, and says why. Raises what the user cannot mend."""
    if not user_can_mend(error):
        raise error
    return Made(sample.key, {"json": to_bytes(sample.fields() | {"error": one_line(error)})}, broken=True)


def to_bytes(record: dict[str, Any]) -> bytes:
    """A sample's JSON."""
    return json.dumps(record, ensure_ascii=False, default=str).encode("utf8", errors="replace")


@contextmanager
def as_file(sample: Sample) -> Iterator[Path]:
    """The clip of a sample as a file, which goes again; its name is the key in messages."""
    extension, data = sample.video()
    with tempfile.TemporaryDirectory(prefix="pyramid-") as folder:
        path = Path(folder) / f"{sample.key.replace('/', '_')[-100:]}.{extension}"
        path.write_bytes(data)
        yield path
