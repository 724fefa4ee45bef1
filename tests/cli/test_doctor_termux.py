"""What the doctor says on a phone, from a faked file system, environment and set of properties."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.cli.doctor.checks import examine
from llmaas.cli.doctor.finding import Finding
from llmaas.cli.doctor.termux import PHANTOM_FLAG, android_property, check_termux
from llmaas.config.settings import Config
from llmaas.config.sources import load

MEMINFO = "MemTotal: 3700000 kB\nMemAvailable: 1500000 kB\n"


class Phone:
    """A phone with Android 14, set up as the installer does it, and what a test changes of that."""

    def __init__(self, root: Path) -> None:
        self.root = root / "root"
        self.home, self.prefix = root / "home", root / "usr"
        self.environ = {"HOME": str(self.home), "PREFIX": str(self.prefix), "TMPDIR": str(self.prefix / "tmp")}
        self.environ |= {"TERMUX_VERSION": "0.118.1"}
        self.properties = {"ro.build.version.release": "14", "ro.build.version.sdk": "34", PHANTOM_FLAG: "false"}
        self.put(self.root / "proc" / "meminfo", MEMINFO)
        self.put(self.root / "proc" / "pressure" / "memory", "some avg10=0.00 total=0\n")
        self.put(self.prefix / "var" / "service" / "llmaas-wake-lock" / "run")
        self.put(self.home / ".termux" / "boot" / "llmaas")

    def put(self, path: Path, text: str = "") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def config(self, **flags: str) -> Config:
        return load(flags, self.environ).config

    def findings(self, **flags: str) -> list[Finding]:
        return list(
            check_termux(self.config(**flags), self.environ, self.root, lambda name: self.properties.get(name, ""))
        )

    def troubles(self, **flags: str) -> list[Finding]:
        return [finding for finding in self.findings(**flags) if finding.level != "ok"]


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    return Phone(tmp_path)


def test_what_is_no_phone_is_not_mentioned(phone: Phone) -> None:
    phone.environ = {"HOME": str(phone.home), "PREFIX": "/usr/local"}
    assert phone.findings() == []


def test_a_phone_that_is_set_up_well_has_nothing_to_do(phone: Phone) -> None:
    findings = phone.findings()
    assert phone.troubles() == []
    assert findings[0].text == "Termux 0.118.1 on Android 14"
    told = " ".join(finding.text for finding in findings)
    assert "limit on child processes is off" in told and "stays awake" in told
    assert "Battery: Unrestricted" in findings[-1].hint, "what cannot be found out is said"


@pytest.mark.parametrize(
    ("level", "hint"),
    [
        ("35", "developer options"),
        ("34", "developer options"),
        ("33", "settings put global settings_enable_monitor_phantom_procs false"),
        ("32", "settings put global settings_enable_monitor_phantom_procs false"),
        ("31", "max_phantom_processes"),
    ],
)
@pytest.mark.parametrize("flag", ["", "true"])
def test_the_killer_of_phantom_processes_is_a_warning_since_android_12(
    phone: Phone, level: str, hint: str, flag: str
) -> None:
    phone.properties |= {"ro.build.version.sdk": level, PHANTOM_FLAG: flag}
    (finding,) = phone.troubles()
    assert finding.level == "warn" and "phantom processes" in finding.text and hint in finding.hint


@pytest.mark.parametrize("level", ["30", "24", "", "much"])
def test_older_androids_have_no_such_limit(phone: Phone, level: str) -> None:
    phone.properties |= {"ro.build.version.sdk": level, PHANTOM_FLAG: ""}
    assert phone.troubles() == []


def test_without_tmp_and_tmpdir_there_is_no_place_for_the_socket(phone: Phone) -> None:
    del phone.environ["TMPDIR"]
    (finding,) = phone.troubles()
    assert finding.level == "fail" and "TMPDIR=$PREFIX/tmp" in finding.hint
    (phone.root / "tmp").mkdir()
    assert phone.troubles() == [], "Android has a /tmp for apps, or this is a chroot"


def test_shared_storage_holds_neither_the_data_nor_the_socket(phone: Phone) -> None:
    shared = phone.root / "storage" / "emulated" / "0" / "llmaas"
    (finding,) = phone.troubles(data_dir=str(shared))
    assert finding.level == "fail" and "every app may read it" in finding.text and str(phone.home) in finding.hint
    (phone.home / "storage").symlink_to(shared.parent)
    (linked,) = phone.troubles(data_dir=str(phone.home / "storage" / "llmaas"))
    assert linked.hint == finding.hint
    (finding,) = phone.troubles(socket=str(phone.root / "sdcard" / "s"))
    assert finding.text.startswith("socket is")


def test_what_the_kernel_does_not_tell_is_said(phone: Phone) -> None:
    (phone.root / "proc" / "pressure" / "memory").unlink()
    assert phone.troubles() == []
    assert "no PSI" in " ".join(finding.text for finding in phone.findings())
    (phone.root / "proc" / "meminfo").unlink()
    (finding,) = phone.troubles()
    assert finding.level == "warn" and "/proc/meminfo" in finding.text


def test_a_phone_that_nothing_keeps_awake_is_a_warning(phone: Phone) -> None:
    service = phone.prefix / "var" / "service" / "llmaas-wake-lock"
    phone.put(service / "down")
    (finding,) = phone.troubles()
    assert "stands still when the screen goes off" in finding.text and "termux-wake-lock" in finding.hint
    (service / "down").unlink()
    (service / "run").unlink()
    assert phone.troubles() == [finding]


def test_a_start_at_boot_is_offered(phone: Phone) -> None:
    (phone.home / ".termux" / "boot" / "llmaas").unlink()
    (finding,) = [finding for finding in phone.findings() if "boot" in finding.text]
    assert finding.level == "ok" and "--at-boot" in finding.hint


def test_properties_are_those_of_getprop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "getprop"
    command.write_text('#!/bin/sh\n[ "$1" = ro.build.version.sdk ] && echo 34\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert android_property("ro.build.version.sdk") == "34"
    assert android_property("none") == ""
    command.write_text("no program")
    assert android_property("ro.build.version.sdk") == ""
    command.unlink()
    assert android_property("ro.build.version.sdk") == ""


def test_the_doctor_looks_at_a_phone_by_itself(phone: Phone) -> None:
    found = load({"model": "none.gguf"}, phone.environ)
    about = [finding.about for finding in examine(found, phone.environ, deep=False, repair=False)]
    assert "termux" in about
    about = [finding.about for finding in examine(found, {"HOME": str(phone.home)}, deep=False, repair=False)]
    assert "termux" not in about
