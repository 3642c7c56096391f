"""Surface dedup compared with the exact oracle: removals and their witnesses, whatever the partitions and batches."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from pyspark.ml.feature import MinHashLSH
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from personahub_spark.dedup import minhash, surface
from personahub_spark.dedup.lists import Lists
from personahub_spark.dedup.survivors import survivors
from personahub_spark.errors import PersonaHubError, SettingsError
from personahub_spark.settings.dedup import SurfaceSettings
from personahub_spark.settings.loading import validate
from personahub_spark.text import token_set
from tests.oracles import by_priority, greedy_removals, similar_pairs

REAL = Path(__file__).parents[3] / "shared" / "data"
SETTINGS = SurfaceSettings()
EXACT = SurfaceSettings(engine="exact")
ENGINES = pytest.mark.parametrize("settings", [SETTINGS, EXACT], ids=["minhash", "exact"])
PATHS = pytest.mark.parametrize("one_task_mb", [400, 0], ids=["one-task", "joins"])
SCHEMA = "id string, text string, priority struct<batch: int, hop: int>"
PAIRS = "id_a string, priority_a int, id_b string, priority_b int, similarity double, tier string"


def limited(settings: SurfaceSettings, one_task_mb: int) -> SurfaceSettings:
    return settings.model_copy(update={"one_task_mb": one_task_mb})


SCRIPTS = {
    "latin": [f"word{i}" for i in range(60)],
    "cyrillic": [f"слово{i}" for i in range(60)],
    "arabic": [
        "مدرس",
        "مدينة",
        "كتاب",
        "بحر",
        "قديم",
        "شعر",
        "طبيب",
        "مدرسة",
        "طفل",
        "حديقة",
        "مطبخ",
        "قطار",
        "جبل",
        "نهر",
    ],
    "devanagari": ["शिक्षक", "गाँव", "नदी", "किताब", "पुराना", "डॉक्टर", "बच्चा", "रेल", "पहाड़", "घर", "रसोई", "कवि", "खेत"],
    "hangul": [
        "은퇴한",
        "간호사",
        "서울",
        "학교",
        "바다",
        "요리사",
        "작은",
        "마을",
        "기차",
        "노래",
        "의사",
        "학생",
        "정원",
    ],
    "emoji": ["👩‍🍳", "👍🏽", "🇯🇵", "🎻", "🚲", "🐟", "🌋", "🧵", "🧮", "⛵", "🏔", "🎭", "🛶"],
}
HAN = "退休护士小学数学老师热爱音乐城市农村渔夫厨师画家医生司机学生"
THAI = ["ครู", "พยาบาล", "เกษียณ", "โรงเรียน", "ภาษา", "ไทย", "ทะเล", "เมือง", "นักเขียน", "ดนตรี", "เด็ก", "อาหาร", "หมอ"]

Row = tuple[str, str | None, tuple[int, int]]


def persona_like_rows(seed: int) -> list[Row]:
    """Texts of several scripts; many of them are edits of earlier ones."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(260):
        if texts and rng.random() < 0.6:
            words = rng.choice(texts).split(" ")
            if rng.random() < 0.3:
                rng.shuffle(words)
            for _ in range(rng.choice([0, 1, 1, 2])):
                place = rng.randrange(len(words))
                words[place : place + rng.randint(0, 1)] = [f"new{rng.randrange(9)}"]
            texts.append(" ".join(words) or "empty")
        elif rng.random() < 0.2:
            texts.append("".join(rng.sample(HAN, rng.randint(8, 24))) + " 和 " + "".join(rng.sample(HAN, 8)))
        elif rng.random() < 0.2:
            texts.append("".join(rng.sample(THAI, rng.randint(4, 12))) + " " + rng.choice(THAI))
        else:
            vocabulary = rng.choice(list(SCRIPTS.values()))
            texts.append(" ".join(rng.sample(vocabulary, rng.randint(3, min(22, len(vocabulary))))))
    return [(f"id{rng.getrandbits(64):016x}", text, (rng.randrange(3), rng.randrange(2))) for text in texts]


