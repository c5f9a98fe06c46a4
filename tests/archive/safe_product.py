"""A Sen2Cor product (SAFE) of 1.2 km: JPEG 2000 at all resolutions, quality masks, metadata."""

import shutil

import rasterio

from pipeline.bands import BY_NAME, SCL
from tests.archive.synthetic import make_scene

PRODUCT = "S2B_MSIL2A_20240617T101559_N0510_R065_T32TMS_20240617T130000"
SIDE = 1200


XML = """<?xml version="1.0"?><n1:Level-2A_User_Product xmlns:n1="urn:x"><General_Info>
<PRODUCT_START_TIME>2024-06-17T10:15:59.024Z</PRODUCT_START_TIME><PRODUCT_URI>{uri}.SAFE</PRODUCT_URI>
<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE><BOA_QUANTIFICATION_VALUE>{quantum}</BOA_QUANTIFICATION_VALUE>
{offsets}<Cloud_Coverage_Assessment>3.25</Cloud_Coverage_Assessment></General_Info></n1:Level-2A_User_Product>"""
OFFSETS = "".join(f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13))


def safe(tmp_path, baseline="05.10", offsets=OFFSETS, quantum=10000, stored=-1000):
    """Write the product; `stored` is the offset that its pixels carry. Returns its folder."""
    made = make_scene(tmp_path, scene_id="raw", size_m=SIDE, offset_dn=stored)
    root = tmp_path / f"{PRODUCT}.SAFE"
    granule = root / "GRANULE" / "L2A_T32TMS_A038058_20240617T101600"
    for band, href in made.hrefs.items():
        native = 20 if band == SCL else BY_NAME[band].gsd_m
        for gsd_m in {native, 20, 60} - ({20} if native == 60 or band == "B08" else set()):
            with rasterio.open(href) as source:
                side = SIDE // gsd_m
                image, profile = source.read(out_shape=(1, side, side)), source.profile
            target = granule / "IMG_DATA" / f"R{gsd_m}m" / f"T32TMS_20240617T101559_{band}_{gsd_m}m.jp2"
            target.parent.mkdir(parents=True, exist_ok=True)
            kept = {"count": 1, "dtype": profile["dtype"], "crs": profile["crs"], "width": side, "height": side}
            grid = rasterio.Affine(gsd_m, 0, 600000, 0, -gsd_m, 5100000)
            with rasterio.open(
                target, "w", driver="JP2OpenJPEG", transform=grid, QUALITY=100, REVERSIBLE="YES", **kept
            ) as jp2:
                jp2.write(image)
    masks = granule / "QI_DATA"
    masks.mkdir()
    shutil.copy(granule / "IMG_DATA/R10m/T32TMS_20240617T101559_B02_10m.jp2", masks / "MSK_DETFOO_B02.jp2")
    shutil.rmtree(tmp_path / "raw")
    (root / "MTD_MSIL2A.xml").write_text(XML.format(uri=PRODUCT, baseline=baseline, offsets=offsets, quantum=quantum))
    (granule / "MTD_TL.xml").write_text("<a><SENSING_TIME>2024-06-17T10:20:31.5Z</SENSING_TIME></a>")
    return root
