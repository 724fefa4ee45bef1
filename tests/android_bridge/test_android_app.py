"""The sample app: its sources compile, and its manifest names what there is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

from tests.support.android_stubs import write_resources, write_stubs
from tests.support.drivers import BRIDGE, build, needs

APP = BRIDGE / "android-app" / "app"
MAIN = APP / "src" / "main"
ANDROID = "{http://schemas.android.com/apk/res/android}"


def platform(folder: Path) -> tuple[list[str], list[Path]]:
    """Flags and sources that give javac the classes of Android: an installed platform, else declarations of them."""
    jars = sorted(Path(os.environ.get("ANDROID_HOME", "/nowhere"), "platforms").glob("*/android.jar"))
    return (["-cp", str(jars[-1])], []) if jars else ([], write_stubs(folder))


def test_its_sources_compile(tmp_path: Path) -> None:
    javac = needs("javac")
    flags, declarations = platform(tmp_path / "android")
    resources = write_resources(tmp_path, "llmaas.sample", MAIN / "res" / "values" / "strings.xml")
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
