"""Starts and stops a service from many tasks at once. Every service passes through here."""

from __future__ import annotations

import asyncio

from riverq.service import Service


async def stress_start_stop(service: Service, *, tasks: int = 10, rounds: int = 50) -> None:
    """`tasks` tasks, each `rounds` times: start, give way, stop. It must end stopped, and start and stop once more."""
    await service.stop()  # before any start

    async def hammer() -> None:
        for _ in range(rounds):
            await service.start()
            await asyncio.sleep(0)
            await service.stop()

    await asyncio.gather(*(hammer() for _ in range(tasks)))
    assert not service.is_running

    await service.start()
    await service.start()
    assert service.is_running
    await service.stop()
    await service.stop()
    assert not service.is_running
