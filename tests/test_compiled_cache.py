"""The folder of compiled files: an entry is whole or not there, whatever interrupts, races or damages it."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from merfast.errors import BundleError
from merfast.runtime.cache import KEY_FILE, Cache, digest_of, file_digest

KEY = {"weights": "abc", "sizes": [[1, 4, 16]], "nested": {"b": 1, "a": None}}
CONTENT = b"compiled" * 1000


def make(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "model").write_bytes(CONTENT)
    (folder / "data" / "weights").write_bytes(CONTENT)


def unwanted(_: Path) -> None:
    pytest.fail("made again, though it is there")


def is_whole(place: Path) -> bool:
    return (place / "model").read_bytes() == (place / "data" / "weights").read_bytes() == CONTENT


def test_an_entry_is_made_once_and_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "deep" / "cache")
    assert cache.find("net", KEY) is None
    assert not cache.root.exists()
    place = cache.get("net", KEY, make)
    assert is_whole(place)
    assert place == cache.place("net", KEY) == cache.find("net", KEY) == cache.get("net", KEY, unwanted)
    assert list(cache.root.iterdir()) == [place]
    assert place.name == f"net-{digest_of(KEY)}"


def test_tuples_and_order_do_not_matter_to_a_key(tmp_path: Path) -> None:
    other = {"nested": {"a": None, "b": 1}, "sizes": ((1, 4, 16),), "weights": "abc"}
    assert digest_of(other) == digest_of(KEY)
    assert Cache(tmp_path).get("net", other, make) == Cache(tmp_path).get("net", KEY, unwanted)
    assert digest_of({**KEY, "sizes": [[1, 4, 17]]}) != digest_of(KEY)


@pytest.mark.parametrize("error", [ValueError("no"), OSError("full"), KeyboardInterrupt(), SystemExit(1)])
def test_what_make_raises_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def interrupted(folder: Path) -> None:
        make(folder)
        raise error

    cache = Cache(tmp_path)
    with pytest.raises(type(error)) as raised:
        cache.get("net", KEY, interrupted)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []
    assert is_whole(cache.get("net", KEY, make))


def test_make_gets_an_empty_folder_that_no_one_finds(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def look(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        assert folder.parent == tmp_path
        make(folder)
        assert cache.find("net", KEY) is None

    cache.get("net", KEY, look)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no key": lambda place: (place / KEY_FILE).unlink(),
    "empty": lambda place: (place / KEY_FILE).write_bytes(b""),
    "cut": lambda place: os.truncate(place / KEY_FILE, (place / KEY_FILE).stat().st_size // 2),
    "not text": lambda place: (place / KEY_FILE).write_bytes(b"\xff\xfe\x00"),
    "no mapping": lambda place: (place / KEY_FILE).write_text("[1]"),
    "another key": lambda place: (place / KEY_FILE).write_text(json.dumps({**KEY, "weights": "abd"})),
    "a folder": lambda place: ((place / KEY_FILE).unlink(), (place / KEY_FILE).mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    place = cache.get("net", KEY, make)
    (place / "left").touch()
    DAMAGE[damage](place)
    assert cache.find("net", KEY) is None
    assert cache.get("net", KEY, make) == place
    assert is_whole(place)
    assert not (place / "left").exists()
    assert list(tmp_path.iterdir()) == [place]


def test_a_file_in_place_of_an_entry_is_replaced(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.place("net", KEY).write_text("no folder")
    assert is_whole(cache.get("net", KEY, make))


def test_a_damaged_entry_stays_if_it_cannot_be_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    place = cache.get("net", KEY, make)
    DAMAGE["cut"](place)

    def fails(_: Path) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.get("net", KEY, fails)
    assert list(tmp_path.iterdir()) == [place]
    assert cache.find("net", KEY) is None


@pytest.mark.parametrize("entry", ["none", "damaged"])
def test_threads_that_make_it_at_once_get_a_whole_entry(tmp_path: Path, entry: str) -> None:
    workers = 6
    for turn in range(25):
        cache = Cache(tmp_path / str(turn))
        if entry == "damaged":
            DAMAGE["cut"](cache.get("net", KEY, make))
        barrier = threading.Barrier(workers)

        def work(cache: Cache = cache, barrier: threading.Barrier = barrier) -> bool:
            def together(folder: Path) -> None:
                make(folder)
                barrier.wait(60)

            return is_whole(cache.get("net", KEY, together))

        with ThreadPoolExecutor(workers) as pool:
            assert all(f.result() for f in [pool.submit(work) for _ in range(workers)])
        assert list(cache.root.iterdir()) == [cache.place("net", KEY)]


class _Together:
    """Makes the entry, and waits until the other process has made it too."""

    def __init__(self, barrier: Barrier) -> None:
        self.barrier = barrier

    def __call__(self, folder: Path) -> None:
        make(folder)
        self.barrier.wait(60)


def _process(root: Path, barrier: Barrier) -> None:
    place = Cache(root).get("net", KEY, _Together(barrier))
    raise SystemExit(0 if is_whole(place) else 1)


@pytest.mark.parametrize("entry", ["none", "damaged"])
def test_processes_that_make_it_at_once_get_a_whole_entry(tmp_path: Path, entry: str) -> None:
    cache = Cache(tmp_path)
    if entry == "damaged":
        DAMAGE["no key"](cache.get("net", KEY, make))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_process, args=(tmp_path, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    assert list(tmp_path.iterdir()) == [cache.place("net", KEY)]


def test_a_killed_process_leaves_no_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    process = context.Process(target=_process, args=(tmp_path, barrier))
    process.start()
    while not list(tmp_path.glob(".net-*/data/weights")):
        assert process.is_alive()
        process.join(0.01)
    process.kill()
    process.join(60)
    cache = Cache(tmp_path)
    assert cache.find("net", KEY) is None
    assert is_whole(cache.get("net", KEY, make))


def test_a_root_that_cannot_be_written_is_an_error_for_new_entries_only(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    place = Cache(root).get("net", KEY, make)
    if os.geteuid() == 0:  # permissions mean nothing to it
        (tmp_path / "file").touch()
        blocked = Cache(tmp_path / "file" / "cache")
    else:
        root.chmod(0o555)
        blocked = Cache(root)
        assert blocked.get("net", KEY, unwanted) == place
    try:
        with pytest.raises(OSError, match=r"denied|Not a directory"):
            blocked.get("other", KEY, unwanted)
        assert blocked.find("other", KEY) is None
    finally:
        root.chmod(0o755)


def test_entries_can_be_read_by_others(tmp_path: Path) -> None:
    def private(folder: Path) -> None:
        make(folder)
        (folder / "data" / "weights").chmod(0o600)

    place = Cache(tmp_path).get("net", KEY, private)
    assert place.stat().st_mode & 0o777 == 0o755
    modes = {f.stat().st_mode & 0o777 for f in place.rglob("*") if f.is_file()}
    assert modes == {(place / KEY_FILE).stat().st_mode & 0o777}
    assert modes != {0o600}


def test_digest_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    assert file_digest(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(BundleError, match=r"missing: cannot be read: .*No such file"):
        file_digest(tmp_path / "missing")
