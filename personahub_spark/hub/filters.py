"""Quality rules for personas: functions ``Column -> Column``, true when the row is bad; rows are never dropped.

Everything runs inside the JVM. The rules miss a fault rather than flag a good row: what they cannot judge (an unknown
language, a script without words) passes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import get_args

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType

from personahub_spark.settings.personas import FilterSettings, Rule

RULES: tuple[Rule, ...] = get_args(Rule)

_LIMITS = {
    "too_short": "min_words", "too_long": "max_words", "copies_source": "copied_share",
    "repeated_words": "repeated_share",
}  # fmt: skip
"""The setting of ``filters`` that holds a rule's limit."""

_CJK = r"\p{IsHan}\p{IsHiragana}\p{IsKatakana}\u30fc\u3005"
_THAI_LIKE = r"\p{IsThai}\p{IsLao}\p{IsKhmer}\p{IsMyanmar}"
_SPACED_WORD = rf"[\p{{L}}\p{{N}}&&[^{_CJK}{_THAI_LIKE}]][\p{{L}}\p{{M}}\p{{N}}'\u2019&&[^{_CJK}{_THAI_LIKE}]]*+"

_GRAM = 5
_JUDGED_WORDS = 200
_JUDGED_SOURCE_CHARACTERS = 200_000

_TEXT_NOUN = (
    "text|article|passage|document|paragraph|excerpt|abstract|essay|book|paper|story|web ?page|website|blog post"
    "|chapter"
)
_THING_NOUN = (
    "company|organi[sz]ation|corporation|institution|agency|start-?up|firm|foundation|university|non-?profit"
    "|government|ministry|association|product|device|machine|software|tool|app|application|dataset|program|system"
    "|platform|event|city|country|species|game|service|museum|airline|school district|cooperative|language model"
    "|chatbot|website|bakery|restaurant|shop|store|hospital|clinic|school|bank|hotel|library|factory|charity|brand"
)
_GROUP_NOUN = "group|team|family|couple|pair|crew|panel|committee|bunch|gang|crowd|collective|coalition"

_GOES_ON = (
    "that|which|is|was|are|has|for|with|in|describ(?:es|ing)|discuss(?:es|ing)|explain(?:s|ing)|provid(?:es|ing)"
    "|present(?:s|ing)|cover(?:s|ing)|contain(?:s|ing)|talks|focus(?:es|ed|ing)|mentions|seeking|looking|offering"
    "|producing|making|speciali[sz]ing|based (?:in|on|at)|dedicated|located|founded|designed|used|who|whose|aiming"
    "|fighting|trying|trained|in need|working|living|visiting|travell?ing"
    "|(?:developing|planning) (?:an?|the|new|its|their)"
)
# "The historian" is a certain person; "the customer", "the barber" and "the doctor" may be anybody.
_ROLE = (
    r"(?!heist|hoist|amphibian"
    r"|check|play|wait|short|wish|black|guest|twist|wrist|median|meridian|dentist|receptionist|therapist|pharmacist"
    r"|tourist|technician|librarian|guardian|physician|pediatrician|civilian|pedestrian|optometrist|orthodontist"
    r"|psychiatrist|(?:radio|neuro|cardio|dermato|psycho|patho|pulmono|uro|gyneco|onco|gastroentero|rheumato)logist)"
    r"\p{Ll}{2,20}(?:ist|ian|grapher)"
    "|engineer|volunteer|professor|teacher|tutor|mentor|lecturer|instructor|trainer|coach|student|apprentice|intern"
    "|graduate|researcher|developer|designer|programmer|architect|inventor|explorer|entrepreneur|analyst|lawyer"
    "|attorney|prosecutor|investigator|detective|soldier|veteran|firefighter|warden|chef|baker|gardener|farmer|rancher"
    "|beekeeper|shopkeeper|innkeeper|writer|poet|author|composer|singer|dancer|painter|actor|actress|filmmaker"
    "|showrunner|blogger|vlogger|streamer|podcaster|influencer|creator|curator|coordinator|organizer|boxer|swimmer"
    "|runner|striker|midfielder|retiree|teenager|grandparent|travell?er|marketer|businessman|businesswoman"
    "|administrator"
)
_NAME = r"\p{Lu}[\p{L}\p{M}.'\u2019-]*+"
_TITLE = r"(?:(?:Dr|Mr|Mrs|Ms|Prof|Professor|Sir|Coach)\.? )?"
_CLOSE = (
    "friend|colleague|classmate|schoolmate|teammate|roommate|neighbou?r|acquaintance|co-?worker|cousin|sibling|brother"
    "|sister|son|daughter|mother|father|parent|wife|husband|widow|widower|niece|nephew|uncle|aunt|grandson"
    "|granddaughter|grandchild|grandmother|grandfather|grandparent|relative|family member|business partner"
)
_NO_NAME = (
    "School|University|College|Academy|Institute|Park|Street|Church|Club|Association|Hospital|City|State|War|Islands?"
    "|Zealand|African|American|Asian|European|Indian|Korean"
)


