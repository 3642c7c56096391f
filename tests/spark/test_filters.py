"""Each rule by minimal pairs: a bad row, and the smallest change that makes it good. One Spark job judges all rows."""

from __future__ import annotations

import time

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from personahub_spark.hub.filters import RULES, quality_flags
from personahub_spark.settings.personas import FilterSettings
from tests.waiting import PATIENCE_S

SETTINGS = FilterSettings(min_words=4, max_words=12)
SOURCE = "In 1987 the old harbour pilot of Genoa retired after forty years of guiding ships through the narrow channel."
ZH_SOURCE = "1987年，热那亚港的一位老引航员在引导船只通过狭窄航道四十年后退休了。"

# (rule, bad, good, language); the good row breaks no rule at all.
PAIRS = [
    ("too_short", "A patient nurse", "A very patient nurse", "en"),
    ("too_short", "小学数学老师", "小学的数学老师", "zh"),
    ("too_short", "ครูสอน", "ครูสอนภาษาไทยในโรงเรียน", "th"),
    ("too_short", " ", "مدرس رياضيات في القاهرة", "ar"),
    ("too_long", "A nurse in a very small and old ward by the sea shore",
     "A nurse in a very small old ward by the sea shore", "en"),
    ("too_long", "一位在北方城市教了三十年数学的老师，非常热爱钓鱼旅行", "一位在北方城市教了三十年数学的老师", "zh"),
    ("not_a_person", "A small company that repairs bicycles", "A small company owner that repairs bicycles", "en"),
    ("not_a_person", "The text is about a retired nurse", "The text editor of a retired nurse", "en"),
    ("not_a_person", "This article describes a nurse in Lima", "The author of an article on nurses in Lima", "en"),
    ("not_a_person", "A group of nurses from old Lima", "A group therapist of nurses from old Lima", "en"),
    ("not_a_person", "A young couple who restore old boats", "A young couple therapist who restores old boats", "en"),
    ("not_a_person", "A couple planning their trip to Lima", "A couple therapist planning her trip to Lima", "en"),
    ("not_a_person", "A bakery that sells to old Lima", "A bakery owner that sells to old Lima", "en"),
    ("not_a_person", "Customers who buy apples in Lima", "Waitress who buys apples in Lima", "en"),
    ("not_a_person", "A newlywed couple on a tour of Lima", "A newlywed on a couple of tours of Lima", "en"),
    ("not_a_person", "A large museum that keeps old boats", "A large museum guard who loves old boats", "en"),
    ("not_a_person", "Chapter 3 on night shift nurses", "A chapter president of night shift nurses", "en"),
    ("not_a_person", "How to become a night nurse", "A night nurse teaching how to cope", "en"),
    ("not_a_person", "这篇文章介绍一位退休护士", "一位写文章介绍退休生活的护士", "zh"),
    ("not_a_person", "El texto trata de una enfermera", "El editor del texto de una enfermera", "es"),
    ("undecided", "A shy midwife or surgeon from old Lima", "A shy old or young surgeon from old Lima", "en"),
    ("undecided", "A midwife or an ER surgeon from Lima", "A midwife on one or two wards from Lima", "en"),
    ("undecided", "A shy baker or teacher from old Lima", "A first or second grade teacher from old Lima", "en"),
    ("undecided", "A shy baker or student from old Lima", "A blind or partially sighted student from Lima", "en"),
    ("undecided", "A shy baker or engineer from old Lima", "A retired or semi-retired engineer from Lima", "en"),
    ("names_a_person", "Ana Silva, a nurse from old Lima", "In Lima, a nurse from old Spain", "en"),
    ("names_a_person", "Lima violinist Ana Silva, who sings", "Lima Violin Teacher, who sings", "en"),
    ("names_a_person", "Dr. Ana M. Silva is a surgeon", "She is a surgeon in Lima", "en"),
    ("names_a_person", "A shy nurse named Ana from Lima", "A shy nurse named best of Lima", "en"),
    ("names_a_person", "A close friend of Ana Silva", "A loyal fan of Freddie Mercury", "en"),
    ("names_a_person", "A good neighbour of Ana Silva", "A good neighbour of Lima Zoo Park", "en"),
    ("names_a_person", "A good wife of Ana Silva", "A good wife of Vietnam War veterans", "en"),
    ("names_a_person", "A good daughter of Ana Silva", "A good daughter of South African immigrants", "en"),
    ("names_a_person", "Ana's shy book author and mother", "Children's book author and mother of two", "en"),
    ("names_a_person", "Ana, a 45-year-old mother", "Nurse, a 45-year-old mother", "en"),
    ("names_a_person", "Ana Silva's first editor from Lima", "Lima's first women editor of note", "en"),
    ("names_a_person", "Ana Silva's proud old aunt from Lima", "Lima's proud old nurse of the year", "en"),
    ("points_elsewhere", "A nurse mentioned in the text", "A nurse mentioned in the news", "en"),
    ("points_elsewhere", "A nurse who thinks the document is fake", "A nurse who thinks the pill is fake", "en"),
    ("points_elsewhere", "A nurse who is moved by this article", "A nurse who plays this piece every night", "en"),
    ("points_elsewhere", "A nurse who saw this event", "A nurse who saw one event", "en"),
    ("points_elsewhere", "A nurse who mocks the given persona", "A nurse who mocks the stage persona's fans", "en"),
    ("points_elsewhere", "The old nurse who sings by night", "The youngest nurse who sings by night", "en"),
    ("points_elsewhere", "A nurse who fears the arsonist, too", "A nurse who fears the heist, too", "en"),
    ("points_elsewhere", "The young nurse who sings by night", "The nurse of a village who sings by night", "en"),
    ("points_elsewhere", "The aunt of the nurse who sings", "The aunt of one nurse who sings", "en"),
    ("points_elsewhere", "Another nurse from the old ward", "A nurse from another old ward", "en"),
    ("points_elsewhere", "A nurse who copies the old historian's work", "A nurse who copies the old town's work", "en"),
    ("points_elsewhere", "The poet's old nurse from Lima", "The Poet's Inn nurse from Lima", "en"),
    ("points_elsewhere", "A nurse who advises the young poet", "A nurse who advises the poet of Lima", "en"),
    ("points_elsewhere", "A nurse seen with the lead singer", "A nurse who was the lead singer", "en"),
    ("points_elsewhere", "A nurse who sings and helps the poet", "A poet and nurse: a singer and the poet", "en"),
    ("points_elsewhere", "A nurse who asks the archaeologist", "A nurse who asks the cardiologist", "en"),
    ("first_person", "I am a nurse from Lima", "She is a nurse from Lima", "en"),
    ("first_person", "I'm a nurse from old Lima", "Type I diabetes nurse from old Lima", "en"),
    ("first_person", "A nurse caring for my own father", "A nurse caring for his own father", "en"),
    ("first_person", "A nurse who helps me at night", "A nurse whose pill helps us at night", "en"),
    ("first_person", "A nurse who supplies us with pills", "A nurse who supplies US soldiers", "en"),
    ("first_person", "A nurse to whom letters meant a lot for me", "A nurse who says “I am tired” every day", "en"),
    ("first_person", "我是一位退休的小学护士", "一位善于自我反省的退休护士", "zh"),
    ("first_person", "Ich bin Krankenpfleger in einem kleinen Dorf", "Krankenpfleger in einem kleinen Dorf", "de"),
    ("first_person", "Я работаю учителем в школе", "Учитель физики в сельской школе", "ru"),
    ("addresses_reader", "A nurse who will help you sleep", "A nurse who will help children sleep", "en"),
    ("addresses_reader", "Imagine a nurse from old Lima", "An Imagine Dragons fan from old Lima", "en"),
    ("addresses_reader", "Your night nurse from old Lima", "A do-it-yourself nurse from old Lima", "en"),
    ("addresses_reader", "一位照顾你父亲的护士", "一位照顾老人的退休护士", "zh"),
    ("copies_source", "the old harbour pilot of Genoa retired", "A retired harbour pilot who misses old Genoa", "en"),
    ("copies_source", "The Old Harbour, pilot of GENOA", "The proud old harbour pilot from Genoa", "en"),
    ("copies_source", "热那亚港的一位老引航员", "一位怀念大海的退休引航员", "zh"),
    ("contact_data", "A nurse at ana@clinic.org in Lima", "A nurse at Ana clinic in Lima", "en"),
    ("contact_data", "A nurse who blogs at www.example.org daily", "A nurse who blogs about Booking.com daily", "en"),
    ("contact_data", "A nurse to call at 555-123-4567 by night", "A nurse born in 1914-1918 by night", "en"),
    ("contact_data", "A nurse known as @nightnurse in Lima", "A nurse known as nightnurse in Lima", "en"),
    ("contact_data", "一位护士，电话13800138000", "一位在2023年退休的护士", "zh"),
    ("placeholder", "A nurse called [name] from Lima", "A nurse called away from Lima", "en"),
    ("placeholder", "A {{role}} from the old Lima", "A carer from the old Lima", "en"),
    ("placeholder", "A <profession> from the old Lima", "A nurse with <3 patients in the old Lima", "en"),
    ("placeholder", "A nurse from lorem ipsum in Lima", "A nurse from Loreto in Lima", "en"),
    ("placeholder", "A nurse whose age is N/A", "A nurse whose team is N.A. Pride", "en"),
    ("repeated_words", "nurse nurse nurse nurse from Lima", "nurse after nurse after nurse from Lima", "en"),
    ("repeated_words", "he and she and he and she and he", "A fan of Wet Wet Wet from Glasgow", "en"),
    ("repeated_words", "一位护士，一位护士，一位护士，一位护士", "一位护士，一位照顾老人的护士", "zh"),
    ("wrong_language", "Een verpleegster uit Lima met een passie voor muziek",
     "A nurse with a passion for Een and van Gogh", "en"),
    ("wrong_language", "Una enfermera de la ciudad que ama el mar", "A nurse who works in Rio de Janeiro", "en"),
    ("wrong_language", "一位退休的小学护士", "A nurse who reads 三国演义 in the city", "en"),
    ("wrong_language", "A retired nurse from the city", "一位熟悉 JavaScript 的退休护士", "zh"),
    ("wrong_language", "退職した小学校の看護師の先生", "一位退休的小学护士老师", "zh"),
    ("wrong_language", "一位在北方城市退休的小学护士老师", "退職した小学校の看護師", "ja"),
    ("wrong_language", "A retired nurse from the city", "พยาบาลเกษียณจากโรงพยาบาลในเมือง", "th"),
    ("wrong_language", "A retired nurse from the city", "Una enfermera de la ciudad que ama el mar", "es-MX"),
    ("wrong_language", "Una enfermera de la ciudad que ama el mar", "Eine Krankenschwester aus der Stadt", "de"),
    ("refusal", "I'm sorry, but no nurse is described", "A nurse who is sorry for no one", "en"),
    ("refusal", "As an AI language model nobody fits this", "An AI language model researcher from Lima", "en"),
    ("refusal", "Sorry, I cannot infer a reader here", "A nurse who cannot infer a reader's mood", "en"),
    ("refusal", "抱歉，作为一个AI语言模型，没有人", "一位研究AI语言模型的护士", "zh"),
]  # fmt: skip