# Nine of ten words in common: exactly at the threshold. Then chains, and groups of equals on either side of a pair.
NINE = "a1 a2 a3 a4 a5 a6 a7 a8 a9"
PLANTED: list[Row] = [
    ("exact-a", NINE, (0, 0)),
    ("exact-b", f"{NINE} a10", (1, 0)),
    ("below-a", "b1 b2 b3 b4 b5 b6 b7 b8", (0, 0)),
    ("below-b", "b1 b2 b3 b4 b5 b6 b7 b8 b9", (1, 0)),
    ("chain-1", " ".join(f"c{i}" for i in range(20)), (0, 0)),
    ("chain-2", " ".join(f"c{i}" for i in range(1, 21)), (0, 1)),
    ("chain-3", " ".join(f"c{i}" for i in range(2, 22)), (1, 0)),
    ("chain-4", " ".join(f"c{i}" for i in range(3, 23)), (1, 1)),
    ("group-a1", " ".join(f"d{i}" for i in range(19)), (1, 0)),
    ("group-a2", " ".join(f"D{i}" for i in reversed(range(19))), (2, 0)),
    ("group-b1", " ".join(f"d{i}" for i in range(20)), (0, 0)),
    ("group-b2", " ".join(f"d{i}." for i in range(20)), (2, 1)),
    ("tie-4", "e3, e1 e2", (1, 1)),
    ("tie-3", "e1 e3 e2", (1, 1)),
    ("tie-1", "e1 e2 e3", (1, 1)),
    ("tie-2", "e3 e2 e1", (1, 1)),
    ("tie-6", "e2 e1 e3", (1, 1)),
    ("tie-5", "e2 e3; e1", (1, 1)),
    ("none-1", "...", (0, 0)),
    ("none-2", "?!", (0, 0)),
    ("none-3", None, (0, 0)),
    ("zh-1", "一位退休的小学数学老师", (0, 0)),
    ("zh-2", "热爱香港电影的出租车司机", (0, 0)),
    ("th-1", "ครูสอนภาษาไทยในโรงเรียน", (0, 0)),
    ("th-2", "พยาบาลเกษียณจากโรงพยาบาล", (0, 0)),
    ("c", "a C programmer who writes compilers", (0, 0)),
    ("c++", "a C++ programmer who writes compilers", (0, 0)),
]

Removals = dict[str, tuple[str, float, str]]


def expected(rows: list[Row], settings: SurfaceSettings = SETTINGS) -> Removals:
    sets = {row_id: frozenset(token_set(text)) for row_id, text, _ in rows}
    order = by_priority((row_id, priority) for row_id, _, priority in rows)
    removed = greedy_removals(order, similar_pairs(sets, settings.threshold))
    return {
        row_id: (kept, float(similarity), surface.EXACT_TOKENS if sets[row_id] == sets[kept] else surface.SURFACE)
        for row_id, (kept, similarity) in removed.items()
    }


def removals_of(removals: DataFrame) -> Removals:
    rows = removals.collect()
    assert len({row.id for row in rows}) == len(rows)
    return {row.id: (row.kept_id, row.similarity, row.tier) for row in rows}