def _any_of(*patterns: str) -> str:
    # Groups keep an inline flag such as (?i) to its own alternative.
    return "|".join(f"(?:{pattern})" for pattern in patterns)


_NO_PERSON = _any_of(
    # "A small company that ...", but not "An owner of a company that ...", "A firm founder", "A University of X fan".
    r"(?i)^\W*(?:an?|the|this)\s+(?:(?!(?:an?|the|of|at|for|from|in|on|to|with|by|as|and|who|whose|that|which|his|her"
    rf"|their|its)\b)[\p{{L}}\p{{M}}\p{{N}}'\u2019-]++\s+){{0,4}}?"
    rf"(?:(?:{_TEXT_NOUN})\s+(?:of|on|about|from|by|titled|{_GOES_ON})|(?:{_THING_NOUN})\s+(?:{_GOES_ON})"
    rf"|(?:{_GROUP_NOUN})\s+(?:of|on|at|from|{_GOES_ON}))\b",
    r"(?i)^\W*(?:here (?:is|are)|here['\u2019]s|sure\b|certainly\b|based on the)",
    # Several people: "Customers who ...".
    r"^\W*\p{Lu}\p{Ll}+s(?<!ss|us|is|as) (?:who|that)\b|^\W*People (?:who|that|from|in|with)\b",
    # Titles.
    r"(?i)^\W*(?:chapter|section|part|figure|table|lesson|unit|episode|volume) (?:\d|[ivx]+\b)",
    r"(?i)^\W*(?:how to|what (?:is|are)|why|introduction to)\b",
    r"(?i)^\W*(?:a |the )?(?:brief |complete )?(?:guide|history|overview) (?:to|of)\b",
    r"(?i)^\W*\d+ (?:\p{L}+ )?(?:ways|things|tips|reasons|steps|facts)\b",
    r"^\W*(?:这|本|该|此|這|該)(?:是一?)?(?:篇|段|则|份|個|个|本)?(?:文章|文本|文字|文档|短文|公司|网站|網站|段落)",
    r"^\W*(?:この|その|本)?(?:記事|文章|テキスト|本文|文書|会社)(?:は|では|には)",
    r"(?i)^\W*(?:este|esta|el|la|un|una|o|a|um|uma|questo|il|lo) (?:texto|art[ií]culo|artigo|documento|pasaje|empresa"
    r"|testo|articolo|azienda) (?:es|trata|describe|habla|explica|que|sobre|é|fala|descreve|è|parla|descrive|che)\b",
    r"(?i)^\W*(?:ce|cet|cette|le|un|une|l['\u2019]) ?(?:texte|article|document|passage|entreprise) "
    r"(?:est|décrit|parle|traite|explique|présente|qui|sur)\b",
    r"(?i)^\W*(?:dieser|dieses|diese|der|das|die|eine?) (?:text|artikel|dokument|firma|unternehmen)"
    r"(?:,| (?:ist|beschreibt|handelt|erklärt|über))",
    r"(?i)^\W*(?:этот |данный |эта |данная )?(?:текст|статья|документ|компания)"
    r" (?:о|об|про|это|описывает|рассказывает)\b",
    r"^\W*(?:บทความ|ข้อความ)(?:นี้)",
    r"^\W*(?:هذا|هذه) (?:النص|المقال|المقالة|الوثيقة|الشركة)",
)

