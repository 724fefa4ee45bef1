"""Attacks of one app on a daemon that others use: what others notice of them, and what they take.

``python -m tests.stress.hostile [--attack NAME ...] [--seconds N] [--ratio R] [--check] [--list]`` starts a daemon for
each attack (``hostile_daemon``), measures what an app sees of it undisturbed and attacked (``hostile_victims``), ends
it by SIGTERM while the attack goes on, and prints a table. ``--check`` ends with 1 if a bar was missed. Other processes
of the machine only ever make figures worse: what misses a bar is measured again, twice at most. The app asks five times
a second: with less than 20 seconds its p99 is the longest of these times, with 25 it is not.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.stress.attacks.table import ATTACKS, Attack, attack
from tests.stress.hostile_daemon import Target, an_event, start_process, start_target
from tests.stress.hostile_victims import Experience, Victims

MIB = 1 << 20
TRIES = 3
WARM_UP_S, PATIENCE_S = 0.3, 10.0
"""Before anything is measured; and at the end, for a token if there was none."""
BEGINS_S = 1.0
"""After an attack began. An app that comes anew has taken nothing yet, so whoever asks in that moment shares steps
with it, as with any app; and of so few times to the first token p99 is the longest."""
END_S = 40.0
"""Seconds after SIGTERM after which the daemon is killed."""


@dataclass(frozen=True)
class Bars:
    """What an attack may cost at most."""

    frozen_s: float = 0.050
    grown: int = 64 * MIB
    ratio: float | None = 1.2
    """p99 of the time to another app's first token, by what it is undisturbed."""
    first_token_s: float = 1.5
    """The longest time to another app's first token. Of an attack under many names this counts, and not the ratio."""
    end_s: float = 2.0
    """From SIGTERM to the end, without the drain."""
    connect_s: float = 1.0
    """Until a newcomer, or the operator, is connected and answered."""
    log: int = 1 * MIB


@dataclass(frozen=True)
class Outcome:
    """What was seen of one attack."""

    attack: Attack
    undisturbed: Experience
    attacked: Experience
    frozen: float
    stalled: float
    grown: int
    ended: float | None
    """Seconds from SIGTERM to the end; None if it had to be killed."""
    drained: float
    exit_code: int | None
    log: int

    @property
    def ratio(self) -> float:
        """Infinite if there was no first token at all."""
        if not self.attacked.first_token.took:
            return math.inf
        return self.attacked.first_token.quantile(0.99) / max(1e-9, self.undisturbed.first_token.quantile(0.99))

    def missed(self, bars: Bars) -> list[str]:
        """The bars that were missed, in words."""
        seen, found = self.attacked, []
        if self.frozen > bars.frozen_s:
            found.append(f"the loop was frozen for {self.frozen * 1e3:.0f} ms")
        if self.grown > bars.grown:
            found.append(f"it grew by {self.grown / MIB:.0f} MiB")
        if bars.ratio is not None and self.ratio > bars.ratio and not self.attack.many_names:
            found.append(f"the first token came {self.ratio:.2f} times as late")
        if not seen.first_token.took or seen.first_token.longest > bars.first_token_s:
            found.append(f"the first token came after {seen.first_token.longest:.1f} s, or never")
        for who, times in (("newcomer", seen.newcomer), ("operator", seen.operator)):
            if times.longest > bars.connect_s:
                found.append(f"a {who} waited for {times.longest:.1f} s")
        if self.ended is None:
            found.append(f"SIGTERM did not end it in {END_S:g} s")
        elif self.ended - self.drained > bars.end_s:
            found.append(f"SIGTERM ended it after {self.ended:.1f} s, of which {self.drained:.1f} s drain")
        elif self.exit_code:
            found.append(f"it ended with {self.exit_code}")
        if self.log > bars.log:
            found.append(f"it logged {self.log / MIB:.1f} MiB")
        failed = sorted({what for what in seen.failed if not (self.attack.most_files and ": busy: " in what)})
        return found + failed[:3]


