"""Open Images' tables and folders, as published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra import media
from synth.looking import build_catalog
from synth.sources import Offer, open_images
from synth.sources.open_images import OpenImagesConfig, candidates
from synth.tables import Annotation, Candidate
from synth.taxonomy import Labels
from tests.made_sources import check_masks, write_esc50, write_open_images

DOG, CAT, CAR, CAB, CHAIR = "/m/0bt9lr", "/m/01yrx", "/m/0k4j", "/m/0pg52", "/m/01mzpv"
KITCHEN, STREET, YARD = "677c122b0eaa5d16", "0cddfe521cf926bf", "fe600639ae4b3b6c"
HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
CLICKS = "0.95498 0.65197 1;0.89370 0.56579 1;0.94701 0.48968 0"
PHOTOGRAPHS = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,"
    "OriginalSize,OriginalMD5,Thumbnail300KURL,Rotation"
)


def mask_name(image: str, label: str, box: str) -> str:
    return f"{image}_{label.replace('/', '')}_{box}.png"


def row(image: str, label: str, box: str) -> str:
    name = mask_name(image, label, box)
    return f"{name},{image},{label},{box},0.8875,0.960938,0.454167,0.720833,0.86864,{CLICKS}"


ROWS = [
    row(STREET, DOG, "9a041d52"),
    row(KITCHEN, CAT, "11111111"),
    row(STREET, CHAIR, "22222222"),
    row(YARD, DOG, "33333333"),
    row(STREET, CAR, "44444444"),
]


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_tree(folder: Path, rows: list[str], *, by_digit: bool = False) -> None:
    """The train split; ``by_digit`` unpacks the masks as ``train-masks-0/``, ``-1/`` ..."""
    write(folder / "train-annotations-object-segmentation.csv", "\n".join([HEADER, *rows]) + "\n")
    mask = media.encode_png(np.eye(24, dtype=np.bool_))
    for line in ROWS:
        name = line.split(",")[0]
        below = f"train-masks-{name[0]}/{name}" if by_digit else name
        write(folder / "train-masks" / below, mask)
    for image in (KITCHEN, STREET, YARD):
        photograph = media.encode_jpeg(np.full((48, 64, 3), 90, np.uint8))
        write(folder / "train" / f"{image}.jpg", photograph)


def read(folder: Path, labels: Labels | None = None) -> list[Candidate]:
    return list(candidates(OpenImagesConfig(folder=str(folder)), labels or Labels("openimages")))


def test_objects_are_gathered_by_photograph(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    labels = Labels("openimages")
    found = read(tmp_path, labels)
    assert [c.path for c in found] == [f"train/{i}.jpg" for i in (STREET, KITCHEN, YARD)]
    dog, car = mask_name(STREET, DOG, "9a041d52"), mask_name(STREET, CAR, "44444444")
    assert found[0] == Candidate(
        role="annotated",
        source="open_images",
        root="open_images",
        path=f"train/{STREET}.jpg",
        licence="CC BY 2.0",
        origin=STREET,
        annotations=(
            Annotation(id=dog[:-4], class_name="dog", mask_path=f"train-masks/{dog}"),
            Annotation(id=car[:-4], class_name="car", mask_path=f"train-masks/{car}"),
        ),
    )
    assert labels.unknown == {CHAIR: 1}


def test_masks_unpacked_zip_by_zip_are_found(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS, by_digit=True)
    found = read(tmp_path)
    paths = [a.mask_path for c in found for a in c.annotations]
    assert f"train-masks/train-masks-0/{mask_name(STREET, DOG, '9a041d52')}" in paths
    assert f"train-masks/train-masks-f/{mask_name(YARD, DOG, '33333333')}" in paths
    assert all((tmp_path / path).is_file() for path in paths) and len(paths) == 4


def test_only_classes_asked_for_are_read(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    labels = Labels("openimages", classes=["cat"])
    found = read(tmp_path, labels)
    assert [[a.class_name for a in c.annotations] for c in found] == [["cat"]]
    assert labels.unknown == {CHAIR: 1}


def test_licence_author_and_page_come_from_the_table_of_photographs(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    write(
        tmp_path / "train-images-boxable-with-rotation.csv",
        f"{PHOTOGRAPHS}\n"
        f"{STREET},train,https://c3.staticflickr.com/a_o.jpg,https://www.flickr.com/photos/x/1,"
        "https://creativecommons.org/licenses/by/2.0/,https://www.flickr.com/people/x/,"
        '"Doe, ""Jo""","A street, at night",494555,9IzEn38GRNsVpATuv7gzEA==,'
        "https://c1.staticflickr.com/z.jpg?zz=1,0.0\n"
        "ffffffffffffffff,train,,,https://example.org/other/,,Somebody,,,,,\n",
    )
    street, kitchen, _ = read(tmp_path)
    assert (street.licence, street.author) == ("CC BY 2.0", 'Doe, "Jo"')
    assert street.origin == "https://www.flickr.com/photos/x/1"
    assert (kitchen.licence, kitchen.author, kitchen.origin) == ("CC BY 2.0", "", KITCHEN)