@PATHS
@pytest.mark.parametrize(
    ("settings", "seed", "partitions", "adaptive"),
    [(SETTINGS, 1, 1, True), (SETTINGS, 2, 8, False), (EXACT, 1, 8, False), (EXACT, 2, 1, True)],
    ids=["minhash-1", "minhash-2", "exact-1", "exact-2"],
)
def test_removals_witnesses_and_tiers_are_those_of_the_exact_oracle(
    spark: SparkSession, settings: SurfaceSettings, seed: int, partitions: int, adaptive: bool, one_task_mb: int
) -> None:
    rows = persona_like_rows(seed) + PLANTED
    random.Random(partitions).shuffle(rows)
    spark.conf.set("spark.sql.adaptive.enabled", str(adaptive).lower())
    try:
        personas = spark.createDataFrame(rows, SCHEMA).repartition(partitions)
        result = surface.deduplicate(personas, settings=limited(settings, one_task_mb))
        removed, oracle = removals_of(result.removals), expected(rows)
    finally:
        spark.conf.unset("spark.sql.adaptive.enabled")
    assert removed == oracle, f"seed {seed}, partitions {partitions}"
    assert {tier for _, _, tier in removed.values()} == {surface.EXACT_TOKENS, surface.SURFACE}
    undecidable = {(row.id, row.reason) for row in result.undecidable.collect()}
    assert undecidable == {(row_id, "no_tokens") for row_id in ("none-1", "none-2", "none-3")}
    # The same property, checked without the oracle.
    sets = {row_id: frozenset(token_set(text)) for row_id, text, _ in rows}
    kept = {row_id: tokens for row_id, tokens in sets.items() if row_id not in removed}
    assert all(witness in kept for witness, _, _ in removed.values())
    assert all(10 * len(sets[a] & sets[b]) >= 9 * len(sets[a] | sets[b]) for a, (b, _, _) in removed.items())
    assert similar_pairs(kept, SETTINGS.threshold) == {}
    kept_rows = {(row.id, row.priority.batch, row.priority.hop) for row in result.kept.collect()}
    assert kept_rows == {(row_id, *priority) for row_id, text, priority in rows if row_id in kept and token_set(text)}


def test_the_planted_rows_meet_the_fate_they_were_planted_for() -> None:
    removed = expected(PLANTED)
    assert removed["exact-b"] == ("exact-a", 0.9, surface.SURFACE)
    assert removed["chain-2"][0] == "chain-1"
    assert removed["chain-4"][0] == "chain-3"
    assert removed["group-a1"] == ("group-b1", 0.95, surface.SURFACE)
    assert removed["group-a2"] == ("group-b1", 0.95, surface.SURFACE)
    assert removed["group-b2"] == ("group-b1", 1.0, surface.EXACT_TOKENS)
    ties = {f"tie-{number}" for number in range(2, 7)}
    assert {removed[tie] for tie in ties} == {("tie-1", 1.0, surface.EXACT_TOKENS)}
    assert set(removed) == {"exact-b", "chain-2", "chain-4", "group-a1", "group-a2", "group-b2", *ties}


@PATHS
@ENGINES
def test_batches_that_meet_what_was_kept_give_what_one_run_gives_and_displace_nobody(
    spark: SparkSession, settings: SurfaceSettings, one_task_mb: int
) -> None:
    rows = persona_like_rows(3) + PLANTED
    removed: Removals = {}
    published: DataFrame | None = None
    for batch in range(3):
        new = [row for row in rows if row[2][0] == batch]
        result = surface.deduplicate(
            spark.createDataFrame(new, SCHEMA), settings=limited(settings, one_task_mb), published=published
        )
        newly_removed = removals_of(result.removals)
        assert newly_removed and newly_removed.keys() <= {row_id for row_id, _, _ in new}
        removed |= newly_removed
        kept = result.kept.localCheckpoint()
        published = kept if published is None else published.union(kept)
    assert removed == expected(rows)
    late = [(row_id, text, (-1, 0)) for row_id, text, _ in PLANTED if row_id in ("chain-4", "group-a2", "tie-2")]
    again = surface.deduplicate(
        spark.createDataFrame(late, SCHEMA), settings=limited(settings, one_task_mb), published=published
    )
    of_late = {row_id: removed[row_id] for row_id, _, _ in late}  # published rows win even over better priorities
    assert removals_of(again.removals) == of_late
    assert again.kept.isEmpty()


@PATHS
@pytest.mark.parametrize(
    "settings",
    [
        SurfaceSettings(threshold=Decimal("0.5"), seed=7),
        SurfaceSettings(threshold=Decimal("1")),
        SurfaceSettings(threshold=Decimal("0.5"), engine="exact"),
        SurfaceSettings(threshold=Decimal("0.75"), engine="exact"),
        SurfaceSettings(threshold=Decimal("0.95"), engine="exact"),
        SurfaceSettings(threshold=Decimal("1"), engine="exact"),
    ],
    ids=lambda settings: f"{settings.engine}-{settings.threshold}",
)
def test_other_thresholds_and_seeds_meet_the_oracle(
    spark: SparkSession, settings: SurfaceSettings, one_task_mb: int
) -> None:
    rows = persona_like_rows(4)
    result = surface.deduplicate(spark.createDataFrame(rows, SCHEMA), settings=limited(settings, one_task_mb))
    assert removals_of(result.removals) == expected(rows, settings)


