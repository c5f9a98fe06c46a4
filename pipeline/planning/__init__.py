"""The frozen plan of a run: scenes, zones, passes and units, and what it will cost. Nothing is computed here."""
