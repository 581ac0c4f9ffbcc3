"""The order of things: connect, make the schema, measure one thing after the other, drop the schema."""

from __future__ import annotations

from riverq.bench import phases
from riverq.bench.figures import Figures
from riverq.bench.place import Place, own_schema
from riverq.bench.plan import Phase, Plan, Progress, Target
from riverq.bench.trips import measure_trips
from riverq.bench.watch import Watcher
from riverq.database import Database
from riverq.driver import load_driver
from riverq.errors import ConfigError
from riverq.query.measure import ServerFacts, server_facts


async def measure(target: Target, plan: Plan, progress: Progress, place: Place) -> Figures:
    """Measure everything. Cancelled, it stops, drops its schema, and then is cancelled.

    `place` is the plan's, and tells at any time what is known of it. Raises ConfigError where the schema exists
    already, DatabaseError and its kinds, and RiverqError where nothing moves or the schema cannot be dropped.
    """
    engine = target.make_engine(plan.application_name)
    db = Database(engine, load_driver(engine), schema=plan.schema)
    try:
        server = await _connect(db)  # a server that is not there is told before anything is to be undone
        async with own_schema(db, place, progress):
            watcher = Watcher(lambda: target.make_engine(f"{plan.application_name}_watch"), plan.application_name)
            bench = phases.Bench(plan, db, progress, watcher, target.asynchronous)
            limit = bench.begin(Phase.TRIPS)
            trips = await measure_trips(db, limit, progress)
            inserter = bench.inserter()
            try:
                one = await phases.insert_one_by_one(bench, inserter)
                many = await phases.insert_in_batches(bench, inserter)
                copy = await phases.insert_by_copy(bench, inserter)
            finally:
                await inserter.stop()
            work = await phases.work_backlog(bench, copy.jobs)
            latency = await phases.measure_latency(bench)
            return Figures(
                server=server,
                adapter=db.driver.name,
                asynchronous=target.asynchronous,
                trips=trips,
                one=one,
                many=many,
                copy=copy,
                work=work,
                latency=latency,
            )
    finally:
        await db.close()


async def _connect(db: Database) -> ServerFacts:
    try:
        return await db.run(server_facts)
    except TypeError as error:  # SQLAlchemy hands the URL's options to the adapter as they are
        raise ConfigError(f"the database URL has an option that {db.driver.name} does not know: {error}") from error