# "A midwife or surgeon", but not "A small or large baker", "A part- or full-time nurse", "A nurse of one or two wards".
_UNDECIDED = (
    r"^\W*[Aa]n? (?:(?!(?:of|at|for|from|in|on|to|with|by|as|who|whose|that|which|whether|and|more|one|two|small|old"
    r"|poor|public|private|paid|male|junior|full|part|first|second|third|retired|current|former|early|mid|late|blind"
    r"|deaf|gay|lesbian|bisexual)\b)\p{L}[\p{L}/-]*+ ){1,4}or (?:an? )?\p{L}"
)
_POINTS_ELSEWHERE = _any_of(
    # To the text it was inferred from.
    r"(?i)\b(?:this|the (?:given|provided|above))\s+(?:text|passage|article|excerpt|document|event|study)\b",
    r"(?i)\b(?:mentioned|described|discussed|featured|presented|(?:read|write|like|dislike|enjoy)(?:s|ing)?)"
    r"(?: in| by)? the (?:text|passage|article|excerpt|document)\b",
    r"(?i)\bthe (?:text|passage|article|excerpt|document) (?:is|was|says|describes|discusses|explains|mentions)\b",
    # To the persona it is related to.
    r"(?i)\bthe (?:(?:given |original |said )?persona|(?:given|said|original|aforementioned) (?:person|individual))\b",
    r"^\W*Another \p{Ll}",
    # "The actor who", "The mother of the child who", but not "The owner of a bakery who", "The Lima head coach who".
    r"^\W*[Tt]he (?!(?:most|least|\p{Ll}{2,12}est)\b)"
    r"(?:(?!(?:of|at|for|from|in|on|to|with|by|behind)\b)[\p{Ll}\d][\p{Ll}\d'\u2019-]*+,? ){1,4}?"
    r"(?:of the \p{Ll}[\p{Ll}-]*+,? )?(?:who|that)\b",
    # "helps the historian", but not "the historian of the town", and not where it said "a historian" somewhere.
    rf"(?s)^(?=.*?(?<!\b(?:am|is|was|be|as|become) )\b[Tt]he (?:\p{{L}}[\p{{L}}-]{{1,20}} ){{0,2}}?({_ROLE})"
    r"(?:['\u2019]s\b|[.,;]|$| (?:to|in|with|on|for|through|during|and|by|while|as|studying|working)\b))"
    r"(?!.*?\b[Aa]n? (?:[\p{L}'-]{1,20} ){0,2}\1\b)",
)
_NAMES_A_PERSON = _any_of(
    # "Ana Silva, a nurse", "Ana is a nurse", "A nurse named Ana".
    r"^\W*(?!(?:An?|The|In|At|On|As|From|For|With|By|Once|Today|Nurse|Chef|Cook)\b)"
    rf"{_TITLE}{_NAME}(?: {_NAME}){{0,3}}, (?:an?|the) [\p{{Ll}}\d]",
    # "Lima violinist Ana Silva, who", but not "Software Engineer, who".
    rf"^\W*(?!(?:An?|The|In|At|On|As|From|For|With|By)\b){_NAME} (?:(?!(?:of|at|for|from|in|on|to|with|by)\b)"
    rf"[\p{{L}}\p{{M}}.'\u2019-]++ ){{0,4}}?{_NAME}(?<!er|or|ist|ian|ent|ant|man|fan), who\b",
    rf"^\W*(?!(?:She|He|They|It|This|That|There|Here|Who|What|The|An?|One)\b){_TITLE}{_NAME}(?: {_NAME}){{0,3}} "
    r"(?:is|was) an? \p{Ll}",
    r"^\W*[Aa]n? (?:(?!(?:of|at|for|from|in|on|to|with|by|who|whose|that|which|his|her|their)\b)"
    r"[\p{L}\p{M}\p{N}'\u2019-]++ ){1,6}?(?:named|called|whose name is) [\"\u201c']?\p{Lu}\p{Ll}",
    # "A friend of Ana Silva", "Ana Silva's old friend", not "A fan of Freddie Mercury", "A friend of Lima Zoo Park".
    rf"\b(?:{_CLOSE})s? (?:of|to) {_TITLE}(?!(?:\S+ ){{0,3}}(?:{_NO_NAME})\b){_NAME}(?: {_NAME})+",
    rf"^\W*(?!(?:Children|Women|Men)\b){_TITLE}{_NAME}(?: {_NAME}){{0,3}}"
    rf"(?<=['\u2019]s) (?:\p{{Ll}}[\p{{Ll}}-]* ){{0,4}}(?:{_CLOSE})\b",
    rf"^\W*{_TITLE}{_NAME}(?: {_NAME}){{1,3}}(?<=['\u2019]s) (?:\p{{Ll}}[\p{{Ll}}-]* ){{0,4}}(?:student|teacher"
    r"|mentor|assistant|editor)\b",
)

