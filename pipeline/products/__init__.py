"""Products of finished stores: pages, pictures, GeoTIFFs, indices. Stores are only read."""
