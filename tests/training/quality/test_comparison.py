"""The table that puts several super-resolvers side by side."""

from training.quality.comparison import comparison
from training.quality.tables import Record, Section

METHODS = {"bicubic": 20.0, "IBP": 21.0, "stored bicubic: mean, sensor": 20.5}


def section(name, psnr, images=((0, "towns"), (1, "towns"), (2, "fields")), system="lite"):
    methods = {**METHODS, f"{system}, network alone": psnr + 0.5, f"stored {system}: mean, sensor": psnr,
               f"stored {system}: mean, box": 0.0}  # fmt: skip
    records = [
        Record("quality", source, f"{source}/{index}", index, method, {"PSNR": value + index, "SAM": 2.0})
        for index, source in images
        for method, value in methods.items()
    ]
    return Section(f"{name}: PSNR", "", records, name)


def rows_of(found):
    (only,) = found
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in only.text.splitlines() if line.startswith("|")]


def test_all_are_compared_and_baselines_stand_once():
    head, _, *rows = rows_of(comparison([section("a", 23.0), section("b", 22.0), Section("other", "")]))
    assert head == ["", "PSNR", "SSIM", "SAM", "gradient", "over IBP", "towns, PSNR", "fields, PSNR"]
    assert [row[0] for row in rows] == ["bicubic", "IBP", "a", "a, network alone", "b", "b, network alone"]
    assert rows[2] == ["a", "24.25", "null", "2.00", "null", "+2.00", "23.50", "25.00"]
    assert rows[4][5] == "+1.00"


def test_only_images_that_all_have_count():
    few = section("b", 22.0, images=((0, "towns"),))
    (found,) = comparison([section("a", 23.0), few])
    assert "1 image that all were judged on" in found.text
    assert "| a | 23.00 |" in found.text
    nothing = comparison([section("a", 23.0), section("b", 22.0, images=((7, "towns"),))])
    assert "judged on different images" in nothing[0].text


def test_one_alone_is_not_compared():
    assert comparison([section("a", 23.0)]) == []
    assert comparison([]) == []