def test_a_class_is_absent_where_all_its_labels_were_denied(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    car_labels = Labels("openimages").names_of("car")
    assert CAR in car_labels and CAB in car_labels
    lines = [
        "ImageID,Source,LabelName,Confidence",
        *(f"{KITCHEN},verification,{label},0" for label in car_labels),
        f"{KITCHEN},verification,{DOG},0.0",
        f"{KITCHEN},verification,{CAT},0",  # a mask says otherwise
        f"{KITCHEN},verification,{CHAIR},0",
        f"{YARD},crowdsource-verification,{CAB},0",
        f"{YARD},verification,{CAT},1",
        f"{STREET},verification,{CAT},no number",
        f"0000000000000000,verification,{CAT},0",
    ]
    write(tmp_path / "train-annotations-human-imagelabels-boxable.csv", "\n".join(lines))
    labels = Labels("openimages")
    street, kitchen, yard = read(tmp_path, labels)
    assert kitchen.absent == ("car", "dog")
    assert street.absent == yard.absent == ()
    assert labels.unknown == {CHAIR: 1}  # the mask alone


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    write_tree(tmp_path, [*ROWS, ROWS[0]])
    (tmp_path / "train" / f"{YARD}.jpg").unlink()
    (tmp_path / "train-masks" / mask_name(STREET, CAR, "44444444")).unlink()
    (tmp_path / "train-masks" / mask_name(KITCHEN, CAT, "11111111")).unlink()
    labels = Labels("openimages")
    (street,) = read(tmp_path, labels)
    assert [a.class_name for a in street.annotations] == ["dog"]
    assert street.partial == ("car",)
    assert labels.left_out == {
        "mask given twice": 1,
        "no image file": 1,
        "no mask file": 2,
        "no table train-images-boxable-with-rotation.csv": 1,
        "no table train-annotations-human-imagelabels-boxable.csv": 1,
    }


def test_a_mask_of_which_rows_differ_is_not_taken_whichever_comes_first(tmp_path: Path) -> None:
    differing = [
        ROWS[0].replace(DOG, CAT),  # by its name a dog's
        ROWS[3].replace(f",{YARD},", f",{STREET},"),
        ROWS[1],
        ROWS[4].replace(CAR, CHAIR),  # of no class here
    ]
    denied = [f"{STREET},verification,{label},0" for label in (CAT, *all_labels("horse"))]
    lines = ["ImageID,Source,LabelName,Confidence", *denied]
    found = []
    for number, rows in enumerate(([*ROWS, *differing], [*differing, *ROWS][::-1])):
        folder = tmp_path / str(number)
        write_tree(folder, rows)
        write(folder / "train-annotations-human-imagelabels-boxable.csv", "\n".join(lines))
        labels = Labels("openimages")
        found.append(read(folder, labels))
        assert labels.left_out["mask of which rows differ"] == 4
        assert labels.left_out["mask given twice"] == 1
        assert labels.left_out["no mask file"] == 0
    street, kitchen = found[0]
    assert [a.class_name for a in street.annotations] == ["car"]
    assert [a.class_name for a in kitchen.annotations] == ["cat"]
    # A cat may be there.
    assert street.absent == ("horse",)
    assert "cat" in street.partial and "car" not in street.partial
    assert found[0] == found[1]


def all_labels(class_name: str) -> tuple[str, ...]:
    return Labels("openimages").names_of(class_name)


def test_a_licence_of_which_rows_differ_is_not_stated_whichever_comes_first(
    tmp_path: Path,
) -> None:
    write_tree(tmp_path, ROWS)
    by = "https://creativecommons.org/licenses/by/2.0/"
    lines = [
        f"{STREET},train,,https://example.org/1,{by},,A,,,,,",
        f"{STREET},train,,https://example.org/1,{by[:-8]}-nc-nd/2.0/,,A,,,,,",
        f"{STREET},train,,https://example.org/1,{by},,A,,,,,",
        f"{YARD},train,,https://example.org/2,{by},,B,,,,,",
        f"{YARD},train,,https://example.org/2,{by},,B,,,,,",
    ]
    for order in (1, -1):
        # Where such a table is damaged, it holds up to there.
        rows = [PHOTOGRAPHS, *lines[::order], "\0"]
        write(tmp_path / "train-images-boxable-with-rotation.csv", "\n".join(rows))
        labels = Labels("openimages")
        _, street, _, yard = read(tmp_path, labels)
        assert (street.licence, street.author, street.origin) == ("not stated", "", STREET)
        assert (yard.licence, yard.author) == ("CC BY 2.0", "B")
        assert labels.left_out["licence of which rows differ"] == 1


def test_masks_of_a_catalog_are_those_that_were_drawn(tmp_path: Path) -> None:
    source, drawn = write_open_images(tmp_path)
    offer = Offer(None, {"open_images": source, "esc50": write_esc50(tmp_path / "esc50")})
    catalog = build_catalog(offer.roots, offer)
    assert list(catalog.refused) == []
    check_masks(catalog, drawn)


def test_rows_that_cannot_be_used_are_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    write(secret, b"")
    bad = [
        "",
        HEADER,
        f"../../secret.png,{STREET},{DOG},1,0,1,0,1,0.9,",
        f"{mask_name(STREET, DOG, 'aaaaaaaa')},../{STREET},{DOG},1,0,1,0,1,0.9,",
        f"/etc/passwd,{STREET},{DOG},1,0,1,0,1,0.9,",
        f"x.png,,{DOG}",
        "only",
        f'"{mask_name(YARD, DOG, "bbbbbbbb")},{YARD},{DOG},unclosed',
    ]
    write_tree(tmp_path / "oi", [*ROWS[:2], *bad, *ROWS[2:]])
    found = read(tmp_path / "oi")
    refused = [c for c in found if c.refusal]
    assert [c.refusal.split(":")[0] for c in refused] == ["path"] * 3 + ["row"] * 3
    assert "'../../secret.png'" in refused[0].refusal
    assert all(c.licence and not c.annotations for c in refused)
    assert sum(len(c.annotations) for c in found) == 4


@pytest.mark.parametrize(
    "name",
    [
        "train-images-boxable-with-rotation.csv",
        "train-annotations-human-imagelabels-boxable.csv",
    ],
)
@pytest.mark.parametrize(
    "content", [b"\x89PNG\0", b"a,b\n1,2\n", f"ImageID,Source\n{YARD},x\n".encode()]
)
def test_a_damaged_table_that_may_be_missing_is_refused_and_the_rest_is_read(
    tmp_path: Path, name: str, content: bytes
) -> None:
    write_tree(tmp_path, ROWS)
    whole = read(tmp_path)
    write(tmp_path / name, content)
    refused, *rest = read(tmp_path)
    assert rest == whole
    assert refused.uri == f"open_images:{name}"
    assert refused.refusal.startswith(f"unreadable: {name}")
    assert str(tmp_path) not in refused.refusal


def test_another_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    boxes = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n"
    write(tmp_path / "train-annotations-object-segmentation.csv", boxes)
    with pytest.raises(ValueError, match=r"train-annotations-object-segmentation\.csv"):
        read(tmp_path)
    (tmp_path / "train-annotations-object-segmentation.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"object-segmentation\.csv does not exist"):
        read(tmp_path)
    write_tree(tmp_path, ROWS)
    with pytest.raises(ValueError, match="leads out of"):
        list(
            candidates(
                OpenImagesConfig(folder=str(tmp_path), masks="../elsewhere"), Labels("openimages")
            )
        )


def test_nothing_is_left_behind_when_the_reader_is_given_up(tmp_path: Path) -> None:
    write_tree(tmp_path, ROWS)
    before = sorted(tmp_path.rglob("*"))
    reader = candidates(OpenImagesConfig(folder=str(tmp_path)), Labels("openimages"))
    assert next(reader).source == open_images.NAME
    reader.close()
    assert sorted(tmp_path.rglob("*")) == before