_NOT_QUOTED = r"(?<![\"\u201c\u2018\u00ab\u300c'-])"
_I_VERB = (
    r"(?:am|was|have|had|would|will|can|do|don['\u2019]t|did|love|like|enjoy|work|live|hate|believe|think|want|need|feel"
    r"|prefer|speciali[sz]e|teach|study|see|know|used|grew|spend|hope|dream|approach)\b"
)
_FIRST_PERSON = _any_of(
    rf"{_NOT_QUOTED}\b[Ii](?:['\u2019](?:m|ve|d|ll)\b| (?:\p{{Ll}}+ly |also |never )?{_I_VERB})",
    rf"{_NOT_QUOTED}\b(?:my|myself)\b|(?:^|[.!?]\s)\s*My \p{{Ll}}|"
    r"\b(?:with|for|to|from|about|hires?|helps?|teach|teaches|gives?) me\b|\b(?:hires|joins|supplies) us\b",
    r"\b[Ii]ch (?:bin|habe|war|arbeite|liebe|mag)\b|\b(?:bin|habe|liebe) ich\b",
    r"\b[Jj]e (?:suis|travaille|vis|m['\u2019])|\b[Jj]['\u2019](?:ai|aime|étais|adore|habite)\b",
    r"(?i)\bsoy (?:un|una|el|la)\b|\bestoy\b|\btrabajo como\b|\bsou (?:um|uma|o|a)\b|\bsono un(?:a|['\u2019]|\b)",
    r"\b[Ii]k (?:ben|heb|werk|hou)\b|\b[Jj]ag (?:är|har|arbetar)\b|\b[Jj]eg (?:er|har|arbejder|jobber)\b|\b[Jj]estem\b",
    r"\b(?:[Яя]|[Мм]оя|[Мм]ой|[Мм]оё|[Мм]оего|[Мм]еня|[Мм]не)\b",
    r"(?<![自忘])我(?![国國])|(?:私|僕|俺|わたし)(?=[はがのもを])",
    r"(?:^|\s)(?:저는|나는|제가|내가|저의|나의)\s",
    r"ฉัน|ผม(?:เป็น|ชอบ|รัก|ทำ)",
    r"(?<![\p{L}\p{M}])(?:أنا|मैं|मेरा|मेरी)(?![\p{L}\p{M}])",
)
_READER = _any_of(
    rf"{_NOT_QUOTED}\b(?:you|your|yours|yourself)\b|(?:^|[.!?]\s)\s*(?:You|Your)\b(?!\s\p{{Lu}})",
    r"(?i:^\W*(?:imagine|picture|consider) (?:an?|that|this|yourself)\b)|^\W*Meet \p{Lu}",
    r"\b(?:[Dd]u bist|[Dd]eine?[mnrs]?|(?<!-)[Vv]ous|[Vv]otre|[Uu]sted(?:es)?|[Tt]ú|[Vv]ocês?)\b",
    r"\b(?:[Вв]ы|[Вв]ас|[Вв]аш\p{L}{0,3}|[Тт]ы|[Тт]ебя|[Тт]ебе|[Тт]вой)\b",
    r"[你您]|あなた|貴方|당신|여러분|คุณ(?:เป็น|คือ|ชอบ)",
    r"(?<![\p{L}\p{M}])(?:أنت|आपका|आपके|आपकी)(?![\p{L}\p{M}])",
)
_CONTACT = _any_of(
    r"[\p{L}\p{N}._%+-]@[\p{L}\p{N}-]{1,63}\.\p{L}{2}",
    r"(?<![\p{L}\p{N}._%+-])@[A-Za-z0-9_]{2}",
    r"(?i)\b(?:https?|ftp)://|\bwww\.[a-z0-9-]|\.(?:com|org|net|io|edu|gov|cn|de|jp|uk)/",
    r"\+\d[\d ().-]{6,20}\d",
    r"(?<![\d.,-])(?:\(\d{3}\) ?|\d{3}[ .-])\d{3,4}[ .-]\d{4}(?![\d.,]\d|\d)",
    r"(?<!\d)1[3-9]\d{9}(?!\d)",
    r"(?i)\b(?:tel|phone|fax)\b\W{0,3}\d[\d ().-]{5}",
)
_PLACEHOLDER = _any_of(
    r"\[\s*\p{L}[\p{L}\p{M} _/'-]{1,60}\]|\{[\p{L}_ ][^{}]{0,60}\}|\{\{|<[\p{L}_/!][^<>]{0,80}>|_{3}",
    r"(?i:\blorem ipsum\b)|\bN/A\b|\bTBD\b",
    r"(?i:^\W*(?:n/?a|tbd|tba|todo|none|null|nil|unknown|undefined|nan|x{3,})\W*$)",
)
# A phrase three times running, or one word four times; a band may be called Wet Wet Wet.
_LOOP = _any_of(
    r"(?si)(\p{L}.{7,60}?)\1\1",
    rf"([{_CJK}].{{2,60}}?)\2\2",
    r"(?i)(?<![\p{L}\p{M}])(\p{L}[\p{L}\p{M}]{0,40}+)(?:[\s\p{P}]{1,3}\3(?![\p{L}\p{M}])){3}",
)

