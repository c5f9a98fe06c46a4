"""Composes the three stations: the plan, the work of one unit, the cluster. The only place where they meet."""
