"""Media -> catalog: every picture and sound is looked at and put into a table or refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from infra import cluster, config, storage
from synth.catalog import Catalog, build_catalog
from synth.distribute import map_rows
from synth.sources import candidates, debian_media
from synth.tables import Candidate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MediaConfig:
    """Where pictures and sounds come from."""

    folder: str | None = None
    """A folder or s3:// prefix with objects/<class>/*.png (cut-outs), sounds/<class>/*.wav and
    backgrounds/*.jpg. Without one, photographic cut-outs, sounds and backgrounds are downloaded
    from Debian packages into the media cache."""


@dataclass(frozen=True, kw_only=True)
class CatalogConfig:
    """The catalog job."""

    uri: str
    """Where the catalog goes: a path, file:// or s3:// URI."""
    media: MediaConfig = field(default_factory=MediaConfig)
    """Where pictures and sounds come from."""
    parallelism: int | None = None
    """Files looked at at once; all CPUs of the cluster by default."""


def find_media(media: MediaConfig) -> tuple[str, Sequence[Candidate]]:
    """The media folder, fetched where need be, and what is in it."""
    where = media.folder
    if where is None:
        where = str(debian_media.fetch(storage.cache_folder(), progress=logger.info))
    return where, list(candidates(where))


def look_at_media(media: MediaConfig, parallelism: int | None = None) -> Catalog:
    """The catalog of all media; nothing is written."""
    where, offered = find_media(media)
    logger.info("looking at %d files of %s", len(offered), where)
    return build_catalog(where, offered, map_rows=partial(map_rows, parallelism=parallelism))


def make_catalog(job: CatalogConfig) -> Catalog:
    """Look at all media and write the catalog to ``job.uri``."""
    catalog = look_at_media(job.media, job.parallelism)
    catalog.write(job.uri)
    return catalog


def run(job: CatalogConfig) -> dict[str, Any]:
    """Look at every picture and sound and write the tables that corpora are made from."""
    cluster.connect()
    catalog = make_catalog(job)
    return {"uri": job.uri, "fingerprint": catalog.fingerprint, **catalog.summary()}


if __name__ == "__main__":
    config.main(run, CatalogConfig)
