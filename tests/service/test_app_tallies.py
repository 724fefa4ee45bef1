"""What each app has had: counted for the apps that there is room for, and for the others together."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmaas.calls import Generation, Turn
from llmaas.errors import BadRequest
from llmaas.records import AppId
from llmaas.service import app_tallies
from tests.support.loop import on_a_loop
from tests.support.service_house import APP, house


@on_a_loop
async def test_an_apps_calls_tokens_and_errors_are_counted(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.service.create(APP, name="a", system=None)
        _, done = await home.say("a", "Hello?", 5)
        with pytest.raises(BadRequest):
            await home.service.create(AppId("7/x"), name="b", system=None)
            await home.call("b", Turn(), Generation(4), app=AppId("7/x"))
        found = home.service.stats(octaves=True)
        assert found["apps"] == {
            APP: {
                "calls": 1,
                "tokens_prompt": done.n_prompt,
                "tokens_generated": 5,
                "tokens_recomputed": 0,
                "switch_ms": done.switch.switch_ms,
                "failed": {},
            },
            "7/x": {
                "calls": 1,
                "tokens_prompt": 0,
                "tokens_generated": 0,
                "tokens_recomputed": 0,
                "switch_ms": 0.0,
                "failed": {"bad_request": 1},
            },
        }
        octaves = found["octaves"]
        assert isinstance(octaves, dict) and list(octaves["ttft_ms"].values())[-1] == 1
        assert "apps" not in home.service.stats(apps=False) and "octaves" not in home.service.stats()


@on_a_loop
async def test_apps_beyond_the_room_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_tallies, "N_APPS", 2)
    async with house(tmp_path) as home:
        for name in ("a", "b", "a", "c", "d"):
            app = AppId(f"1/{name}")
            if name not in {info.name for info in home.service.contexts(app)}:
                await home.service.create(app, name=name, system=None)
            await home.say(name, "Hello?", 3, app=app)
        apps = home.service.stats()["apps"]
        assert isinstance(apps, dict) and list(apps) == ["1/c", "1/d", "others"]
        assert (apps["others"]["calls"], apps["others"]["tokens_generated"]) == (3, 9)
