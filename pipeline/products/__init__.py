"""What people take from a finished store: pages, pictures, GeoTIFFs, indices, colours. Reads stores, writes none.

Imports store, grid, bands, errors; never archive or superres.
"""