_CANNOT = (
    r"(?:help|assist|provide|fulfil|create|generate|comply|answer|infer|determine|identify|continue|describe|access)"
)
_REFUSAL = _any_of(
    r"(?i)^\W*(?:i['\u2019]?m|i am) (?:so |very |really )?sorry\b|^\W*(?:sorry|apologies|unfortunately), (?:but )?i\b",
    rf"(?i)\bi (?:can ?not|can['\u2019]t|won['\u2019]t|am (?:unable|not able) to)\s+{_CANNOT}",
    r"(?i)\bas an? (?:(?:large )?(?:ai )?language model|ai (?:model|assistant|chatbot)|ai,)",
    r"(?i)\b(?:not enough|insufficient) (?:information|context) (?:to|is|in)\b|\bcannot be (?:determined|inferred)\b",
    r"(?i)^\W*(?:lo siento|je suis désolée?|désolée?,|es tut mir leid|desculpe|sinto muito|mi dispiace|извините)\b",
    r"^\W*(?:很|非常|十分)?(?:抱歉|对不起|對不起|申し訳|죄송|ขออภัย|عذر|क्षमा करें)",
    r"(?:语言模型|語言模型|言語モデル|언어 모델|AI助手|人工智能助手)(?:，|,|、|として|로서)|AIアシスタントとして",
    r"(?i)\b(?:como (?:un |um )?modelo de (?:lenguaje|linguagem)|en tant que modèle de langage|als (?:ki-)?sprachmodell"
    r"|come modello linguistico|как языковая модель)\b",
)

