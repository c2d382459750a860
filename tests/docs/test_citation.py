"""CITATION.cff: the fields that version 1.2.0 of the format requires, and the facts that stand elsewhere too."""

import tomllib

import yaml

from tests.docs.documents import ROOT

REQUIRED = {"cff-version", "message", "title", "authors"}
ALLOWED = REQUIRED | {"abstract", "type", "version", "license", "keywords", "references", "date-released", "doi", "url"}
PERSON, ENTITY = {"family-names", "given-names"}, {"name"}
REFERENCE = {"type", "title", "authors", "year", "collection-title", "url"}


def test_citation_has_the_fields_of_the_format() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= REQUIRED and citation.keys() <= ALLOWED
    assert citation["cff-version"] == "1.2.0" and citation["type"] in ("software", "dataset")
    assert all(author.keys() in (PERSON, ENTITY) for author in citation["authors"])
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys() <= REFERENCE
        assert all(author.keys() in (PERSON, ENTITY) for author in reference["authors"])


def test_citation_says_what_the_package_says() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
