"""The verbs of delivery: publish, fetch, install, list, rollback."""