def measure(root: Path, attack_: Attack, seconds: float, quiet_seconds: float) -> Outcome:
    """Start a daemon in ``root``, and attack it for ``seconds`` after as many undisturbed ones."""
    target = start_target(root, most_files=attack_.most_files)
    victims = Victims(target.socket, newcomers=attack_.most_files is None)
    try:
        victims.start()
        time.sleep(WARM_UP_S)
        victims.next()
        time.sleep(quiet_seconds)
        undisturbed = victims.next()
        return _attacked(target, victims, undisturbed, attack_, seconds)
    finally:
        victims.stop()
        target.process.kill()
        target.process.join()


def _attacked(target: Target, victims: Victims, undisturbed: Experience, attack_: Attack, seconds: float) -> Outcome:
    begun, before = an_event(), target.resident()
    target.forget_peak()
    target.board.reset()
    attacker = start_process(attack, attack_.name, target.socket, target.scratch, begun)
    try:
        begun.wait(60)
        time.sleep(BEGINS_S)
        victims.next()
        time.sleep(seconds)
        victims.wait_for_a_token(PATIENCE_S)
        attacked, reading = victims.next(), target.board.read(target.pid)
        grown = target.resident("VmHWM") - before
        victims.stop()
        ended = target.terminate(END_S)
    finally:
        attacker.kill()
        attacker.join()
    drained, code = target.board.last()[0].drained, target.process.exitcode
    log = target.log.stat().st_size
    return Outcome(attack_, undisturbed, attacked, reading.frozen, reading.stalled, grown, ended, drained, code, log)


HEAD = (
    f"{'attack':26} {'frozen':>8} {'stalled':>8} {'grown':>8} {'first token':>11} {'p99':>6} {'ping p99':>8}"
    f" {'operator':>8} {'SIGTERM':>8} {'drain':>6}"
)


def row(outcome: Outcome) -> str:
    seen = outcome.attacked
    ended = f"{outcome.ended:6.2f} s" if outcome.ended is not None else "  killed"
    return (
        f"{outcome.attack.name:26} {outcome.frozen * 1e3:5.0f} ms {outcome.stalled * 1e3:5.0f} ms"
        f" {outcome.grown / MIB:4.0f} MiB {seen.first_token.quantile(0.99) * 1e3:8.0f} ms {outcome.ratio:6.2f}"
        f" {seen.ping.quantile(0.99) * 1e3:5.1f} ms {seen.operator.longest * 1e3:5.0f} ms"
        f" {ended} {outcome.drained:4.1f} s"
    )


def try_attack(attack_: Attack, seconds: float, bars: Bars, tries: int) -> list[str]:
    """Measure until no bar is missed, ``tries`` times at most. Prints what was seen; the bars missed the last time."""
    missed: list[str] = []
    for _ in range(tries):
        with tempfile.TemporaryDirectory(prefix="hostile-") as root:
            outcome = measure(Path(root), attack_, seconds, seconds)
        print(row(outcome), flush=True)
        missed = outcome.missed(bars)
        for what in missed:
            print(f"    {what}", flush=True)
        if not missed:
            break
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--attack", nargs="*", default=list(ATTACKS), choices=list(ATTACKS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each attack (5)")
    parser.add_argument(
        "--ratio",
        type=float,
        default=Bars.ratio,
        help=f"p99 of another app's first token, by what it is undisturbed, at most ({Bars.ratio:g})",
    )
    parser.add_argument("--check", action="store_true", help="measure again what missed a bar; fail if it still does")
    parser.add_argument("--list", action="store_true", help="say what each attack does, and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{found.name:26} {found.summary}" for found in ATTACKS.values()))
        return 0
    print(HEAD)
    tries = TRIES if args.check else 1
    bars = Bars(ratio=args.ratio)
    failed = [name for name in args.attack if try_attack(ATTACKS[name], args.seconds, bars, tries)]
    if failed:
        print(f"bars were missed by: {', '.join(failed)}")
    return 1 if failed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
