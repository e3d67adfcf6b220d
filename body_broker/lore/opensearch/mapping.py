"""Owns the form of an OpenSearch index of lore: its analyzer, fields and vectors. Pure."""

from __future__ import annotations

from typing import Literal

from body_broker.calls import Json

LAYOUT = 1
"""Raised with any change of this form: copies of another layout are built anew."""

# PostgreSQL's english.stop, so that both indexes leave out the same words.
_STOP_WORDS = (  # noqa: SIM905 - a list of 127 literals reads worse
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its"
    " itself they them their theirs themselves what which who whom this that these those am is are was were be been being"
    " have has had having do does did doing a an the and but if or because as until while of at by for with about against"
    " between into through during before after above below to from up down in out on off over under again further then once"
    " here there when where why how all any both each few more most other some such no nor not only own same so than too"
    " very s t can will just don should now"
).split()

# The same folding, stemmer (Porter 2) and stop words as lore_words of 0004_lore.sql.
_ANALYSIS: Json = {
    "tokenizer": {"lore_words": {"type": "pattern", "pattern": r"[^\p{L}\p{N}]+"}},
    "filter": {
        "lore_stop": {"type": "stop", "stopwords": _STOP_WORDS},
        "lore_stem": {"type": "stemmer", "language": "porter2"},
    },
    "analyzer": {
        "lore": {"type": "custom", "tokenizer": "lore_words", "filter": ["lowercase", "lore_stop", "lore_stem"]}
    },
}

# One passage is one entry for each of its vectors, and one where it has none. Its text stands in part 0 alone, so that BM25
# counts it once; k1 1.2 and b 0.75 are what BM25 has by itself.
_FIELDS: Json = {
    # A keyword, and sorted by: an index that came about without this mapping has it as text, and refuses the query.
    "index_id": {"type": "keyword"},
    "rev": {"type": "long"},
    "ordinal": {"type": "integer"},
    "part": {"type": "integer"},
    "attempt": {"type": "keyword"},
    "text": {"type": "text", "analyzer": "lore", "index_options": "freqs"},
    "document": {"type": "keyword"},
    "canon": {"type": "boolean"},
    "spoils_nothing": {"type": "boolean"},
    "spoiler_level": {"type": "double"},
    "known_to_all": {"type": "boolean"},
    "known_by": {"type": "keyword"},
    "fields": {"type": "keyword"},
}
_HNSW = {"m": 16, "ef_construction": 128}
_EF_SEARCH = 512  # more than the passages that one way of searching gives


def definition(
    generation: str,
    *,
    engine: Literal["faiss", "lucene"],
    service: Literal["plain", "managed", "serverless"],
    model_id: int | None,
    dimensions: int | None,
) -> Json:
    """The body that makes the index of a generation.

    Args:
        generation: Its name, which it also says of itself.
        engine: What searches its vectors.
        service: Serverless takes neither shards nor replicas nor a refresh interval.
        model_id: Whose vectors it holds.
        dimensions: Of these; None is words alone.
    """
    fields = dict(_FIELDS)
    if dimensions is not None:
        # The inner product of normalised vectors is their cosine, for each engine of each version.
        method = {"name": "hnsw", "engine": engine, "space_type": "innerproduct", "parameters": _HNSW}
        fields["vector"] = {"type": "knn_vector", "dimension": dimensions, "method": method}
    mappings: Json = {"dynamic": "strict", "_meta": meta(generation, model_id), "properties": fields}
    index: Json = {"knn": True, "knn.algo_param.ef_search": _EF_SEARCH, "analysis": _ANALYSIS}
    if service != "serverless":
        # One shard: BM25's sums are those of all passages, as in PostgreSQL; millions of passages fit into it. Replicas where
        # there is a second node. A set interval goes on refreshing while nobody searches.
        index |= {"number_of_shards": 1, "auto_expand_replicas": "0-1", "refresh_interval": "1s"}
        mappings["_source"] = {"excludes": ["vector"]}
    return {"settings": {"index": index}, "mappings": mappings}


def meta(generation: str, model_id: int | None) -> Json:
    """What an index says of itself: by this it is known to be ours, and not one that came about by a write to its name."""
    return {"generation": generation, "layout": LAYOUT, "model_id": model_id}