@ENGINES
def test_real_personas_meet_the_oracle(spark: SparkSession, settings: SurfaceSettings) -> None:
    file = REAL / "personas" / "persona_chat_profiles.jsonl.gz"
    if not file.exists():
        pytest.skip(f"no {file}")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["persona"] for line in lines]
    rows = [(f"p{n}", text, (0, n)) for n, text in enumerate(texts[:900])]
    removed = removals_of(surface.deduplicate(spark.createDataFrame(rows, SCHEMA), settings=settings).removals)
    assert len(removed) > 100
    assert removed == expected(rows)


NEAR_DUPLICATES = {
    "zh": ("一位在云南山区教了三十年书的退休小学数学老师，喜欢研究古代算术和茶马古道的历史", "呢"),
    "ja": ("京都の古い町家で和菓子を作り続けている三代目の職人で、季節の花をかたどった菓子が得意", "だ"),
    "th": ("ครูสอนภาษาไทยในโรงเรียนเล็กบนดอยที่ชอบเล่านิทานพื้นบ้านให้เด็กฟังก่อนนอน", "นะ"),
    "ko": ("부산에서 삼십 년 동안 작은 분식집을 운영하며 동네 아이들에게 글을 가르치는 은퇴한 국어 교사", " 할머니"),
    "ar": ("مدرس رياضيات متقاعد من مدينة حلب القديمة يكتب كتبا عن تاريخ علم الفلك عند العرب", " القدماء"),
    "ru": ("учительница физики из сибирского города, которая по вечерам собирает старые приёмники и пишет", " стихи"),
    "emoji": ("🎻 🚲 🐟 🌋 🧵 🧮 ⛵ 🏔 🎭 🛶 👩‍🍳 🇯🇵", " 🎨"),
    "long": (" ".join(f"word{n}" for n in range(10_000)), " " + " ".join(f"more{n}" for n in range(1_000))),
}
SAME_WORDS = {
    "rtl marks": ("\u202bمدرس من حلب\u202c", "مدرس\u200f من\u200e حلب"),
    "joiners": ("an ar\u200dchi\u200ctect", "An architect"),
    "full width": ("Ａ ｎｕｒｓｅ，Ｌｉｍａ", "a nurse: Lima"),
    "half width": ("ｶﾞｲﾄﾞ", "ガイド"),
    "one token": ("Nurse", "nurse!"),
    "two tokens": ("nurse, Lima", "Lima nurse"),
}
UNLIKE = {
    "one": "baker", "one more": "bakers", "two": "a baker", "han": "教师", "traditional": "教師", "kana": "カ",
    "hangul": "가", "zwj": "👩‍🔬", "no zwj": "👩🔬", "tone": "👍🏽", "no tone": "👍", "thai": "ครู", "thai too": "ครัว",
    "arabic": "مدرس", "arabic too": "مدرسة", "cyrillic": "врач", "cyrillic too": "врачи", "e": "все", "yo": "всё",
    "emoji": "🎻", "emoji too": "🎸 🎻", "wide": "Ａ１", "wide too": "Ａ２",
    "marked": "\u200fب\u200e", "marked too": "\u200fت\u200e",
    "zh": "一位喜欢在深夜给病人读诗的年轻护士，养了两只从街上捡来的猫，周末去郊外画水彩",
    "ja": "北海道の小さな港町で灯台を守りながら、渡り鳥の記録をつけている元船員",
    "th": "หมอฟันที่เกษียณแล้วซึ่งปลูกกล้วยไม้หายากและแข่งเรือยาวทุกปีที่จังหวัดน่าน",
    "ko": "서울 지하철에서 야간 정비를 하며 낮에는 재즈 피아노를 배우는 젊은 기술자",
    "ar": "طبيبة أسنان شابة من الدار البيضاء تصور الطيور المهاجرة وتطبخ لجيرانها كل جمعة",
    "ru": "молодой пожарный из Мурманска, который разводит пчёл и чинит старые мотоциклы с дочерью",
    "emojis": "🎻 🚲 🐟 🌋 🧵 🧮 🥁 🏊 🎤 🚀 👨‍🌾 🇰🇷",
    "long": " ".join(f"word{n}" for n in range(1_300, 11_300)),
}  # fmt: skip


