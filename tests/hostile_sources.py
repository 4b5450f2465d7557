"""Sources strewn with damaged and hostile files, and what has to become of each."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infra import masks, media
from pipelines.catalog import MediaConfig
from synth.sources.avs_synthetic import AvsSyntheticConfig
from tests import damaged_media, made_media
from tests.made_sources import CLASSES, HEIGHT, WIDTH, ellipse, write_coco, write_esc50
from tests.made_sources import write_vggsound as write_sound_vggsound

PICTURES, SOUNDS = (".jpg", ".png", ".webp"), (".flac", ".mp3", ".ogg", ".wav")
CROSSING = [10.0, 10.0, 60.0, 50.0, 60.0, 10.0, 10.0, 50.0]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Ids by what has to become of them, and whatever would be there if code had run."""

    media: MediaConfig
    refused: dict[str, str]
    """What has to be refused, with the kind of reason."""
    accepted: set[str]
    trap: Path


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def spoilt(data: bytes, decode: Any) -> list[bytes]:
    """The file cut off, and with a bit turned or worse, so that its decoder cannot do with it.

    A WAV or MP3 that ends early is read as far as it goes: of those just the head is left.
    """
    cuts = (data[: len(data) // 2], data[:30])
    damaged = list(damaged_media.damaged(data, 3, 100))
    return [
        next(d for d in some if not is_read(d, decode)) for some in (cuts, damaged[1::5] + damaged)
    ]


def is_read(data: bytes, decode: Any) -> bool:
    try:
        decode(data)
    except ValueError:
        return False
    return True


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def write_folder(folder: Path, trap: Path) -> tuple[dict[str, str], set[str]]:
    refused: dict[str, str] = {}
    accepted: set[str] = set()

    def good(path: str, data: bytes) -> None:
        write(folder / path, data)
        accepted.add(path)

    def bad(path: str, data: bytes, kind: str = "unreadable") -> None:
        write(folder / path, data)
        refused[path] = kind

    for number in range(10):
        good(f"backgrounds/made-{number}.png", media.encode_png(made_media.background(number)))
    for number, (name, (_, colour, pitch, _)) in enumerate(CLASSES.items()):
        shape = made_media.cut_out(colour, number)
        good(f"objects/{name}/plain.png", media.encode_png(shape))
        image = Image.fromarray(made_media.cut_out(colour, number, width=60))
        palette = image.quantize(16, method=Image.Quantize.FASTOCTREE)
        good(f"objects/{name}/palette.png", damaged_media.saved(palette, "PNG"))
        image = Image.fromarray(made_media.cut_out(colour, number, width=72))
        good(f"objects/{name}/grey-alpha.png", damaged_media.saved(image.convert("LA"), "PNG"))
        good(f"objects/{name}/plain.webp", damaged_media.saved(image, "WEBP", lossless=True))
        good(f"sounds/{name}/plain.wav", media.encode_wav(made_media.tone(pitch, seconds=1.1)))
        for turn, data in enumerate(spoilt(media.encode_png(shape), media.decode_image)):
            bad(f"objects/{name}/spoilt-{turn}.png", data)

    odd = damaged_media.pictures()
    for name in ("cmyk.jpg", "turned.jpg", "grey-16.png", "one-bit.png", "progressive.jpg"):
        good(f"backgrounds/{name}", odd[name])
    for name, data in odd.items():
        if name.endswith(PICTURES) and "animated" not in name:
            for turn, piece in enumerate(spoilt(data, media.decode_image)):
                bad(f"backgrounds/spoilt-{turn}-{name}", piece)
    for name, data in damaged_media.sounds().items():
        if name.endswith(SOUNDS):
            for turn, piece in enumerate(spoilt(data, media.decode_audio)):
                bad(f"sounds/dog/spoilt-{turn}-{name}", piece)
    hostile = damaged_media.hostile_pictures()
    for name in ("wide-and-high.png", "wide.png", "no-pixels.png", "large.jpg"):
        bad(f"backgrounds/{name}", hostile.pop(name))
    bad("backgrounds/pixel-bomb.png", hostile.pop("pixel-bomb.png"), "size")
    hostile |= damaged_media.hostile_sounds()
    for name, data in hostile.items():
        # These may be read within bounds: whichever it is, it has to be told.
        role = "backgrounds" if name.endswith(PICTURES) else "sounds/cat"
        write(folder / role / f"hostile-{name}", data)
    for name, data in damaged_media.not_media(str(trap)).items():
        bad(f"backgrounds/{name}.png", data)
        bad(f"objects/cat/{name}.png", data)
        bad(f"sounds/cat/{name}.wav", data)
    return refused, accepted


def write_hostile_coco(folder: Path, trap: Path) -> tuple[Any, dict[str, str], set[str]]:
    """The made COCO with photographs and annotations gone wrong."""
    source = write_coco(folder, photographs=24)
    refused: dict[str, str] = {}
    accepted: set[str] = set()

    def photograph(number: int) -> Path:
        return folder / "train2017" / f"{number:012d}.jpg"

    plain = Image.open(photograph(0)).convert("RGB")
    plain.load()
    write(photograph(0), damaged_media.saved(plain.convert("CMYK"), "JPEG"))
    # Masks count the pixels as they are stored, whatever the camera said of them.
    write(photograph(1), damaged_media.saved(Image.open(photograph(1)), "JPEG", exif=turned()))
    pieces = spoilt(photograph(2).read_bytes(), media.decode_image)
    code = damaged_media.not_media(str(trap))["pickle"]
    for number, data in zip((2, 3, 4), (*pieces, code), strict=True):
        write(photograph(number), data)
        refused[f"coco:train2017/{number:012d}.jpg"] = "unreadable"

    table = folder / "annotations" / "instances_train2017.json"
    document = json.loads(table.read_text())
    cat = CLASSES["cat"][0]
    other = masks.encode_mask_rle(np.ones((HEIGHT, WIDTH + 1), bool))
    shapes: list[tuple[Any, str]] = [
        ([[-900.0, -900.0, -850.0, -900.0, -850.0, -850.0]], "mask"),
        ([[]], "mask"),
        ([[4.0, 4.0, 9.0, 9.0]], "mask"),
        (other, "mask"),
        ({"size": [HEIGHT, WIDTH], "counts": [7, 9]}, "mask"),
        ({"size": [HEIGHT, WIDTH], "counts": "PPPPPPPPPPPP"}, "mask"),
        ({"size": [HEIGHT, WIDTH], "counts": [-4, HEIGHT * WIDTH + 4]}, "mask"),
        ([CROSSING], ""),
        ([[-50.0, 20.0, 60.0, 20.0, 60.0, 300.0, -50.0, 300.0]], ""),
        # Of these nothing is kept: they are counted.
        ([], "counted"),
        ([[float("nan"), 4.0, 9.0, 9.0, 3.0, 3.0]], "counted"),
        ("__import__('os')", "counted"),
    ]
    for number, (shape, kind) in enumerate(shapes, start=5_000):
        document["annotations"].append(
            {
                "id": number,
                "image_id": 1000 + 9,
                "category_id": cat,
                "iscrowd": 0,
                "segmentation": shape,
            }
        )
        if kind == "mask":
            refused[f"coco:instances_train2017-{number}"] = "mask"
        elif not kind:
            accepted.add(f"coco:instances_train2017-{number}")
    document["images"].append(
        {"id": 9_999, "file_name": "../../../etc/passwd", "height": 9, "width": 9}
    )
    document["annotations"].append(
        {"id": 9_999, "image_id": 9_999, "category_id": cat, "segmentation": [CROSSING]}
    )
    refused["coco:annotations/instances_train2017.json#9999"] = "path"
    table.write_text(json.dumps(document))
    return source, refused, accepted


def write_hostile_sounds(folder: Path, trap: Path) -> tuple[Any, Any, dict[str, str], set[str]]:
    """The made VGGSound and ESC-50 with clips and tables gone wrong."""
    vggsound = write_sound_vggsound(folder / "vggsound", clips=4, seconds=1.5)
    esc50 = write_esc50(folder / "esc50")
    refused: dict[str, str] = {}
    accepted: set[str] = set()
    lines = io.StringIO()
    table = csv.writer(lines)
    table.writerow(["youtube_id", "start_seconds", "label", "split"])  # joined to another's
    good = damaged_media.sounds()
    offered = {
        "-commaLabel": ("flac", media.encode_flac(made_media.tone(190.0, seconds=1.3))),
        "-soundMovie": ("mp4", good["aac.mp4"]),
        "-silentClip": ("wav", media.encode_wav(np.zeros(16_000, np.float32))),
        "-pickleClip": ("wav", damaged_media.not_media(str(trap))["pickle"]),
    }
    for turn, data in enumerate(spoilt(good["aac.mp4"], media.decode_audio)):
        offered[f"-cutMovie-{turn}"] = ("mp4", data)
    for video, (ending, data) in offered.items():
        label = "cattle, bovinae cowbell" if video == "-commaLabel" else "cow lowing"
        table.writerow([video, 30, label, "train"])
        name = f"{video}_000030.{ending}"
        write(folder / "vggsound" / name, data)
        if video in ("-commaLabel", "-soundMovie"):
            accepted.add(f"vggsound:{name}")
        else:
            kind = "silent" if video == "-silentClip" else "unreadable"
            refused[f"vggsound:{name}"] = kind
    table.writerow(["../../../../etc", 30, "cow lowing", "train"])
    table.writerow(["-soundMovie", "soon", "cow lowing", "train"])
    rows = 16 + len(offered)
    refused[f"vggsound:vggsound.csv row {rows + 1}"] = "row"
    refused[f"vggsound:vggsound.csv row {rows + 2}"] = "row"
    path = folder / "vggsound" / "vggsound.csv"
    path.write_text(path.read_text() + lines.getvalue() + '"a quote that nobody closed,30,cow\n')

    clips = sorted((folder / "esc50" / "audio").iterdir())
    pieces = spoilt(good["plain.flac"], media.decode_audio)
    for clip, data in zip(clips[:2], pieces, strict=True):
        clip.write_bytes(data)
        refused[f"esc50:audio/{clip.name}"] = "unreadable"
    path = folder / "esc50" / "meta" / "esc50.csv"
    header = path.read_text().splitlines()[0]
    climbing = "../../../etc/passwd,1,0,cat,False,9,A"
    path.write_text(f'{path.read_text()}{header}\n{climbing}\nx.wav,1,0,"cat, and dog",False,9,A\n')
    refused["esc50:meta/esc50.csv row 17"] = "path"
    return vggsound, esc50, refused, accepted


def write_avs_synthetic(folder: Path, trap: Path) -> tuple[Any, dict[str, str], set[str]]:
    """Two photographs, four masks and two sounds; the list of sounds is a program."""
    code = damaged_media.not_media(str(trap))["pickle"]
    lines = ["inst_id,img_id,width,height,cls_name,cls_id,dataset,split,audio_name"]
    small = np.zeros((HEIGHT, WIDTH), bool)
    image_HW3 = np.random.default_rng(5).integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    marked_HW = ellipse((20, 20, 90, 80))
    image_HW3[marked_HW] = CLASSES["dog"][1]
    write(folder / "images" / "good.jpg", media.encode_jpeg(image_HW3))
    write(folder / "images" / "code.jpg", code)
    files = {"whole": media.encode_png(marked_HW), "empty": media.encode_png(small), "code": code}
    files["cut"] = files["whole"][:60]
    for name, data in files.items():
        write(folder / "masks" / f"{name}.png", data)
        lines.append(f"{name},good,128,96,dog,3,lvis,test,aaaaaaaaaaa_000030")
    write(folder / "masks" / "other.png", files["whole"])
    lines.append("other,code,128,96,dog,3,lvis,test,bbbbbbbbbbb_000030")
    lines.append("../../etc/passwd,good,128,96,dog,3,lvis,test,aaaaaaaaaaa_000030")
    write(folder / "annotations.csv", "\n".join([*lines, lines[0]]).encode())
    write(
        folder / "audios" / "aaaaaaaaaaa_000030.wav",
        media.encode_wav(made_media.tone(310.0, seconds=1.2)),
    )
    write(folder / "audios" / "bbbbbbbbbbb_000030.wav", code)
    write(folder / "category_for_vggsound_audios.pkl", code)
    refused = {
        "avs_synthetic:images/code.jpg": "unreadable",
        "avs_synthetic:audios/bbbbbbbbbbb_000030.wav": "unreadable",
        "avs_synthetic:annotations.csv:7": "path",
        "avs_synthetic:category_for_vggsound_audios.pkl": "unreadable",
        **{f"avs_synthetic:{name}": "mask" for name in ("empty", "code", "cut")},
    }
    accepted = {"avs_synthetic:whole", "avs_synthetic:audios/aaaaaaaaaaa_000030.wav"}
    return AvsSyntheticConfig(folder=str(folder)), refused, accepted


def write_tree(folder: Path) -> Tree:
    """All of the sources below, in folders of their own."""
    trap = folder / "code ran"
    own, own_good = write_folder(folder / "media", trap)
    coco, coco_bad, coco_good = write_hostile_coco(folder / "coco", trap)
    vggsound, esc50, sounds_bad, sounds_good = write_hostile_sounds(folder, trap)
    avs, avs_bad, avs_good = write_avs_synthetic(folder / "avs", trap)
    return Tree(
        media=MediaConfig(
            folder=str(folder / "media"),
            coco=coco,
            vggsound=vggsound,
            esc50=esc50,
            avs_synthetic=avs,
        ),
        refused=own | coco_bad | sounds_bad | avs_bad,
        accepted=own_good | coco_good | sounds_good | avs_good,
        trap=trap,
    )
