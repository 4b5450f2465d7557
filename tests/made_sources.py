"""Small trees in the layouts of COCO, Open Images, AVS-Synthetic, VGGSound and ESC-50, for tests.

All masks are true. A class is the colour of its ellipses and the pitch of its tone, as in
``made_media``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infra import masks, media, storage
from synth.assets import mask_of
from synth.catalog import Catalog
from synth.looking import build_catalog
from synth.sources import Offer
from synth.sources.avs_synthetic import AvsSyntheticConfig
from synth.sources.coco import CocoConfig
from synth.sources.esc50 import Esc50Config
from synth.sources.open_images import OpenImagesConfig
from synth.sources.vggsound import VggSoundConfig
from synth.taxonomy import Labels
from tests.made_media import tone

Box = tuple[int, int, int, int]

# class -> (COCO's category id, colour, pitch in Hz, VGGSound's label)
CLASSES: dict[str, tuple[int, tuple[int, int, int], float, str]] = {
    "cat": (17, (220, 40, 40), 440.0, "cat meowing"),
    "cow": (21, (40, 200, 60), 180.0, "cow lowing"),
    "dog": (18, (50, 80, 230), 300.0, "dog barking"),
    "sheep": (20, (230, 210, 40), 900.0, "sheep bleating"),
}
PERSON = 1
HEIGHT, WIDTH = 96, 128
LICENCES = ("Attribution License", "Attribution-NonCommercial License")
# Where the objects are in the photographs of Open Images and AVS-Synthetic.
PLACES: tuple[Box, Box] = ((8, 8, 56, 44), (70, 50, 120, 90))


def ellipse(box: Box, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """bool ``[height, width]``: an ellipse that fills left, top, right, bottom.

    ``box`` is in pixels of a photograph; the mask may have another grid over it.
    """
    rows, columns = np.mgrid[:height, :width]
    left, top, right, bottom = box
    across = ((2 * columns + 1) * WIDTH / width - left - right) / (right - left)
    down = ((2 * rows + 1) * HEIGHT / height - top - bottom) / (bottom - top)
    return np.asarray(across**2 + down**2 <= 1)


def photograph(number: int, shown: Iterable[tuple[str, Box]]) -> bytes:
    """A JPEG of grey noise with an ellipse in its colour for each class and box."""
    rng = np.random.default_rng(number)
    image_HW3 = rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for class_name, box in shown:
        image_HW3[ellipse(box)] = CLASSES[class_name][1]
    return media.encode_jpeg(image_HW3)


def check_masks(catalog: Catalog, drawn: Mapping[str, Box]) -> None:
    """Each object of a catalog, by its id, has the mask that was drawn, and its colour there."""
    assert set(catalog.objects.texts("id")) == drawn.keys()
    for row in catalog.objects:
        mask_HW = masks.decode_mask_rle(mask_of(row))
        assert np.array_equal(mask_HW, ellipse(drawn[row.id])), row.id
        image_HW3 = media.decode_image(storage.read_bytes(catalog.uri_of(row)), upright=False)
        box = slice(row.top, row.bottom), slice(row.left, row.right)
        far_HW = np.abs(image_HW3[box].astype(int) - CLASSES[row.class_name][1]).max(-1)
        coloured_HW, inside_HW = far_HW < 60, mask_HW[box]
        both = (coloured_HW & inside_HW).sum() / (coloured_HW | inside_HW).sum()
        assert both > 0.9, (row.id, both)


def write_coco(folder: Path, *, photographs: int = 30) -> CocoConfig:
    """``annotations/instances_train2017.json`` and ``train2017/*.jpg``.

    Photograph k shows one object of class k mod 4; every third also one of the next class, every
    fifth a second one of the same class in another instance, and every seventh a crowd of it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = sorted(CLASSES)
    for number in range(photographs):
        images.append(
            {
                "id": 1000 + number,
                "file_name": f"{number:012d}.jpg",
                "height": HEIGHT,
                "width": WIDTH,
                "license": 1 + number % 2,
                "flickr_url": f"http://farm.example/{number}.jpg",
            }
        )
        name = names[number % 4]
        shown = [(name, (8, 8, 56, 44), 0)]
        if number % 3 == 0:
            shown.append((names[(number + 1) % 4], (70, 50, 120, 90), 0))
        if number % 5 == 0:
            shown.append((name, (72, 6, 116, 40), 0))
        if number % 7 == 0:
            shown.append((name, (6, 60, 50, 92), 1))
        for class_name, box, crowd in shown:
            category = CLASSES[class_name][0]
            annotations.append(
                _annotation(len(annotations), 1000 + number, category, ellipse(box), crowd)
            )
        picture = photograph(number, [(class_name, box) for class_name, box, _ in shown])
        _write(folder / "train2017" / f"{number:012d}.jpg", picture)
    categories = [{"id": row[0], "name": name} for name, row in CLASSES.items()]
    document = {
        "info": {"year": 2017},
        "licenses": [{"id": 1 + i, "name": name, "url": ""} for i, name in enumerate(LICENCES)],
        "images": images,
        "annotations": annotations,
        "categories": [*categories, {"id": PERSON, "name": "person"}],
    }
    table = folder / "annotations" / "instances_train2017.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps(document))
    return CocoConfig(folder=str(folder))


def _annotation(
    number: int, image: int, category: int, mask_HW: np.ndarray, crowd: int
) -> dict[str, Any]:
    coded = masks.encode_mask_rle(mask_HW)
    if crowd:
        # As published: a crowd's run lengths are a list of numbers.
        flat = mask_HW.flatten(order="F").astype(np.int8)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
        counts = np.diff(np.concatenate([[0], edges])).tolist()
        coded = {"size": coded["size"], "counts": counts}
    left, top, width, height = masks.bounding_box(masks.encode_mask_rle(mask_HW))
    return {
        "id": 1 + number,
        "image_id": image,
        "category_id": category,
        "iscrowd": crowd,
        "area": int(mask_HW.sum()),
        "bbox": [left, top, width, height],
        "segmentation": coded,
    }


def two_objects(number: int) -> list[tuple[str, Box]]:
    """What a photograph of Open Images or AVS-Synthetic shows: two classes, and where."""
    names = sorted(CLASSES)
    return [(names[(number + k) % 4], place) for k, place in enumerate(PLACES)]


def write_open_images(folder: Path) -> tuple[OpenImagesConfig, dict[str, Box]]:
    """Four photographs, and their masks three times as large; by id where each object is."""
    rows = ["MaskPath,ImageID,LabelName,BoxID"]
    drawn: dict[str, Box] = {}
    for number in range(4):
        image = f"{number:016x}"
        _write(folder / "train" / f"{image}.jpg", photograph(number, two_objects(number)))
        for class_name, box in two_objects(number):
            label = Labels("openimages").names_of(class_name)[0]
            name = f"{image}_{label.replace('/', '')}_{len(drawn):08x}"
            rows.append(f"{name}.png,{image},{label},{len(drawn):08x}")
            mask = media.encode_png(ellipse(box, 3 * WIDTH, 3 * HEIGHT))
            _write(folder / f"train-masks/train-masks-{number}/{name}.png", mask)
            drawn[f"open_images:{name}"] = box
    table = folder / "train-annotations-object-segmentation.csv"
    _write(table, "\n".join(rows).encode())
    return OpenImagesConfig(folder=str(folder)), drawn


def write_avs_synthetic(folder: Path) -> tuple[AvsSyntheticConfig, dict[str, Box]]:
    """Four photographs, every other of Open Images, with a sound for each; by id where each is."""
    rows = ["inst_id,img_id,width,height,cls_name,cls_id,dataset,split,audio_name"]
    drawn: dict[str, Box] = {}
    for number in range(4):
        dataset = ("lvis", "openimages")[number % 2]
        sounding, _ = two_objects(number)[0]
        audio = f"{video_id(sounding, number)}_000030"
        sound = media.encode_wav(tone(CLASSES[sounding][2], seconds=1.0))
        _write(folder / "audios" / f"{audio}.wav", sound)
        _write(folder / "images" / f"{number}.jpg", photograph(number, two_objects(number)))
        for class_name, box in two_objects(number):
            name = f"{dataset}_{len(drawn)}"
            heard = audio if class_name == sounding else ""
            rows.append(f"{name},{number},{WIDTH},{HEIGHT},{class_name},1,{dataset},test,{heard}")
            _write(folder / "masks" / f"{name}.png", media.encode_png(ellipse(box)))
            drawn[f"avs_synthetic:{name}"] = box
    _write(folder / "annotations.csv", "\n".join(rows).encode())
    return AvsSyntheticConfig(folder=str(folder), sound_lists=""), drawn


def video_id(class_name: str, number: int) -> str:
    """Eleven characters like a YouTube id."""
    return f"-made{class_name[:3]}{number:03d}"


def write_vggsound(folder: Path, *, clips: int = 8, seconds: float = 3.0) -> VggSoundConfig:
    """``vggsound.csv`` without a header, and ``{id}_{start}.flac``."""
    rows = io.StringIO()
    table = csv.writer(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, _, pitch, label) in CLASSES.items():
        for number in range(clips):
            video = video_id(name, number)
            table.writerow([video, 30, label, "train"])
            wave_N = tone(pitch * 1.01**number, seconds=seconds)
            wave_N[: wave_N.size // 2] *= 0.05
            (folder / f"{video}_000030.flac").write_bytes(media.encode_flac(wave_N))
    (folder / "vggsound.csv").write_text(rows.getvalue())
    return VggSoundConfig(folder=str(folder))


def write_esc50(folder: Path, *, clips: int = 4) -> Esc50Config:
    """``meta/esc50.csv`` and ``audio/*.wav``; dog's clips belong to ESC-10."""
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for target, (name, (_, _, pitch, _)) in enumerate(CLASSES.items()):
        for number in range(clips):
            filename, clip = f"1-{1000 + number}-A-{target}.wav", 1000 * target + number
            lines.append(f"{filename},1,{target},{name},{name == 'dog'},{clip},A")
            sound = media.encode_wav(tone(pitch * 1.03 ** (1 + number), seconds=1.2))
            (folder / "audio" / filename).write_bytes(sound)
    (folder / "meta").mkdir(exist_ok=True)
    (folder / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return Esc50Config(folder=str(folder))


def natural_offer(folder: Path) -> Offer:
    """COCO's photographs with the sounds of VGGSound and ESC-50."""
    return Offer(
        None,
        {
            "coco": write_coco(folder / "coco"),
            "vggsound": write_vggsound(folder / "vggsound"),
            "esc50": write_esc50(folder / "esc50"),
        },
    )


def natural_catalog(folder: Path) -> Catalog:
    """The catalog of ``natural_offer``; no Ray."""
    offer = natural_offer(folder)
    return build_catalog(offer.roots, offer)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
