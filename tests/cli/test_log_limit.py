"""The log's limit: repeated messages are counted instead of logged."""

from __future__ import annotations

import logging

from llmaas.cli.log_limit import BURST, WINDOW_S, RateLimitedLog


class Kept(logging.Handler):
    def __init__(self, now: list[float]) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addFilter(RateLimitedLog(lambda: now[0]))

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def made(now: list[float]) -> tuple[logging.Logger, Kept]:
    log, kept = logging.Logger("test"), Kept(now)
    log.addHandler(kept)
    return log, kept


def complain(log: logging.Logger, n: int) -> None:
    for i in range(n):
        log.error("no file descriptor left: %d", i)


def test_a_message_that_repeats_is_logged_a_few_times_and_then_counted() -> None:
    now = [0.0]
    log, kept = made(now)
    complain(log, 1000)
    assert kept.texts == [f"no file descriptor left: {i}" for i in range(BURST)]
    log.error("another message")
    assert kept.texts[-1] == "another message"
    now[0] = WINDOW_S
    complain(log, 1)
    assert kept.texts[-1] == f"no file descriptor left: 0 (and {1000 - BURST} more like it before)"


def test_another_exception_from_the_same_line_is_another_message() -> None:
    log, kept = made([0.0])
    for kind in (ValueError, OSError):
        for _ in range(BURST + 5):
            try:
                raise kind("no")
            except (ValueError, OSError):
                log.exception("unexpected")
    assert len(kept.texts) == 2 * BURST
