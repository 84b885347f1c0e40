"""Reads /metrics as Prometheus does."""

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(client: aiohttp.ClientSession, **headers: str) -> Samples:
    """All samples of /metrics, by name and labels."""
    async with client.get("/metrics", headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        assert response.headers["Cache-Control"] == "no-store"
        text = await response.text()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metric_value(samples: Samples, name: str, **labels: str) -> float | None:
    """The sum of all samples with this name and at least these labels; None if there is none."""
    found = [
        value
        for (sample, its_labels), value in samples.items()
        if sample == name and labels.items() <= dict(its_labels).items()
    ]
    return sum(found) if found else None
