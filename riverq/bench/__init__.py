"""`riverq bench`: what riverq does on a given database with a given adapter, and what keeps it from doing more.

    plan           what was asked for, and how its time is shared out
    run            the order of things; place makes and drops the schema
    face           the client under measurement, sync or async
    trips, phases  what is measured, each for itself
    watch          looks at the server's processes meanwhile; processes reads their CPU where they are on this machine
    figures        what was found
    verdict        what it means, as a pure function
    report, text   how it is written down

Printing is the command line's part (`riverq.cli.bench`).
"""
