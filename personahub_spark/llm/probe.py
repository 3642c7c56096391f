"""One free request for an endpoint's list of models, which checks the address, the key and the model's name."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from difflib import get_close_matches

import httpx2

from personahub_spark.llm.failures import Failure, StatusError, UnreachableError, classify
from personahub_spark.llm.transport import proxy_for, trusted_certificates
from personahub_spark.settings.models import Address, Endpoint

ANSWERS_S = 10.0
_LIST_BYTES = 8 * 2**20
_RIGHTS = ("scope", "permission")


def look(endpoint: Endpoint, address: Address, *, key: str | None) -> Failure | None:
    """What is wrong at ``address``; None if nothing is, or the server does not tell.

    Only two replies are faults: status 401, and a list without the model. All others pass, since many servers have no
    such list, or show it only to certain keys. Kinds: ``retry``: the server could not be reached; ``run``: waiting does
    not help; ``row``: the model is not listed, which many servers accept all the same. Raises PersonaHubError if the
    environment names an unusable proxy or unusable certificates.
    """
    url = f"{address.base_url.rstrip('/')}/models"
    proxy = proxy_for(url)
    secure = any(each is not None and each.startswith("https:") for each in (url, proxy))
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    give_up = time.monotonic() + ANSWERS_S
    body = b""
    try:
        with (
            httpx2.Client(
                proxy=proxy, verify=trusted_certificates() if secure else False, trust_env=False, timeout=ANSWERS_S
            ) as client,
            client.stream("GET", url, headers=headers) as reply,
        ):
            for piece in reply.iter_bytes():
                body += piece
                if len(body) > _LIST_BYTES or time.monotonic() > give_up:
                    return None
    except (httpx2.ReadTimeout, httpx2.WriteTimeout):  # it exists, but is slow
        return None
    except (httpx2.HTTPError, OSError) as error:
        unreachable = UnreachableError()
        unreachable.__cause__ = error
        return classify(unreachable, endpoint, address, secret=key)
    if reply.status_code == 401 and address.api_key_credential is None:
        if any(word in body.decode(errors="replace").lower() for word in _RIGHTS):
            return None  # a key that may call models, but not list them
        return classify(StatusError(401, body), endpoint, address, secret=key)
    listed = _listed(body) if reply.status_code == 200 else []
    if listed and not _is_listed(endpoint.model, listed):
        near = _near(endpoint.model, listed)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it lists {', '.join(sorted(listed)[:3])}."
        return Failure("row", "unlisted_model", f"the server does not list the model {endpoint.model}; {hint}")
    return None


def _listed(body: bytes) -> list[str]:
    """Names in a list of models, in OpenAI's form or a bare list; none if it is neither."""
    try:
        listing = json.loads(body)
    except ValueError:
        return []
    models = listing.get("data") if isinstance(listing, dict) else listing
    names = [model.get("id") for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    return [name for name in names if isinstance(name, str)]


def _near(model: str, listed: Collection[str]) -> list[str]:
    """At most three names similar to ``model``, ignoring case."""
    by_lower = {name.lower(): name for name in listed}
    return [by_lower[name] for name in get_close_matches(model.lower(), by_lower, n=3, cutoff=0.5)]


def _is_listed(model: str, listed: Collection[str]) -> bool:
    """Whether a server takes ``model``. Servers take more names than they list: without a tag, with a suffix for the
    provider, without the folder, by a pattern."""
    for name in listed:
        if model in (name, name.removesuffix(":latest"), name.rpartition("/")[2]) or model.partition(":")[0] == name:
            return True
        if name.endswith("*") and model.startswith(name[:-1]):
            return True
    return False
