"""Pretrained weights as their authors publish them: what there is for a network, and fetching it.

`weights.py` looks for the files on this machine first. Files go where torch keeps its own downloads; those that
timm has stored in the Hugging Face cache are found there.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import queue
import re
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from hsr_train.engines.classification.models import TIMM, load_timm
from hsr_train.run.atomic import atomic_path

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 4.0
"""How long a server may take to answer at all, looking up its name included: offline, this is the whole wait."""
READ_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Published:
    """One file of pretrained weights as its authors publish it.

    Attributes:
        file_name: As it lies in a cache.
        url: Where it comes from.
        sha256_begins: First digits of its hash, where these are known.
        cached: Where another program has stored it already, or None.
    """

    file_name: str
    url: str
    sha256_begins: str = ""
    cached: Path | None = None


def published(name: str) -> list[Published]:
    """Return the files of pretrained weights that fit a network, the preferred one first."""
    if name.startswith(TIMM):
        return _published_by_timm(name.removeprefix(TIMM))
    weights = torchvision.models.get_model_weights(name)
    best = weights.DEFAULT
    # Others, such as those for larger images, have position embeddings of another size.
    chosen = [best, *(w for w in weights if w is not best and w.name.startswith("IMAGENET1K_V"))]
    urls = [str(w.url) for w in chosen]
    return [Published(Path(url).name, url, _hash_in(url)) for url in urls]


def _published_by_timm(name: str) -> list[Published]:
    config = load_timm().get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        return []
    tagged = f"{config.architecture}.{config.tag}"
    if not config.hf_hub_id:
        return [Published(f"{tagged}{Path(config.url).suffix}", config.url, _hash_in(config.url))]
    import huggingface_hub as hub

    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    offered = []
    for file in files:
        cached = hub.try_to_load_from_cache(config.hf_hub_id, file)
        place = Path(cached) if isinstance(cached, str) else None
        suffix = ".pth" if file.endswith(".bin") else Path(file).suffix
        offered.append(Published(f"{tagged}{suffix}", hub.hf_hub_url(config.hf_hub_id, file), cached=place))
    return offered


def _hash_in(url: str) -> str:
    """Return the first digits of the SHA-256 that torch's convention puts into a file's name."""
    found = re.search(r"-([a-f0-9]{8,})\.[a-z]+$", url)
    return found[1] if found else ""


def downloads_folder() -> Path:
    """Return the folder of torch's own downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def download(wanted: Published) -> Path | None:
    """Fetch a file, whole or not at all; None, with the reason in the log, where it cannot be had."""
    target = downloads_folder() / wanted.file_name
    log.info("Downloading %s ...", wanted.url)
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _answer(wanted.url) as response, atomic_path(target) as temporary, temporary.open("wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
                digest.update(block)
            promised = response.headers["Content-Length"]
            if promised is not None and file.tell() != int(promised):  # urllib does not notice a cut connection
                raise ConnectionError(f"cut off after {file.tell()} of {promised} bytes")
            if not digest.hexdigest().startswith(wanted.sha256_begins):
                raise ConnectionError("what arrived is not what its name promises")
    except (OSError, http.client.HTTPException) as error:
        log.info("No download: %s", getattr(error, "reason", error) or type(error).__name__)
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the server's answer as well
        return None
    log.info("Stored %s", target)
    return target


def _answer(url: str) -> Any:
    """Open a URL; a network that swallows everything, name look-ups included, costs `ANSWER_TIMEOUT_S` at most."""
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            arrived.put(urllib.request.urlopen(url, timeout=READ_TIMEOUT_S))
        except Exception as error:  # raised again where somebody waits for it
            arrived.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = arrived.get(timeout=ANSWER_TIMEOUT_S)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
