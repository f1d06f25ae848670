"""Ranks of one host ring for their messages; nobody who hears nothing waits for long."""

from __future__ import annotations

import threading
import time

from alpa_mlir.runtime.guard import Watchdog
from alpa_mlir.runtime.transport.base import wait_until
from alpa_mlir.runtime.transport.doorbell import Doorbell, _socket


def pair() -> tuple[Doorbell, Doorbell]:
    """The bells of two ranks, 3 and 8."""
    sockets = [_socket(), _socket()]
    assert sockets[0] is not None and sockets[1] is not None
    names = {3: sockets[0].getsockname(), 8: sockets[1].getsockname()}
    return Doorbell(3, sockets[0], [8], {8: names[8]}), Doorbell(8, sockets[1], [3], {3: names[3]})


def test_a_ring_wakes_who_waits() -> None:
    one, other = pair()
    ringer = threading.Timer(0.05, one.ring, [8])
    ringer.start()
    start = time.monotonic()
    other.wait(60)
    assert time.monotonic() - start < 30
    assert (other.rung(3), one.rung(8)) == (1, 0)


def test_rings_before_the_wait_count() -> None:
    one, other = pair()
    for _ in range(200):  # more than a socket holds
        one.ring(8)
    other.wait(60)
    heard = other.rung(3)
    assert 0 < heard <= 200
    one.ring(8)
    other.wait(60)
    assert other.rung(3) == 201  # a ring says how many there were


def test_who_is_no_neighbour_is_not_rung_for_and_noise_is_not_heard() -> None:
    one, other = pair()
    one.ring(5)
    other.wait(0)
    stranger = _socket()
    assert stranger is not None
    stranger.sendto(b"?", other._own.getsockname())
    other.wait(60)
    assert other.rung(3) == 0 and other.neighbours == {3}


def test_who_can_hear_looks_once_and_sleeps_until_a_message_comes() -> None:
    """Not again and again; after the ring soon again, however long the sleep was."""
    looks: list[float] = []
    pauses: list[float] = []

    def rest(seconds: float) -> bool:
        pauses.append(seconds)
        time.sleep(0.3)
        return len(pauses) == 2

    def done() -> bool:
        return len(pauses) == 3

    wait_until(done, lambda: looks.append(0.0), Watchdog(0, 0), "a message", rest=rest, longest=1.0, spins=0)
    assert len(looks) == 3
    assert pauses[1] >= 0.03 > pauses[2]
