"""Media -> catalog: every picture and sound is looked at and put into a table or refused."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from infra import cluster, config, storage
from synth.catalog import Catalog
from synth.distribute import map_rows
from synth.looked import Looked
from synth.looking import build_catalog, digest_of_offer, look_again
from synth.sources import READERS, Offer, debian_media
from synth.sources.audioset import AudioSetConfig
from synth.sources.avs_synthetic import AvsSyntheticConfig
from synth.sources.coco import CocoConfig
from synth.sources.esc50 import Esc50Config
from synth.sources.fsd50k import Fsd50kConfig
from synth.sources.lvis import LvisConfig
from synth.sources.open_images import OpenImagesConfig
from synth.sources.vggsound import VggSoundConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MediaConfig:
    """Where pictures and sounds come from; with nothing named, from Debian packages."""

    folder: str | None = None
    """A folder or s3:// prefix with objects/<class>/*.png (cut-outs), sounds/<class>/*.wav and
    backgrounds/*.jpg. Without one and without another source, photographic cut-outs, sounds and
    backgrounds are downloaded from Debian packages into the media cache."""
    debian: bool = False
    """Use the Debian packages beside the sources below."""
    lvis: LvisConfig | None = None
    """LVIS v1: photographs with masks."""
    coco: CocoConfig | None = None
    """COCO instances: photographs with masks."""
    open_images: OpenImagesConfig | None = None
    """Open Images segmentation: photographs with masks."""
    avs_synthetic: AvsSyntheticConfig | None = None
    """AVS-Synthetic (Zenodo 8125822): photographs with masks, and sounds."""
    vggsound: VggSoundConfig | None = None
    """VGGSound: sounds."""
    audioset: AudioSetConfig | None = None
    """AudioSet: sounds."""
    esc50: Esc50Config | None = None
    """ESC-50: sounds."""
    fsd50k: Fsd50kConfig | None = None
    """FSD50K: sounds."""

    def __post_init__(self) -> None:
        if self.debian and self.folder is not None:
            raise ValueError(
                "media.debian and media.folder are both given: copy your media beside those of "
                "the media cache, or leave one out"
            )


def check_parallelism(parallelism: int | None) -> None:
    """ValueError where no task could run."""
    if parallelism is not None and parallelism < 1:
        raise ValueError(f"parallelism is {parallelism}: use at least 1, or null for all CPUs")


@dataclass(frozen=True, kw_only=True)
class CatalogConfig:
    """The catalog job."""

    uri: str
    """Where the catalog goes: a path, file:// or s3:// URI."""
    media: MediaConfig = field(default_factory=MediaConfig)
    """Where pictures and sounds come from."""
    retry_refused: bool = False
    """Look again at what the catalog that stands there refused, and at nothing else."""
    parallelism: int | None = None
    """Files looked at at once; all CPUs of the cluster by default."""

    def __post_init__(self) -> None:
        check_parallelism(self.parallelism)


def find_media(media: MediaConfig) -> Offer:
    """What there is to look at; media from Debian packages are fetched where need be.

    Raises:
        ValueError: they would lie on this machine, and the tasks of the cluster run on others.
    """
    sources = {name: getattr(media, name) for name in READERS if getattr(media, name) is not None}
    folder = media.folder
    alone = cluster.works_here_alone()
    if media.debian or (folder is None and not sources):
        cache = storage.cache_folder()
        # A cache that a person has named may be a disk that all machines share.
        if not alone and not os.environ.get("SAVE_CACHE"):
            raise ValueError(
                f"the media from Debian packages would lie in {cache / 'media'} on this machine "
                "alone, and the tasks of this cluster run on others: run pipelines/catalog.py "
                "without a cluster to fetch them, copy that folder to s3:// or to a disk that all "
                "machines share, and name it with --media.folder; or set SAVE_CACHE to such a disk"
            )
        folder = str(debian_media.fetch(cache, progress=logger.info))
    offer = Offer(folder, sources)
    local = sorted(uri for uri in offer.roots.values() if not uri.startswith("s3://"))
    if local and not alone:
        logger.warning(
            "the tasks of this cluster run on other machines, which have to see %s as well: use a "
            "disk that all of them share, or s3://",
            ", ".join(local),
        )
    return offer


def look_at_media(
    media: MediaConfig,
    parallelism: int | None = None,
    *,
    destination: str | None = None,
    standing: str | None = None,
    retry_refused: bool = False,
) -> Catalog:
    """The catalog of all media, for whoever wants to write it.

    Args:
        destination: where it is going to be written: there is kept what was looked at so far,
            should this run be interrupted. Without one nothing is written.
        standing: where a catalog may stand that an earlier run made. It is taken as it is when
            the same files are offered still.
        retry_refused: look again at what that catalog refused.
    """
    offer = find_media(media)
    spread = partial(map_rows, parallelism=parallelism)
    if standing is not None:
        try:
            earlier = Catalog.read(standing)
        except (FileNotFoundError, ValueError):
            earlier = None
        if earlier is not None and earlier.offered == digest_of_offer(offer):
            if not retry_refused:
                logger.info("the catalog at %s serves: the same files are offered", standing)
                return earlier
            return look_again(earlier, offer, map_rows=spread)
    logger.info("looking at the files of %s", ", ".join(offer.roots.values()))
    # What an earlier run refused is in its batches too.
    looked = None if destination is None or retry_refused else Looked(destination)
    return build_catalog(offer.roots, offer, map_rows=spread, looked=looked)


def make_catalog(job: CatalogConfig) -> Catalog:
    """Look at all media and write the catalog to ``job.uri``."""
    catalog = look_at_media(
        job.media,
        job.parallelism,
        destination=job.uri,
        standing=job.uri if job.retry_refused else None,
        retry_refused=job.retry_refused,
    )
    catalog.write(job.uri)
    return catalog


def run(job: CatalogConfig) -> dict[str, Any]:
    """Look at every picture and sound and write the tables that corpora are made from."""
    cluster.connect()
    catalog = make_catalog(job)
    return {"uri": job.uri, "fingerprint": catalog.fingerprint, **catalog.summary()}


if __name__ == "__main__":
    config.main(run, CatalogConfig)
