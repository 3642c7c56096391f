"""Texts that say the same in nearly the same words (paper section 2.3: MinHash on 1-grams, signature 128, 0.9).

An engine only proposes pairs; the exact Jaccard similarity of the token sets, in integers, decides. ``minhash``
proposes rows whose signatures by MLlib's hash functions agree in a band, and misses a pair now and then. ``exact``
proposes rows that share one of their rarest tokens, and misses none: sets of that similarity cannot differ in all of
them (prefix filtering, Chaudhuri, Ganti and Kaushik 2006; with lengths and positions, Xiao, Wang, Lin and Yu 2008).
Tokenisation, in Python, turns tokens into 63-bit integers. Rows that fit in one task are compared there
(``in_memory``), larger numbers by joins; ``choices`` are made in portions that fit.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, LongType, StructField, StructType

from personahub_spark.dedup import in_memory, minhash
from personahub_spark.dedup.lists import Lists, hashes_of_sets, mixed
from personahub_spark.dedup.survivors import ARROW_REMOVALS, REMOVALS, survivors
from personahub_spark.errors import SettingsError
from personahub_spark.settings.dedup import SurfaceSettings
from personahub_spark.text import TOKENIZER_VERSION, tokens

EXACT_TOKENS = "exact_tokens"
SURFACE = "surface"
NO_TOKENS = "no_tokens"

# Memory of a comparison in one task, in bytes: for a row with its id, each token, each MinHash band (short texts).
_ROW_BYTES, _TOKEN_BYTES, _BAND_BYTES = 400, 48, 52
# So many times as much for a row among which choices are made, in lists of Python.
_BYTES_OF_CHOICE = 2
# Go up when the results of `keys_of_tokens`, or of `_band_keys`, change.
_KEYS_VERSION, _BANDS_VERSION = 1, 2
# Tokens are counted in buckets by their low bits; a rare token in the bucket of a frequent one only costs time.
_FREQUENCY_BITS = 16
# The most keys of new rows that are broadcast for the join with published rows.
_BROADCAST_KEYS = 1 << 20
_ADDED = [StructField(name, ArrayType(LongType(), False), nullable=name == "keys") for name in ("tokens", "keys")]
_ARROW_LIST = pa.list_(pa.field("element", pa.int64(), nullable=False))
_ARROW_ADDED = [pa.field(field.name, _ARROW_LIST, nullable=field.nullable) for field in _ADDED]
# The largest number that Spark's LIMIT takes.
_MOST_ROWS = (1 << 31) - 1


class SurfaceDedup(NamedTuple):
    """The result of surface dedup; a row that is in neither of the first two frames is kept."""

    removals: DataFrame
    """``id``, ``kept_id``, ``similarity`` (double), ``tier`` (``exact_tokens`` or ``surface``)."""
    undecidable: DataFrame
    """``id``, ``reason``: rows that cannot be compared (``no_tokens``)."""
    kept: DataFrame
    """``id``, ``priority``, ``tokens``, ``bands`` of the kept rows, for comparing later batches with them."""


def deduplicate(
    texts: DataFrame,
    *,
    settings: SurfaceSettings,
    published: DataFrame | None = None,
) -> SurfaceDedup:
    """The texts to remove: a better one has the same words, or nearly (Jaccard similarity >=
    ``settings.threshold``).

    ``texts``: ``id``, unique; ``text``; ``priority`` of any orderable type, never null: the smallest is
    best, ties are broken by id; and, if it has such a column, ``scope`` (string): only rows of one scope are compared.
    ``published``: rows that earlier calls with the same ``parameters_version`` returned as ``kept``, none of them in
    ``texts``. They are better than all of ``texts``, stay, and are not compared with one another.

    No two kept rows have equal token sets. With the engine ``exact`` no two are as similar as the threshold; with
    ``minhash`` a pair at the threshold is missed with a chance of at most 1 - ``settings.recall``, and more similar
    pairs less often. The same personas give the same removals in any order, partitions and batches.

    All rows are compared in one task if that takes less memory than ``settings.one_task_mb``, else by joins. Runs
    Spark jobs. Raises SettingsError if the recall cannot be reached.
    """
    rows = token_sets(texts, settings).localCheckpoint(eager=False)  # evaluated by _fit
    old = None if published is None else published.withColumn("priority", _priority(0))
    compare = _in_one_task if _fit(rows, old, settings) else _by_joins
    worded = rows.where(F.size("tokens") > 0)
    removals = compare(worded, old, settings)
    return SurfaceDedup(
        removals=removals,
        undecidable=rows.where(F.size("tokens") == 0).select("id", F.lit(NO_TOKENS).alias("reason")),
        kept=worded.join(removals, on="id", how="left_anti").select(
            "id",
            F.col("priority.given").alias("priority"),
            "tokens",
            F.col("keys").alias("bands"),
        ),
    )


def choices(texts: DataFrame, *, settings: SurfaceSettings) -> DataFrame:
    """One text of each group: the best that is not like a text chosen of a group before, if there is such a text.

    ``texts`` as for ``deduplicate``, but ``priority`` is a struct that begins with ``group`` (int): the groups choose
    in this order. Returns ``id``, ``kept_id``, ``similarity``, ``tier`` of the texts of each group up to its choice.
    The choice has its own id as ``kept_id``; the texts before it have that of the most similar choice of an earlier
    group. A text without tokens is like none.

    The choices of earlier groups do not depend on later ones. So the groups choose in portions, one task after the
    other, each of which takes less memory than ``settings.one_task_mb`` if a group does; a portion meets the choices of
    those before it by joins. Portions do not show in the result. Runs Spark jobs.
    """
    nothing = [F.lit(None).cast("string").alias("earlier_id"), F.lit(0.0).alias("earlier_similarity")]
    rows = token_sets(texts, settings).withColumn("group", F.col("priority.given.group")).localCheckpoint()
    of_groups = rows.groupBy("group").agg(F.sum(_BYTES_OF_CHOICE * _memory(settings)).alias("bytes")).orderBy("group")
    portions = list(portions_of([tuple(row) for row in of_groups.collect()], settings.one_task_mb * 2**20))
    if len(portions) < 2:
        return _choose(rows.select("*", *nothing), settings)
    # By id, not by its hash: of two rows with one hash only one may be chosen.
    keyed = with_keys(rows.where(F.size("tokens") > 0), None, settings).withColumn("row_id", F.col("id"))
    parts = list[DataFrame]()
    for first, last in portions:
        portion = rows.where(F.col("group").between(first, last))
        if parts:
            decided = functools.reduce(DataFrame.union, parts)
            chosen = keyed.join(decided.where("id = kept_id").select("id"), on="id", how="left_semi")
            earlier = _most_similar(keyed.join(portion.select("id"), on="id", how="left_semi"), chosen, keyed, settings)
            portion = portion.join(earlier, on="id", how="left").fillna({"earlier_similarity": 0.0})
        else:
            portion = portion.select("*", *nothing)
        parts.append(_choose(portion, settings).localCheckpoint())
    return functools.reduce(DataFrame.union, parts)


def portions_of(groups: Iterable[tuple[int, int]], most_bytes: int) -> Iterator[tuple[int, int]]:
    """The first and the last group of each portion. ``groups``: each with its bytes, in order; a portion has up to
    ``most_bytes``, or one group that has more."""
    first = last = None
    free = 0
    for group, needed in groups:
        if first is None or last is None or needed > free:
            if first is not None and last is not None:
                yield first, last
            first, free = group, most_bytes
        last, free = group, free - needed
    if first is not None and last is not None:
        yield first, last


def keys_of_tokens(texts: Iterable[str | None], scopes: Sequence[str | None] | None = None) -> Lists:
    """The distinct tokens of each text as integers of 63 bits, sorted; none for None. In another scope (one for each
    text, or None) the same token is another integer.

    Two different tokens of a pair of texts get the same integer with a chance of about 10^-16.
    """
    words = [[] if text is None else tokens(text) for text in texts]
    rows = np.repeat(np.arange(len(words)), [len(of_text) for of_text in words])
    keys = np.fromiter(map(_key_of_token, itertools.chain.from_iterable(words)), np.int64, len(rows))
    if scopes is not None:
        # With a blank, which no token has, so that a token with the name of a scope is no matter.
        of_scope = np.array([0 if scope is None else _key_of_token(f" {scope}") for scope in scopes], np.int64)[rows]
        scoped = (mixed((keys ^ of_scope).view(np.uint64)) >> np.uint64(1)).view(np.int64)
        keys = np.where(of_scope == 0, keys, scoped)
    order = np.lexsort((keys, rows))
    rows, keys = rows[order], keys[order]
    repeated = (rows[1:] == rows[:-1]) & (keys[1:] == keys[:-1])
    first = np.concatenate(([True], ~repeated))[: len(rows)]
    return Lists.of(keys[first], np.bincount(rows[first], minlength=len(words)))


def bands(threshold: float, num_hashes: int, recall: float) -> tuple[int, int]:
    """(number of bands, hashes in a band): the longest bands that reach ``recall`` for pairs at ``threshold``.

    Two sets of Jaccard similarity t agree in one of b bands of r hashes with the chance 1 - (1 - t^r)^b. Longer bands
    propose fewer dissimilar pairs. Raises SettingsError if even bands of one hash do not reach ``recall``.
    """
    for band_rows in range(num_hashes, 0, -1):
        band_count = num_hashes // band_rows
        if 1 - (1 - threshold**band_rows) ** band_count >= recall:
            return band_count, band_rows
    raise SettingsError(
        f"dedup.surface: {num_hashes} hashes cannot find pairs at {threshold} with the chance {recall}; "
        "raise num_hashes, or lower recall"
    )


def parameters_version(settings: SurfaceSettings) -> str:
    """Sixteen hex digits that change with everything that can change the removals."""
    decisive: dict[str, Any] = {
        "engine": settings.engine,
        "threshold": settings.threshold.as_integer_ratio(),
        "tokenizer": TOKENIZER_VERSION,
        "keys": _KEYS_VERSION,
    }
    if settings.engine == "minhash":
        decisive |= {
            "num_hashes": settings.num_hashes,
            "bands": bands(float(settings.threshold), settings.num_hashes, settings.recall),
            "seed": settings.seed,
            "band_keys": _BANDS_VERSION,
        }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def candidates(keyed: DataFrame, settings: SurfaceSettings) -> DataFrame:
    """``id_a``, ``id_b``, distinct: rows with a common key and sizes that allow them to be similar; a is smaller.

    ``keyed``: ``row_id``, ``size``, ``keys``, ``is_new``. Two rows that are not new are not proposed.
    """
    least, whole = settings.threshold.as_integer_ratio()
    members = keyed.select("row_id", "size", "is_new", F.posexplode("keys").alias("position", "key"))
    small, large = members, members
    fits = f"""(size_a < size_b or size_a = size_b and id_a < id_b) and size_a * {whole} >= size_b * {least}
               and (is_new_a or is_new_b)"""
    if settings.engine == "exact":
        # The smaller set of a pair shares a larger part of its tokens, so fewer of its keys are enough.
        small = members.where(f"position <= size - (2 * {least} * size + {least + whole - 1}) div {least + whole}")
        # Keys have the same order in all rows, so common tokens can only follow the first common one.
        fits += f"""and least(size_a - position_a, size_b - position_b) * {least + whole}
                        >= (size_a + size_b) * {least}"""
    of_a, of_b = (
        rows.select(
            "key",
            F.col("row_id").alias(f"id_{side}"),
            *[F.col(name).alias(f"{name}_{side}") for name in ("size", "position", "is_new")],
        )
        for rows, side in ((small, "a"), (large, "b"))
    )
    return of_a.join(of_b, on="key", how="inner").where(fits).select("id_a", "id_b").distinct()


@functools.lru_cache(maxsize=1 << 18)
def _key_of_token(token: str) -> int:
    return int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "big") >> 1


def token_sets(texts: DataFrame, settings: SurfaceSettings) -> DataFrame:
    """``id``, ``priority``, ``tokens``, ``keys``; the priority becomes (0 published, 1 new; the given one).

    ``keys``: hashes of the bands of the row's MinHash signature; null with the engine ``exact``.
    """
    scope = F.col("scope") if "scope" in texts.columns else F.lit(None).cast("string").alias("scope")
    given = texts.select("id", _priority(1), "text", scope)
    band_keys = _band_keys(settings) if settings.engine == "minhash" else None

    def tokenised(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            sets = keys_of_tokens(batch["text"].to_pylist(), batch["scope"].to_pylist())
            keys = pa.nulls(batch.num_rows, _ARROW_LIST) if band_keys is None else _arrow(band_keys(sets))
            named = [batch.schema.field(name) for name in ("id", "priority")]
            columns = [batch["id"], batch["priority"], _arrow(sets), keys]
            yield pa.RecordBatch.from_arrays(columns, schema=pa.schema([*named, *_ARROW_ADDED]))

    # A pandas UDF would turn each row's list into an object.
    return given.mapInArrow(tokenised, StructType([*given.drop("text", "scope").schema, *_ADDED]))


def with_best(rows: DataFrame) -> DataFrame:
    """``rows`` and ``best``: (priority, id) of the best row with the same token set."""
    # Partition by a hash first: then mostly equal arrays are compared.
    equals = (
        Window.partitionBy("set_hash", "tokens")
        .orderBy("priority", "id")
        .rowsBetween(Window.unboundedPreceding, Window.currentRow)
    )
    best = F.first(F.struct("priority", "id")).over(equals)
    return rows.withColumn("set_hash", F.xxhash64("tokens")).withColumn("best", best).drop("set_hash")


def _choose(rows: DataFrame, settings: SurfaceSettings) -> DataFrame:
    """``choices`` in one task among ``rows``; ``earlier_id``, ``earlier_similarity``: the most similar choice before,
    null and 0 without one."""
    least, whole = settings.threshold.as_integer_ratio()

    def choose(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if held := [batch for batch in batches if batch.num_rows]:
            rows = pa.Table.from_batches(held).combine_chunks()
            pairs = in_memory.choices(
                _lists(rows["tokens"]),
                _lists(rows["keys"]) if settings.engine == "minhash" else None,
                rows["group"].to_numpy(),
                threshold=Fraction(least, whole),
                earlier=rows["earlier_similarity"].to_numpy(),
            )
            yield from _named(rows["id"], pairs, rows["earlier_id"])

    in_turn = rows.select("id", "group", "priority", "tokens", "keys", "earlier_id", "earlier_similarity")
    in_turn = in_turn.repartition(1).sortWithinPartitions("priority", "id").drop("priority")
    return in_turn.mapInArrow(choose, REMOVALS)


def _most_similar(rows: DataFrame, chosen: DataFrame, keyed: DataFrame, settings: SurfaceSettings) -> DataFrame:
    """``id``, ``earlier_id``, ``earlier_similarity``: of each of ``rows`` that is like one of ``chosen`` the most
    similar one; among equally similar ones, the best. Both are rows of ``keyed``, with ``row_id``, ``size``, ``keys``.
    """
    least, whole = settings.threshold.as_integer_ratio()
    of_a, of_b = (
        side.select(
            F.col("row_id").alias(f"id_{name}"), F.col("size").alias(f"size_{name}"), F.explode("keys").alias("key")
        )
        for side, name in ((rows, "a"), (chosen, "b"))
    )
    fits = f"least(size_a, size_b) * {whole} >= greatest(size_a, size_b) * {least}"
    proposed = of_a.join(of_b, on="key", how="inner").where(fits).select("id_a", "id_b").distinct()
    witness = F.min(F.struct((-F.col("similarity")).alias("negated"), "priority_b", "id_b")).alias("witness")
    return (
        verified(proposed, keyed, settings)
        .groupBy(F.col("id_a").alias("id"))
        .agg(witness)
        .select(
            "id", F.col("witness.id_b").alias("earlier_id"), (-F.col("witness.negated")).alias("earlier_similarity")
        )
    )


def _fit(rows: DataFrame, old: DataFrame | None, settings: SurfaceSettings) -> bool:
    """Whether all rows fit in one task; reads no more of ``old`` than a task can hold."""

    def memory(of: DataFrame) -> int:
        return int(of.agg(F.sum(_memory(settings)).alias("bytes")).collect()[0]["bytes"] or 0)

    beside_tokens = _beside_tokens(settings)
    free_bytes = settings.one_task_mb * 2**20 - memory(rows)
    if old is not None and free_bytes > 0:
        free_bytes -= memory(old.select("tokens").limit(min(free_bytes // beside_tokens + 1, _MOST_ROWS)))
    return free_bytes > 0


def _memory(settings: SurfaceSettings) -> Column:
    """The bytes that a row of ``token_sets`` takes in a comparison in one task."""
    return F.size("tokens").cast("long") * _TOKEN_BYTES + _beside_tokens(settings)


def _beside_tokens(settings: SurfaceSettings) -> int:
    if settings.engine != "minhash":
        return _ROW_BYTES
    return _ROW_BYTES + _BAND_BYTES * bands(float(settings.threshold), settings.num_hashes, settings.recall)[0]


def _in_one_task(worded: DataFrame, old: DataFrame | None, settings: SurfaceSettings) -> DataFrame:
    columns = ("priority", "id", "tokens", "keys")
    everyone = worded.select(*columns)
    if old is not None:
        everyone = everyone.union(old.withColumnRenamed("bands", "keys").select(*columns))
    in_turn = everyone.coalesce(1).sortWithinPartitions("priority", "id")
    least, whole = settings.threshold.as_integer_ratio()

    def compare(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from _removals_in_turn(batches, Fraction(least, whole), by_keys=settings.engine == "minhash")

    named = in_turn.select("id", (F.col("priority.rank") == 0).alias("is_published"), "tokens", "keys")
    return named.mapInArrow(compare, REMOVALS).localCheckpoint()


def _removals_in_turn(
    batches: Iterable[pa.RecordBatch], threshold: Fraction, *, by_keys: bool
) -> Iterator[pa.RecordBatch]:
    """The removals among all rows, which arrive in order of priority."""
    if not (held := [batch for batch in batches if batch.num_rows]):
        return
    rows = pa.Table.from_batches(held).combine_chunks()
    removals = in_memory.removals(
        _lists(rows["tokens"]),
        _lists(rows["keys"]) if by_keys else None,
        published=pc.sum(rows["is_published"]).as_py(),
        threshold=threshold,
    )
    yield from _named(rows["id"], removals)


def _named(
    ids: pa.ChunkedArray, pairs: in_memory.Pairs, earlier: pa.ChunkedArray | None = None
) -> Iterator[pa.RecordBatch]:
    """``pairs`` as rows of ``REMOVALS``; ``earlier``: ids of those that are named ``in_memory.EARLIER``, by row."""
    tiers = np.where(pairs.similarity == 1.0, EXACT_TOKENS, SURFACE)
    kept = ids.take(np.maximum(pairs.better, 0))
    if earlier is not None:
        kept = pc.if_else(pa.array(pairs.better == in_memory.EARLIER), earlier.take(pairs.row), kept)
    columns = [ids.take(pairs.row), kept, pa.array(pairs.similarity), pa.array(tiers)]
    yield from pa.table(columns, names=ARROW_REMOVALS.names).cast(ARROW_REMOVALS).to_batches()


def _arrow(lists: Lists) -> pa.ListArray:
    return pa.ListArray.from_arrays(lists.starts.astype(np.int32), lists.values, type=_ARROW_LIST)


def _lists(column: pa.ChunkedArray) -> Lists:
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    return Lists.of(pc.list_flatten(column).to_numpy(), lengths)


def _by_joins(worded: DataFrame, old: DataFrame | None, settings: SurfaceSettings) -> DataFrame:
    """The same as ``_in_one_task``, for any number of rows."""
    rows = with_best(worded).localCheckpoint()
    keyed = with_keys(rows.where("id = best.id"), old, settings)
    near = verified(candidates(keyed, settings), keyed, settings).localCheckpoint()
    return survivors(_pairs_of_members(rows, near))


def _priority(rank: int) -> Column:
    return F.struct(F.lit(rank).alias("rank"), F.col("priority").alias("given")).alias("priority")


def with_keys(sets: DataFrame, old: DataFrame | None, settings: SurfaceSettings) -> DataFrame:
    """``sets``, and the rows of ``old`` that share one of their ``keys`` and so could be similar.

    ``id``, ``priority``, ``tokens``, ``row_id`` (a hash of ``id``; two rows with the same hash cost
    only an extra verification), ``size``, ``keys``, ``is_new``.
    """
    new = _sized(sets.select("id", "priority", "tokens", "keys"))
    old = None if old is None else _sized(old)
    if settings.engine == "minhash":
        old = None if old is None else old.withColumnRenamed("bands", "keys")
    else:
        worded = new.select("tokens") if old is None else new.select("tokens").union(old.select("tokens"))
        keys = _prefix(worded, settings)
        new = new.withColumn("keys", keys)
        old = None if old is None else old.withColumn("keys", keys)
    new = new.withColumn("is_new", F.lit(True)).localCheckpoint()
    if old is None or new.isEmpty():
        return new
    new_keys = new.select(F.explode("keys").alias("key")).distinct()
    if new.agg(F.sum(F.size("keys")).alias("count")).collect()[0]["count"] <= _BROADCAST_KEYS:
        new_keys = F.broadcast(new_keys)
    met = old.select("row_id", F.explode("keys").alias("key")).join(new_keys, on="key", how="left_semi")
    near = old.join(met.select("row_id").distinct(), on="row_id", how="left_semi")
    return new.unionByName(near.withColumn("is_new", F.lit(False)).select(*new.columns).localCheckpoint())


def _sized(rows: DataFrame) -> DataFrame:
    return rows.withColumn("row_id", F.xxhash64("id")).withColumn("size", F.size("tokens").cast("long"))


def _too_small(settings: SurfaceSettings) -> str:
    """SQL: true for a row that only an equal set is similar enough to, because one differing token is too much."""
    least, whole = settings.threshold.as_integer_ratio()
    return f"size * {whole - least} < {least}"


def _band_keys(settings: SurfaceSettings) -> Callable[[Lists], Lists]:
    """A function from tokens to a hash of each band of the MinHash signature; for a set that is too small, one hash of
    the whole set."""
    count, length = bands(float(settings.threshold), settings.num_hashes, settings.recall)
    functions = minhash.hash_functions(settings.num_hashes, settings.seed)
    least, whole = settings.threshold.as_integer_ratio()

    def of(tokens: Lists) -> Lists:
        sizes = tokens.lengths
        large = sizes * (whole - least) >= least  # or else as _too_small
        small = ~large & (sizes > 0)
        numbers = np.select([large, small], [count, 1], 0)
        keys = np.empty(numbers.sum(), np.int64)
        of_large = np.repeat(large, numbers)
        signatures = minhash.signatures(tokens.take(np.flatnonzero(large)), functions)
        keys[of_large] = minhash.band_keys(signatures, (count, length)).ravel()
        keys[~of_large] = hashes_of_sets(tokens.take(np.flatnonzero(small)))
        return Lists.of(keys, numbers)

    return of


def _prefix(worded: DataFrame, settings: SurfaceSettings) -> Column:
    """The rarest of ``tokens``, enough that any similar set has one of them; for a set that is too small, one hash.

    The frequency of tokens in ``worded`` is counted by their low bits, so the counts do not grow with the data. The
    order is the same for all rows, which is enough for exact results.
    """
    buckets = 1 << _FREQUENCY_BITS
    low = F.col("token").bitwiseAND(F.lit(buckets - 1)).cast("int").alias("bucket")
    counted = worded.select(F.explode("tokens").alias("token")).groupBy(low).count().collect()
    counts = np.zeros(buckets, dtype=np.int64)
    counts[[row["bucket"] for row in counted]] = [row["count"] for row in counted]
    ranks = np.empty(buckets, dtype=np.int64)
    ranks[np.argsort(counts, kind="stable")] = np.arange(buckets)
    # A constant that Spark folds: an array of literals would be as many expressions.
    rank = F.split(F.lit(",".join(map(str, ranks))), ",").cast(ArrayType(LongType()))

    def by_rank(token: Column) -> Column:
        bucket = token.bitwiseAND(F.lit(buckets - 1)).cast("int")
        return F.shiftleft(rank[bucket], 63 - _FREQUENCY_BITS).bitwiseOR(F.shiftright(token, _FREQUENCY_BITS))

    least, whole = settings.threshold.as_integer_ratio()
    length = F.expr(f"cast(size - (size * {least} + {whole - 1}) div {whole} + 1 as int)")
    rarest = F.slice(F.array_sort(F.transform("tokens", by_rank)), F.lit(1), length)
    return F.when(F.expr(_too_small(settings)), F.array(F.xxhash64("tokens"))).otherwise(rarest)


def verified(proposed: DataFrame, keyed: DataFrame, settings: SurfaceSettings) -> DataFrame:
    """``id_a``, ``priority_a``, ``id_b``, ``priority_b``, ``similarity``: pairs as similar as the threshold."""
    of_a, of_b = (
        keyed.select(
            F.col("row_id").alias(f"row_{side}"),
            F.col("id").alias(f"id_{side}"),
            F.col("priority").alias(f"priority_{side}"),
            F.col("tokens").alias(f"tokens_{side}"),
        )
        for side in "ab"
    )
    rows = proposed.select(F.col("id_a").alias("row_a"), F.col("id_b").alias("row_b"))
    named = ("id_a", "priority_a", "id_b", "priority_b")
    common = F.size(F.array_intersect("tokens_a", "tokens_b")).cast("long")
    union = F.size("tokens_a") + F.size("tokens_b") - F.col("common")
    # In integers: 9 common tokens of 10 are exactly 0.9, which floating point may miss.
    least, whole = settings.threshold.as_integer_ratio()
    return (
        rows.join(of_a, on="row_a", how="inner")
        .join(of_b, on="row_b", how="inner")
        .select(*named, common.alias("common"), "tokens_a", "tokens_b")
        .select(*named, "common", union.alias("union"))
        .where(F.col("common") * F.lit(whole) >= F.col("union") * F.lit(least))
        .select(*named, (F.col("common") / F.col("union")).alias("similarity"))
    )


def _pairs_of_members(rows: DataFrame, near: DataFrame) -> DataFrame:
    """Pairs of all rows, with ``tier``, from ``near``: the pairs of rows that are the best of their token set.

    A row is paired with the best row of its set and with the rows similar to that one. So if its best row is removed,
    the row still finds the kept row that the best one was removed for.
    """
    members = rows.where("id <> best.id")
    equal = members.select(
        F.col("best.id").alias("id_a"),
        F.col("best.priority").alias("priority_a"),
        F.col("id").alias("id_b"),
        F.col("priority").alias("priority_b"),
        F.lit(1.0).alias("similarity"),
    )
    turned = near.select(
        F.col("id_b").alias("id_a"),
        F.col("priority_b").alias("priority_a"),
        F.col("id_a").alias("id_b"),
        F.col("priority_a").alias("priority_b"),
        "similarity",
    )
    of_members = (
        near.union(turned)
        .select("id_a", "priority_a", "id_b", "similarity")
        .join(members.select(F.col("best.id").alias("id_b"), "id", "priority"), on="id_b", how="inner")
        .select(
            "id_a",
            "priority_a",
            F.col("id").alias("id_b"),
            F.col("priority").alias("priority_b"),
            "similarity",
        )
    )
    tier = F.when(F.col("similarity") == 1.0, F.lit(EXACT_TOKENS)).otherwise(F.lit(SURFACE))
    return equal.union(near).union(of_members).withColumn("tier", tier)
