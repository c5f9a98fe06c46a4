"""Runs a plan: units, pools of workers, retries and quarantine, publication, integrity of what was stored."""
