"""Budgets of RAM and disk change while apps get answers: every answer is right, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from llmaas.api.async_client import AsyncClient
from llmaas.policies.pool_budget import MemoryReading
from llmaas.records import NO_QUOTA
from tests.support.daemon import LONG, Daemon, answer_to, ask, counts, serving
from tests.support.loop import on_a_loop

NAMES = "abcdef"
MIB = 1 << 20


async def round_of_turns(client: AsyncClient, said: dict[str, list[str]], names: str = NAMES) -> None:
    """One more turn in every context; it must answer as if nothing had ever left the cells."""
    for name in names:
        said[name].append(f"{name}{len(said[name])} {LONG}")
        assert await ask(client, name, said[name][-1]) == answer_to(*said[name])


async def talkers(client: AsyncClient) -> dict[str, list[str]]:
    for name in NAMES:
        await client.create(name=name)
    return {name: [] for name in NAMES}


async def tier_of(client: AsyncClient, name: str) -> tuple[int, int, int, int]:
    return (await client.show(name)).info.tiers


def used(daemon: Daemon) -> tuple[int, int]:
    stats = daemon.service.stats()
    return stats["pool_bytes"]["used"], stats["disk_bytes"]["chunks"]  # type: ignore[index]


@on_a_loop
async def test_the_pool_shrinks_by_command_and_grows_again_and_every_conversation_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("a", admin=True) as client:
        said = await talkers(client)
        await round_of_turns(client, said)
        await round_of_turns(client, said)
        await daemon.until_idle()
        pool, disk = used(daemon)
        assert pool > 40_000
        told = await client.budget(pool_bytes=20_000)
        assert told["pool_bytes"]["budget"] == 20_000 and told["pool_bytes"]["used"] <= 20_000
        assert told["disk_bytes"] == {"chunks": disk, "quota": "none"}, "what left RAM is on disk"
        before = counts(daemon)
        await round_of_turns(client, said)
        await daemon.until_idle()
        assert used(daemon)[0] <= 20_000
        assert counts(daemon)["tokens_from_disk"] > before["tokens_from_disk"]
        await client.budget(pool_bytes=1 << 20)
        for _ in range(2):
            await round_of_turns(client, said)
        await daemon.until_idle()
        assert used(daemon)[0] > 40_000
        assert (await client.stats())["calls"]["pool_shrink_ms"]["count"] == 1


@on_a_loop
async def test_under_a_small_quota_the_coldest_contexts_are_computed_again_and_nothing_is_lost(tmp_path: Path) -> None:
    async with serving(tmp_path, pool_bytes=60_000) as daemon, daemon.connect("a", admin=True) as client:
        said = await talkers(client)
        await round_of_turns(client, said)
        await round_of_turns(client, said)
        await daemon.until_idle()
        quota = used(daemon)[1] // 3
        await client.budget(disk_bytes=quota)
        await round_of_turns(client, said, NAMES[:4])
        await daemon.until_idle()
        assert used(daemon)[1] <= quota
        assert (await tier_of(client, NAMES[4]))[2] == 0, "nobody used it for longest"
        recomputed = counts(daemon)["tokens_recomputed"]
        await round_of_turns(client, said)
        assert counts(daemon)["tokens_recomputed"] > recomputed
        await client.budget(disk_bytes=NO_QUOTA)
        await round_of_turns(client, said)
        await daemon.until_idle()
        assert used(daemon)[1] > quota
    async with (
        serving(tmp_path, pool_bytes=60_000, disk_bytes=quota) as daemon,
        daemon.connect("a", admin=True) as client,
    ):
        assert used(daemon)[1] <= quota, "a quota that was lowered while nobody served holds from the start"
        await round_of_turns(client, said)


@on_a_loop
async def test_a_machine_short_of_memory_gets_some_back_and_stats_say_why(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.connect("a", admin=True) as client:
        said = await talkers(client)
        await round_of_turns(client, said)
        await daemon.until_idle()
        pool = used(daemon)[0]
        daemon.service.on_memory_reading(MemoryReading(0.5, 512 * MIB, 400 * MIB, "cgroup"))
        stats = await client.stats()
        assert stats["pool_bytes"]["used"] <= 3 * pool // 4 and stats["pool_bytes"]["why"] == "pressure"
        assert stats["pool_bytes"]["configured"] == 1 << 20
        assert stats["memory"] == {
            "watched": True,
            "stalled": 0.5,
            "limit_bytes": 512 * MIB,
            "free_bytes": 400 * MIB,
        }
        await round_of_turns(client, said)
