"""The sample app: its sources compile, and its manifest names what there is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.android_stubs import write_resources, write_stubs
from tests.support.drivers import BRIDGE, build, needs

APP = BRIDGE / "android-app" / "app"
MAIN = APP / "src" / "main"
ANDROID = "{http://schemas.android.com/apk/res/android}"


FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
"""Android 10's resources, of Debian's android-framework-res. It has no classes."""


def platform(folder: Path) -> tuple[list[str], list[Path]]:
    """Flags and sources that give javac the classes of Android: an installed platform, else declarations of them."""
    jars = sorted(Path(os.environ.get("ANDROID_HOME", "/nowhere"), "platforms").glob("*/android.jar"))
    return (["-cp", str(jars[-1])], []) if jars else ([], write_stubs(folder))


def test_its_sources_compile(tmp_path: Path) -> None:
    resources = write_resources(tmp_path, "llmaas.sample", MAIN / "res" / "values" / "strings.xml")
    compile_with(resources, tmp_path)


def test_android_takes_its_manifest_and_its_resources(tmp_path: Path) -> None:
    """By Android's own packer, whose class R its sources are compiled with."""
    aapt, package = needs("aapt"), tmp_path / "sample.apk"
    if not FRAMEWORK.exists():
        pytest.skip(f"there is no {FRAMEWORK}: apt install android-framework-res")
    text = (MAIN / "AndroidManifest.xml").read_text("utf-8")
    (tmp_path / "AndroidManifest.xml").write_text(text.replace("<manifest ", '<manifest package="llmaas.sample" ', 1))
    versions = ("--min-sdk-version", "26", "--target-sdk-version", "29")
    places = (
        "-M",
        tmp_path / "AndroidManifest.xml",
        "-S",
        MAIN / "res",
        "-I",
        FRAMEWORK,
        "-J",
        tmp_path,
        "-F",
        package,
    )
    build(aapt, "package", "-m", *versions, *places)
    badging = subprocess.run([aapt, "dump", "badging", package], capture_output=True, text=True, check=True).stdout
    for line in ("launchable-activity: name='llmaas.sample.ChatActivity'", "application-label:'llmaas chat'"):
        assert line in badging, badging
    assert badging.count("uses-permission:") == 1
    compile_with(tmp_path / "llmaas" / "sample" / "R.java", tmp_path)


def compile_with(resources: Path, tmp_path: Path) -> None:
    javac = needs("javac")
    flags, declarations = platform(tmp_path / "android")
    own = [*(MAIN / "java").rglob("*.java"), *(BRIDGE / "java" / "src").rglob("*.java")]
    sources = sorted(map(str, [*own, *declarations, resources]))
    build(javac, "--release", "11", "-Xlint:all", "-Werror", "-d", tmp_path / "classes", *flags, *sources)


def test_its_manifest_names_its_classes_and_no_more_rights_than_it_uses() -> None:
    manifest = ElementTree.parse(MAIN / "AndroidManifest.xml").getroot()
    assert [each.get(f"{ANDROID}name") for each in manifest.iter("uses-permission")] == ["android.permission.INTERNET"]
    package = re.search(r"namespace '([\w.]+)'", (APP / "build.gradle").read_text())
    assert package
    for kind in ("activity", "service"):
        for each in manifest.iter(kind):
            name = f"{package[1]}{each.get(f'{ANDROID}name')}".replace(".", "/")
            assert (MAIN / "java" / f"{name}.java").is_file()
    assert [each.get(f"{ANDROID}exported") for each in manifest.iter("service")] == ["false"]
    used = set()
    for source in (MAIN / "java").rglob("*.java"):
        used |= set(re.findall(r"R\.string\.(\w+)", source.read_text("utf-8")))
    named = re.findall(r'<string name="(\w+)"', (MAIN / "res" / "values" / "strings.xml").read_text("utf-8"))
    assert used | {"app_name"} == set(named)
