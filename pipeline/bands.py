"""The 12 bands of Sentinel-2 Level-2A: names, native GSD, wavelengths, and the DN convention of the store.

In: nothing. Out: constants. May be imported from every room.
"""

from __future__ import annotations

from dataclasses import dataclass

# Of the instrument's MTF. Measured on images of known truth: 0.20 in the visible, which this makes of the published
# 0.26, costs least whether the true blur is 1.5 or 2.8 px of 2.5 m. At 60 m the published MTF stands: a lower one would
# ask for an inverse of wider reach than units can afford.
RESAMPLED_MTF = 0.77
GSDS_M: tuple[int, ...] = (10, 20, 60)


@dataclass(frozen=True)
class Band:
    """One spectral band of the MultiSpectral Instrument (MSI)."""

    name: str
    gsd_m: int  # native ground sampling distance
    wavelength_nm: float  # central wavelength, Sentinel-2A
    common_name: str  # STAC eo:bands common_name
    mtf: float  # modulation transfer at the Nyquist frequency of its own grid, optics and detector together

    @property
    def product_mtf(self) -> float:
        """MTF at that frequency as products show it, which are resampled onto the UTM grid."""
        return self.mtf * (RESAMPLED_MTF if self.gsd_m < max(GSDS_M) else 1.0)


# Central wavelengths: ESA Sentinel-2 User Handbook, spectral bands of S2A. MTF: ESA's Sentinel-2 data quality reports,
# as tabulated for the 12 bands by Ulfarsson et al. 2019 (S2Sharp, IEEE TGRS 57(9)).
BANDS: tuple[Band, ...] = (
    Band("B01", 60, 442.7, "coastal", 0.32),
    Band("B02", 10, 492.4, "blue", 0.26),
    Band("B03", 10, 559.8, "green", 0.28),
    Band("B04", 10, 664.6, "red", 0.24),
    Band("B05", 20, 704.1, "rededge071", 0.38),
    Band("B06", 20, 740.5, "rededge075", 0.34),
    Band("B07", 20, 782.8, "rededge078", 0.34),
    Band("B08", 10, 832.8, "nir", 0.26),
    Band("B8A", 20, 864.7, "nir08", 0.33),
    Band("B09", 60, 945.1, "nir09", 0.26),
    Band("B11", 20, 1613.7, "swir16", 0.22),
    Band("B12", 20, 2202.4, "swir22", 0.23),
)
BAND_NAMES: tuple[str, ...] = tuple(band.name for band in BANDS)
BY_NAME: dict[str, Band] = {band.name: band for band in BANDS}
RGB: tuple[str, ...] = ("B04", "B03", "B02")  # network order: red, green, blue

TARGET_GSD_M = 2.5
SCALE_10M = 4  # output pixels per 10 m pixel, along one axis
BLOCK_60M = 24  # output pixels per 60 m pixel, along one axis

# The DN convention of every cube and store here: processing baseline 04.00 and later,
# reflectance = DN * 1e-4 - 0.1, DN 0 = nodata (Sentinel-2 Products Specification Document, L2A quantification).
DN_SCALE = 1e-4
DN_OFFSET = -0.1
NODATA_DN = 0
NODATA_SPREAD = 65535  # of `uncertainty`, where 0 is a value: reflectance would have to spread over 6.5
HOUSE_ADD_OFFSET_DN = -1000  # BOA_ADD_OFFSET of that convention


def bands_at(gsd_m: int, names: tuple[str, ...] = BAND_NAMES) -> tuple[str, ...]:
    """Those of `names` whose native GSD is `gsd_m` (10, 20 or 60 m), in the order of `names`."""
    return tuple(name for name in names if BY_NAME[name].gsd_m == gsd_m)