@PATHS
@ENGINES
def test_scripts_lengths_and_marks_no_reader_sees(
    spark: SparkSession, settings: SurfaceSettings, one_task_mb: int
) -> None:
    rows: list[Row] = [(f"unlike {name}", text, (0, 0)) for name, text in UNLIKE.items()]
    for name, (text, more) in NEAR_DUPLICATES.items():
        rows += [(f"{name} 1", text, (0, 0)), (f"{name} 2", text + more, (1, 0))]
    for name, (one, other) in SAME_WORDS.items():
        rows += [(f"{name} 1", one, (0, 0)), (f"{name} 2", other, (1, 0))]
    personas = spark.createDataFrame(rows, SCHEMA)
    removed = removals_of(surface.deduplicate(personas, settings=limited(settings, one_task_mb)).removals)
    near = {(f"{name} 2", f"{name} 1", surface.SURFACE) for name in NEAR_DUPLICATES}
    same = {(f"{name} 2", f"{name} 1", surface.EXACT_TOKENS) for name in SAME_WORDS}
    assert {(row_id, kept, tier) for row_id, (kept, _, tier) in removed.items()} == near | same
    assert removed == expected(rows)


def test_hot_tokens_and_copies_propose_no_more_than_their_share(spark: SparkSession) -> None:
    rng = random.Random(8)
    rows: list[Row] = [("copy", "the same words in all of these many copies of a text", (0, 0))]
    rows += [(f"copy-{n:05}", "of the MANY copies, all of a text in these same words", (1, 0)) for n in range(5_000)]
    # One token in half of the rows; the texts are so short that it is among their rarest tokens.
    rows += [(f"hot-{n}", f"hot {rng.getrandbits(60):x}", (0, 0)) for n in range(5_000)]
    rows += [("alone", "hot", (0, 0))]
    personas = spark.createDataFrame(rows, SCHEMA)
    settings = SurfaceSettings(engine="exact", threshold=Decimal("0.6"))
    removed = removals_of(surface.deduplicate(personas, settings=limited(settings, 0)).removals)
    assert removals_of(surface.deduplicate(personas, settings=settings).removals) == removed
    assert len(removed) == 5_000 and {kept for kept, _, _ in removed.values()} == {"copy"}
    sets = surface.with_best(surface.token_sets(personas, settings)).where("id = best.id")
    assert sets.count() == 5_002
    assert surface.candidates(surface.with_keys(sets, None, settings), settings).count() < 5_000


@PATHS
def test_a_threshold_of_more_digits_than_integers_can_hold_is_refused_and_the_finest_one_holds(
    spark: SparkSession, one_task_mb: int
) -> None:
    with pytest.raises(SettingsError, match=r"dedup\.surface\.threshold: .* 6 decimal places"):
        validate({"dedup": {"surface": {"threshold": "0.90000000000000001"}}})
    finest = validate({"dedup": {"surface": {"threshold": "0.899999"}}}).dedup.surface
    shared = [f"w{n}" for n in range(99_999)]
    rows: list[Row] = [
        ("above-a", " ".join(shared[:90_000]), (0, 0)),
        ("above-b", " ".join(shared), (1, 0)),  # 90,000 of 99,999
        ("below-a", " ".join(f"x{n}" for n in range(89_998)), (0, 0)),
        ("below-b", " ".join(f"x{n}" for n in range(100_000)), (1, 0)),
    ]
    result = surface.deduplicate(spark.createDataFrame(rows, SCHEMA), settings=limited(finest, one_task_mb))
    assert set(removals_of(result.removals)) == {"above-b"}