GOOD = [
    ("A 71-year-old retired nurse from Italy", None),
    ("A 71-year-old retired nurse from Italy", "xx"),
    ("香港电影忠实粉丝", "zh_CN"),
    ("大阪居民，对政治中立但关心城市发展", "zh"),
    ("นักพัฒนาซอฟต์แวร์ที่เชี่ยวชาญในงานการพัฒนาเว็บไซต์", "th"),
    ("معلم متقاعد يحب الشعر القديم", "ar"),
    ("गाँव के स्कूल में गणित का शिक्षक", "hi"),
    ("서울에서 일하는 은퇴한 간호사", "ko"),
    ("Медсестра из небольшого города, любящая Java", "ru"),
    ("Un professeur d'université spécialiste en études de genre", "fr"),
    ("A chef 👩🏽‍🍳 who cooks 麻婆豆腐 in Tokyo", "en"),
]


@pytest.fixture(scope="module")
def flags(spark: SparkSession) -> dict[tuple[str | None, str | None], list[str]]:
    rows: list[tuple[str | None, str | None]] = [(None, "en"), (None, None), ("", "en"), *GOOD]
    for _, bad, good, lang in PAIRS:
        rows += [(bad, lang), (good, lang)]
    frame = spark.createDataFrame(rows, "text string, lang string").withColumn(
        "source", F.when(F.col("lang") == "zh", F.lit(ZH_SOURCE)).when(F.col("lang") == "en", F.lit(SOURCE))
    )
    judged = quality_flags(F.col("text"), source_text=F.col("source"), expected_lang=F.col("lang"), settings=SETTINGS)
    return {(row.text, row.lang): row.flags for row in frame.select("text", "lang", judged.alias("flags")).collect()}


