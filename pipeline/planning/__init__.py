"""The frozen plan of a run (scenes, zones, passes and units) and its cost estimate. No pixels are computed here."""