@ENGINES
def test_published_rows_count_for_the_memory_of_one_task_as_new_ones_do(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, settings: SurfaceSettings
) -> None:
    taken: list[str] = []
    for path in ("_in_one_task", "_by_joins"):
        way = getattr(surface, path)
        monkeypatch.setattr(surface, path, lambda *rows, path=path, way=way: taken.append(path) or way(*rows))
    # Half of them take 0.73 MB: 1,300 rows of four tokens, or 500 rows that also have 18 bands.
    count = 1000 if settings.engine == "minhash" else 2600
    rows: list[Row] = [(f"{n:04}", f"persona {n} of many", (n % 2, 0)) for n in range(count)]
    old, new = (spark.createDataFrame([row for row in rows if row[2][0] == half], SCHEMA) for half in range(2))
    chosen = limited(settings, 1)
    kept = surface.deduplicate(old, settings=chosen).kept.localCheckpoint()
    assert surface.deduplicate(new, settings=chosen, published=kept).removals.isEmpty()
    assert surface.deduplicate(spark.createDataFrame(rows, SCHEMA), settings=chosen).removals.isEmpty()
    assert taken == ["_in_one_task", "_by_joins", "_by_joins"]
    enough = limited(settings, 2)
    assert surface.deduplicate(new, settings=enough, published=kept).removals.isEmpty()
    endless = limited(settings, 1 << 40)
    assert surface.deduplicate(new, settings=endless, published=kept).removals.isEmpty()
    assert taken[3:] == ["_in_one_task", "_in_one_task"]


@PATHS
def test_nothing_in_nothing_out(spark: SparkSession, one_task_mb: int) -> None:
    nothing = spark.createDataFrame([("none", "...", (0, 0))], SCHEMA).where("text is null")
    result = surface.deduplicate(nothing, settings=limited(SETTINGS, one_task_mb))
    assert result.removals.collect() == result.undecidable.collect() == []
    assert result.removals.columns == ["id", "kept_id", "similarity", "tier"]


@pytest.fixture
def small_batches(spark: SparkSession) -> Iterator[None]:
    """Batches of three rows for Python."""
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(name)
    assert before is not None
    spark.conf.set(name, 3)
    yield
    spark.conf.set(name, before)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("in_one_task", [10_000, 0])
def test_survivors_of_random_graphs_are_those_of_the_greedy_oracle(spark: SparkSession, in_one_task: int) -> None:
    for seed, density in ((5, 0.02), (6, 0.2)):
        rng = random.Random(seed)
        rows = [(f"n{i:02}", rng.randrange(4)) for i in range(60)]
        ids = sorted(row_id for row_id, _ in rows)
        pairs = {
            (a, b): Fraction(rng.randrange(90, 101), 100) for a in ids for b in ids if a < b and rng.random() < density
        }
        priority = dict(rows)
        given = [
            (a, priority[a], b, priority[b], float(similarity), "t")
            for (a, b), similarity in ((rng.sample(pair, 2), similarity) for pair, similarity in pairs.items())
        ]
        frame = spark.createDataFrame(given, PAIRS).repartition(3)
        removed = survivors(frame, in_one_task=in_one_task)
        oracle = {a: (b, float(s), "t") for a, (b, s) in greedy_removals(by_priority(rows), pairs).items()}
        assert removals_of(removed) == oracle, f"seed {seed}"


