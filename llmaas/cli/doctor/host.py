"""The doctor's look at how the daemon shares the machine: threads, CPUs, niceness, heat and battery.

Law: says what the settings mean on this machine, and which of them have no effect here. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmaas.cli.doctor.finding import Finding
from llmaas.config.cpus import allowed_cpus, cpu_quota
from llmaas.config.kinds import show_cpus
from llmaas.config.settings import Config
from llmaas.host import priority, thermal
from llmaas.policies.duty import ThermalReading


def check_host(config: Config) -> Iterator[Finding]:
    """Threads, CPUs and niceness, then what the governor can see."""
    allowed = allowed_cpus()
    cpus = config.cpus or allowed
    where = f" on CPUs {show_cpus(cpus)}" if cpus else ""
    how = ", fewer while others need the cores" if config.adaptive_threads and config.threads > 1 else ""
    yield Finding("cpu", "ok", f"{config.threads} threads{where}{how}; nice {config.nice}")
    if config.cpus and not priority.can_bind():
        yield Finding("cpu", "warn", "cpus has no effect: this system does not bind threads to CPUs")
    if cpus and config.threads > len(cpus):
        text = f"{config.threads} threads share {len(cpus)} CPUs: they wait for each other"
        yield Finding("cpu", "warn", text, f"Set threads to {len(cpus)} or fewer.")
    if (quota := cpu_quota()) is not None and config.threads > max(1.0, quota):
        text = f"{config.threads} threads have a quota of {quota:g} CPUs: the kernel stops them in each period"
        yield Finding("cpu", "warn", text, f"Set threads to {max(1, int(quota))}, or raise the quota (CPUQuota=).")
    if config.nice and priority.autogroups():
        text = "this kernel schedules by sessions: nice counts against other sessions only if the daemon leads its own"
        yield Finding("cpu", "warn", text, "Start it by systemd, or with setsid.")
    if config.governor == "on":
        yield governor_finding()


def governor_finding() -> Finding:
    found = thermal.read()
    if found == ThermalReading():
        text = "on, but this machine reports neither temperatures nor frequencies nor a battery"
        return Finding("heat", "warn", text, "It has no effect here; a limit by --nice or --threads has.")
    parts = []
    if found.temperature is not None:
        parts.append(f"{found.zone} {found.temperature:.0f} C of {found.limit:.0f} C")
    if found.speed is not None:
        parts.append(f"CPUs may run at {found.speed:.0%} of their frequency")
    if found.battery is not None:
        parts.append(f"battery {found.battery:.0%}{', discharging' if found.discharging else ''}")
    return Finding("heat", "ok", "; ".join(parts))