_SCRIPTS = {
    _CJK: "zh ja",
    r"\p{IsHangul}": "ko",
    r"\p{IsCyrillic}": "ru uk bg be mk kk ky mn tg",
    r"\p{IsGreek}": "el",
    r"\p{IsArabic}": "ar fa ur ps",
    r"\p{IsHebrew}": "he yi",
    r"\p{IsDevanagari}": "hi mr ne sa",
    r"\p{IsBengali}": "bn as",
    r"\p{IsGurmukhi}": "pa",
    r"\p{IsGujarati}": "gu",
    r"\p{IsTamil}": "ta",
    r"\p{IsTelugu}": "te",
    r"\p{IsKannada}": "kn",
    r"\p{IsMalayalam}": "ml",
    r"\p{IsSinhala}": "si",
    r"\p{IsThai}": "th",
    r"\p{IsLao}": "lo",
    r"\p{IsKhmer}": "km",
    r"\p{IsMyanmar}": "my",
    r"\p{IsGeorgian}": "ka",
    r"\p{IsArmenian}": "hy",
    r"\p{IsEthiopic}": "am ti",
}
_LATIN = "en de fr es it pt nl sv da no nb nn pl cs sk ro hu fi tr vi id ms ca hr sl et lv lt is ga eu gl sq af sw"

_FUNCTION_WORDS = {
    "en": "the and of to with who that for is are from his her their has have by in on at as a an about which i my am",
    "de": "der die das und mit ist ein eine einen einem einer von für auf zu den im nicht aus bei sich",
    "fr": "le la les des du un une et qui est pour dans avec sur au aux de en ses son par",
    "es": "el la los las un una de del y que en con para por su sus es al como",
    "it": "il lo la gli le un una di del della che e per con nel nella dei si su è",
    "pt": "o a os as um uma de do da dos das e que em com para por no na é sua seu",
    "nl": "de het een en van met voor die is op in te zijn haar naar aan bij",
    "sv": "en ett och som med för av på är att det till från i sin",
    "da": "en et og som med for af på er at det til fra i sin der",
    "no": "en et og som med for av på er å det til fra i sin",
    "pl": "i w z na do się jest który która dla od oraz nie po",
    "ro": "un o și cu de la care pentru este din în pe",
    "tr": "bir ve ile için olan bu da de çok",
    "fi": "ja on joka se ei että hän ovat",
    "hu": "egy és a az aki hogy nem",
    "cs": "a v na se je který která pro od s z že",
    "id": "yang dan di untuk dengan seorang dari dalam pada",
    "vi": "một là và của người có trong cho với những",
    "ca": "el la els les un una de del i que en amb per és",
}


def too_short(text: Column, *, min_words: int) -> Column:
    """Fewer than ``min_words`` words; null and empty texts are too short.

    Scripts without blanks: two Han or kana characters count as a word, and four Thai, Lao, Khmer or Myanmar letters.
    """
    return F.coalesce(_word_count(text) < min_words, F.lit(True))


def too_long(text: Column, *, max_words: int) -> Column:
    """More than ``max_words`` words, counted as in ``too_short``; null is not too long."""
    return _false_if_null(_word_count(text) > max_words)


def not_a_person(text: Column) -> Column:
    """Describes a text, an organisation, a group or a thing, or is a title; null is not."""
    return _matches(text, _NO_PERSON)


def names_a_person(text: Column) -> Column:
    """Names the person whom it describes, or a relative, friend or colleague of theirs; null does not.

    The name of somebody whose fan or follower the person is does not count.
    """
    return _matches(text, _NAMES_A_PERSON)


def undecided(text: Column) -> Column:
    """Leaves open who the person is: "a midwife or surgeon who ..."; null does not."""
    return _matches(text, _UNDECIDED)


def points_elsewhere(text: Column) -> Column:
    """Cannot stand alone: mentions the text or persona that it comes from, or "the engineer" without an introduction;
    null does not."""
    return _matches(text, _POINTS_ELSEWHERE)


def first_person(text: Column) -> Column:
    """Written in the first person ("I am a nurse"), not in quotes; null is not."""
    return _matches(text, _FIRST_PERSON)


def addresses_reader(text: Column) -> Column:
    """Speaks to its reader ("you", "your", "Imagine a ..."), not in quotes; null does not."""
    return _matches(text, _READER)


