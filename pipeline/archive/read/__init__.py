"""Reading files of archives: access rules, GDAL, retries, bands and cubes."""
