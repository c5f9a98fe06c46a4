"""How good an image is: metrics, the methods to beat, held-out places, tables, sheets. Imports data and degradation."""