def test_too_long_a_chain_of_decisions_is_one_clear_error(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personahub_spark.dedup.survivors.MAX_ROUNDS", 2)
    rows = [(str(n), n, str(n + 1), n + 1, 0.9, "t") for n in range(7)]
    pairs = spark.createDataFrame(rows, PAIRS)
    with pytest.raises(PersonaHubError, match="undecided after 2 rounds"):
        survivors(pairs, in_one_task=6)
    assert {row["id"] for row in survivors(pairs, in_one_task=7).collect()} == {"1", "3", "5", "7"}


@pytest.mark.parametrize(
    ("threshold", "num_hashes", "recall", "bands"),
    [
        (0.9, 128, 0.99999, (18, 7)),
        (0.9, 128, 0.999, (16, 8)),
        (0.9, 128, 0.99, (12, 10)),
        (0.5, 128, 0.999, (64, 2)),
        (1.0, 64, 0.999, (1, 64)),
    ],
)
def test_bands_are_the_longest_that_reach_the_recall(
    threshold: float, num_hashes: int, recall: float, bands: tuple[int, int]
) -> None:
    def chance(rows: int) -> float:
        return 1 - (1 - threshold**rows) ** (num_hashes // rows)

    count, rows = surface.bands(threshold, num_hashes, recall)
    assert (count, rows) == bands
    assert chance(rows) >= recall
    assert all(chance(longer) < recall for longer in range(rows + 1, num_hashes + 1))


def test_the_keys_of_rows(spark: SparkSession) -> None:
    """Keys are stored, and later batches must compute the same ones: raise _BANDS_VERSION if they change."""
    texts = {
        "large": "A nurse in a village by the sea who collects old maps",
        "small": "A nurse",
        "none": "!",
        "null": None,
    }
    rows = spark.createDataFrame([(name, text, (0, 0)) for name, text in texts.items()], SCHEMA)

    def keys(settings: SurfaceSettings) -> dict[str, list[int] | None]:
        return {row["id"]: row["keys"] for row in surface.token_sets(rows, settings).collect()}

    assert set(keys(EXACT).values()) == {None} and set(keys(EXACT)) == set(texts)
    by_minhash = keys(SETTINGS)
    assert {name: len(bands) for name, bands in by_minhash.items()} == {"large": 18, "small": 1, "none": 0, "null": 0}
    assert by_minhash["small"] == [-8267869992603124719]
    assert by_minhash["large"][:2] == [-5240068484701981611, -2314536771905941516]
    at_half, at_one = (keys(SurfaceSettings(threshold=Decimal(threshold))) for threshold in ("0.5", "1"))
    assert [len(bands["large"] or ()) for bands in (at_half, at_one)] == [64, 1]


@pytest.mark.parametrize(("num_hashes", "seed"), [(128, 42), (16, -7)])
def test_signatures_are_those_that_mllibs_model_makes(spark: SparkSession, num_hashes: int, seed: int) -> None:
    rng = random.Random(seed)
    sets = [[rng.getrandbits(63) for _ in range(rng.choice([1, 2, 15, 200]))] for _ in range(50)]
    sets += [[0], [(1 << 30) - 1, 1 << 30], [(1 << 63) - 1]]
    tokens = Lists.of(np.array([token for one in sets for token in one]), np.array([len(one) for one in sets]))
    features = [
        (
            row,
            Vectors.sparse(1 << 30, dict.fromkeys(minhash.elements(tokens.take(np.array([row])).values).tolist(), 1.0)),
        )
        for row in range(len(sets))
    ]
    rows = spark.createDataFrame(features, ["row", "features"])
    model = MinHashLSH(inputCol="features", outputCol="values", numHashTables=num_hashes, seed=seed).fit(rows)
    by_mllib = [[int(value[0]) for value in row["values"]] for row in model.transform(rows).orderBy("row").collect()]
    assert minhash.signatures(tokens, minhash.hash_functions(num_hashes, seed)).tolist() == by_mllib


def test_a_recall_out_of_reach_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="raise num_hashes"):
        surface.bands(0.3, 16, 0.999)


def test_the_parameters_version_changes_with_what_decides_and_with_nothing_else() -> None:
    version = surface.parameters_version(SETTINGS)
    assert version == surface.parameters_version(SurfaceSettings(threshold=Decimal("0.90")))
    assert version == surface.parameters_version(limited(SETTINGS, 1))
    others = [
        SurfaceSettings(threshold=Decimal("0.8")),
        SurfaceSettings(num_hashes=64),
        SurfaceSettings(seed=1),
        SurfaceSettings(recall=0.9),
        EXACT,
        SurfaceSettings(engine="exact", threshold=Decimal("0.8")),
    ]
    assert len({version, *map(surface.parameters_version, others)}) == 7
    assert surface.parameters_version(EXACT) == surface.parameters_version(
        SurfaceSettings(engine="exact", num_hashes=64, seed=1, recall=0.9)
    )
