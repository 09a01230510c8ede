"""Ten thousand departures through a machine, into a database: ``python -m examples.flights``."""