def copies_source(text: Column, *, source_text: Column, copied_share: float) -> Column:
    """At least ``copied_share`` of the text's 5-grams of words occur in ``source_text``; null on either side: no.

    Letter case and punctuation do not count; a Han or kana character counts as a word. Judged on the first 200 words,
    and on the first 200,000 characters of the source. Texts of fewer than five words are not judged.
    """
    words = F.slice(F.split(_spaced_out(text), " "), 1, _JUDGED_WORDS)
    source = F.concat(F.lit(" "), _spaced_out(F.substring(source_text, 1, _JUDGED_SOURCE_CHARACTERS)), F.lit(" "))
    # Spark evaluates what a lambda captures again for each element; as fields of one element both are made once.
    share = F.transform(
        F.array(F.struct(words.alias("words"), source.alias("source"))),
        lambda row: _copied_share(row["words"], row["source"]),
    )
    return _false_if_null(share[0] >= copied_share)


def _copied_share(words: Column, source: Column) -> Column:
    grams = F.array_size(words) - (_GRAM - 1)
    starts = F.sequence(F.lit(1), F.greatest(grams, F.lit(1)))
    copied = F.filter(
        starts,
        lambda start: source.contains(
            F.concat(F.lit(" "), F.array_join(F.slice(words, start, _GRAM), " "), F.lit(" "))
        ),
    )
    return F.when(grams >= 1, F.array_size(copied) / grams)


def contact_data(text: Column) -> Column:
    """Holds an e-mail address, a URL, a telephone number or an @handle; null does not."""
    return _matches(text, _CONTACT)


def placeholder(text: Column) -> Column:
    """Has a gap to fill ([name], {{x}}, <role>, ___), filler text, or no content (N/A, TBD); null does not."""
    return _matches(text, _PLACEHOLDER)


def repeated_words(text: Column, *, repeated_share: float) -> Column:
    """More than ``repeated_share`` of its words repeat earlier ones, or a phrase runs three times; null does not."""
    words = F.split(F.trim(F.regexp_replace(F.lower(text), r"[^\p{L}\p{M}\p{N}]+", " ")), " ")
    repeats = F.array_size(words) - F.array_size(F.array_distinct(words))
    return _false_if_null((repeats > repeated_share * F.array_size(words)) | text.rlike(_LOOP))


def wrong_language(text: Column, *, expected_lang: Column) -> Column:
    """Not written in ``expected_lang`` (a code such as ``en`` or ``pt_BR``); null or an unknown code: no.

    By script: fewer than half of the letters are Latin, for languages in Latin letters; fewer than three tenths are in
    the language's own script, for others, which often hold Latin names. Between languages in Latin letters: at least
    two function words of another language, and more than twice as many as of the expected one.
    """
    code = F.lower(F.regexp_extract(expected_lang, "^[A-Za-z]+", 0))
    letters = F.regexp_count(text, F.lit(r"\p{L}"))
    verdict = F.when(letters == 0, F.lit(False))
    for script, codes in _SCRIPTS.items():
        own = F.regexp_count(text, F.lit(rf"[\p{{L}}&&[{script}]]"))
        verdict = verdict.when(code.isin(codes.split()), own < 0.3 * letters)
    latin = F.regexp_count(text, F.lit(r"\p{IsLatin}"))
    verdict = verdict.when(code.isin(_LATIN.split()) & (latin < 0.5 * letters), F.lit(True))
    for language, words in _FUNCTION_WORDS.items():
        own_words = set(words.split())
        other_words = {
            word for others in _FUNCTION_WORDS.values() for word in others.split() if len(word) > 1
        } - own_words
        own, other = (F.regexp_count(F.lower(text), F.lit(_any_word(some))) for some in (own_words, other_words))
        verdict = verdict.when(code == language, (other >= 2) & (other > 2 * own))
    kana = F.regexp_count(text, F.lit(r"[\p{IsHiragana}\p{IsKatakana}]"))
    is_japanese = (code == "zh") & (kana > 0.1 * letters)
    is_chinese = (code == "ja") & (kana == 0) & (letters >= 12)
    return _false_if_null(verdict | is_japanese | is_chinese)