@pytest.mark.parametrize(("rule", "bad", "good", "lang"), PAIRS)
def test_the_fault_is_flagged_and_the_least_change_mends_it(
    flags: dict[tuple[str, str], list[str]], rule: str, bad: str, good: str, lang: str
) -> None:
    assert rule in flags[bad, lang]
    assert flags[good, lang] == []


def test_every_rule_has_a_pair() -> None:
    assert {rule for rule, *_ in PAIRS} == set(RULES)


@pytest.mark.parametrize(("text", "lang"), GOOD)
def test_personas_of_many_scripts_and_of_unknown_language_pass(
    flags: dict[tuple[str, str | None], list[str]], text: str, lang: str | None
) -> None:
    assert flags[text, lang] == []


def test_null_and_empty_texts_are_too_short_and_nothing_else(
    flags: dict[tuple[str | None, str | None], list[str]],
) -> None:
    assert flags[None, "en"] == flags[None, None] == flags["", "en"] == ["too_short"]


def test_flags_come_in_the_order_of_the_rules(flags: dict[tuple[str, str], list[str]]) -> None:
    names = flags["I'm sorry, but no nurse is described", "en"]
    assert names == [rule for rule in RULES if rule in names]
    assert len(names) > 1


def test_rules_that_are_off_flag_nothing_and_all_may_be_off(spark: SparkSession) -> None:
    def judged(off: list[str]) -> list[str]:
        settings = FilterSettings(disabled=off, min_words=9)
        text, lang = F.lit("I'm sorry, www.example.org"), F.lit("en")
        flags = quality_flags(text, source_text=F.lit(None), expected_lang=lang, settings=settings)
        return spark.range(1).select(flags.alias("flags")).head().flags

    assert judged([]) == ["too_short", "first_person", "contact_data", "refusal"]
    assert judged(["refusal", "too_short"]) == ["first_person", "contact_data"]
    assert judged(list(RULES)) == []


def test_a_megabyte_of_text_is_judged_at_all_under_ansi_mode(spark: SparkSession) -> None:
    huge = ["x" * 1_000_000, "ab cd " * 170_000, "人" * 300_000, "@" * 1_000_000]
    frame = spark.createDataFrame([(text,) for text in huge], "text string")
    judged = quality_flags(F.col("text"), source_text=F.col("text"), expected_lang=F.lit("en"), settings=SETTINGS)
    ansi = spark.conf.get("spark.sql.ansi.enabled")
    spark.conf.set("spark.sql.ansi.enabled", "true")
    started = time.perf_counter()
    try:
        flags = [row.flags for row in frame.select(judged.alias("flags")).collect()]
    finally:
        spark.conf.set("spark.sql.ansi.enabled", ansi)
    assert time.perf_counter() - started < PATIENCE_S  # a rule with quadratic time would take hours
    assert "too_long" in flags[1]
    assert {"copies_source", "repeated_words"} <= set(flags[1])
    assert {"too_long", "wrong_language"} <= set(flags[2])