def refusal(text: Column) -> Column:
    """A model declines or apologises instead of describing anybody; null does not."""
    return _matches(text, _REFUSAL)


def quality_flags(text: Column, *, source_text: Column, expected_lang: Column, settings: FilterSettings) -> Column:
    """``array<string>``: names of the rules that ``text`` breaks, in the order of ``RULES``; empty for a good text.

    A null text is only ``too_short``.
    """
    faults = {
        "too_short": too_short(text, min_words=settings.min_words),
        "too_long": too_long(text, max_words=settings.max_words),
        "not_a_person": not_a_person(text),
        "undecided": undecided(text),
        "names_a_person": names_a_person(text),
        "points_elsewhere": points_elsewhere(text),
        "first_person": first_person(text),
        "addresses_reader": addresses_reader(text),
        "copies_source": copies_source(text, source_text=source_text, copied_share=settings.copied_share),
        "contact_data": contact_data(text),
        "placeholder": placeholder(text),
        "repeated_words": repeated_words(text, repeated_share=settings.repeated_share),
        "wrong_language": wrong_language(text, expected_lang=expected_lang),
        "refusal": refusal(text),
    }
    named = [F.when(faults[name], F.lit(name)) for name in RULES if name not in settings.disabled]
    return F.array_compact(F.array(*named)).cast(ArrayType(StringType()))


@dataclass(frozen=True)
class Flagged:
    """The number of personas, of flagged ones, and of those that break each rule; one may break several."""

    personas: int = 0
    flagged: int = 0
    by_rule: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Flagged) -> Flagged:
        return Flagged(self.personas + other.personas, self.flagged + other.flagged, self.by_rule + other.by_rule)

    def sentence(self) -> str:
        """One line, with the setting that holds the limit of each rule that has one."""
        rules = [
            f"{rule} {count:,}" + (f" ({_LIMITS[rule]})" if rule in _LIMITS else "")
            for rule, count in sorted(self.by_rule.items(), key=lambda item: (-item[1], RULES.index(item[0])))
        ]
        several = "; one may break several" if self.by_rule.total() > self.flagged else ""
        return (
            f"{self.flagged:,} of {self.personas:,} new personas are flagged, and so not in the hub: {', '.join(rules)}"
            f"{several}. Limits, and rules to leave out (disabled), are set in filters, of an import in "
            "imports.N.filters, for personas found from then on"
        )


def flagged(personas: DataFrame) -> Flagged:
    """What ``quality_flags`` of ``personas`` hold."""
    total = Flagged()
    for row in personas.groupBy("quality_flags").agg(F.count(F.lit(1)).alias("n")).collect():
        flags = row["quality_flags"]
        total += Flagged(row["n"], row["n"] if flags else 0, Counter(dict.fromkeys(flags, row["n"])))
    return total


def _word_count(text: Column) -> Column:
    cjk = F.regexp_count(text, F.lit(rf"[\p{{L}}&&[{_CJK}]]"))
    thai_like = F.regexp_count(text, F.lit(rf"[\p{{L}}&&[{_THAI_LIKE}]]"))
    return F.regexp_count(text, F.lit(_SPACED_WORD)) + F.ceil(cjk / 2 + thai_like / 4)


def _spaced_out(text: Column) -> Column:
    """Lower case, one blank between words, every Han or kana character a word."""
    lone = F.regexp_replace(F.lower(text), rf"([{_CJK}])", " $1 ")
    return F.trim(F.regexp_replace(lone, r"[^\p{L}\p{M}\p{N}]+", " "))


def _any_word(words: set[str]) -> str:
    return rf"(?<![\p{{L}}\p{{M}}'\u2019])(?:{'|'.join(sorted(words))})(?![\p{{L}}\p{{M}}'\u2019])"


def _matches(text: Column, pattern: str) -> Column:
    # (?U): letters, blanks and word boundaries of every script, whatever the Java version.
    return _false_if_null(text.rlike(f"(?U){pattern}"))


def _false_if_null(fault: Column) -> Column:
    return F.coalesce(fault, F.lit(False))
