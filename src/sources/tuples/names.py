"""The names of the digits zero to nine in many languages."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, str] = {
    "Arabic": "صفر واحد اثنان ثلاثة أربعة خمسة ستة سبعة ثمانية تسعة",
    "Basque": "zero bat bi hiru lau bost sei zazpi zortzi bederatzi",
    "Bulgarian": "нула едно две три четири пет шест седем осем девет",
    "Chinese": "零 一 二 三 四 五 六 七 八 九",
    "Croatian": "nula jedan dva tri četiri pet šest sedam osam devet",
    "Czech": "nula jeden dva tři čtyři pět šest sedm osm devět",
    "Danish": "nul en to tre fire fem seks syv otte ni",
    "Dutch": "nul een twee drie vier vijf zes zeven acht negen",
    "English": "zero one two three four five six seven eight nine",
    "Esperanto": "nul unu du tri kvar kvin ses sep ok naŭ",
    "Estonian": "null üks kaks kolm neli viis kuus seitse kaheksa üheksa",
    "Finnish": "nolla yksi kaksi kolme neljä viisi kuusi seitsemän kahdeksan yhdeksän",
    "French": "zéro un deux trois quatre cinq six sept huit neuf",
    "German": "null eins zwei drei vier fünf sechs sieben acht neun",
    "Greek": "μηδέν ένα δύο τρία τέσσερα πέντε έξι επτά οκτώ εννέα",
    "Hebrew": "אפס אחת שתיים שלוש ארבע חמש שש שבע שמונה תשע",
    "Hindi": "शून्य एक दो तीन चार पाँच छह सात आठ नौ",
    "Hungarian": "nulla egy kettő három négy öt hat hét nyolc kilenc",
    "Icelandic": "núll einn tveir þrír fjórir fimm sex sjö átta níu",
    "Indonesian": "nol satu dua tiga empat lima enam tujuh delapan sembilan",
    "Irish": "náid aon dó trí ceathair cúig sé seacht ocht naoi",
    "Italian": "zero uno due tre quattro cinque sei sette otto nove",
    "Japanese": "ゼロ いち に さん よん ご ろく なな はち きゅう",
    "Korean": "영 일 이 삼 사 오 육 칠 팔 구",
    "Latvian": "nulle viens divi trīs četri pieci seši septiņi astoņi deviņi",
    "Lithuanian": "nulis vienas du trys keturi penki šeši septyni aštuoni devyni",
    "Norwegian": "null en to tre fire fem seks sju åtte ni",
    "Persian": "صفر یک دو سه چهار پنج شش هفت هشت نه",
    "Polish": "zero jeden dwa trzy cztery pięć sześć siedem osiem dziewięć",
    "Portuguese": "zero um dois três quatro cinco seis sete oito nove",
    "Romanian": "zero unu doi trei patru cinci șase șapte opt nouă",
    "Russian": "ноль один два три четыре пять шесть семь восемь девять",
    "Slovak": "nula jeden dva tri štyri päť šesť sedem osem deväť",
    "Spanish": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "Swahili": "sifuri moja mbili tatu nne tano sita saba nane tisa",
    "Swedish": "noll ett två tre fyra fem sex sju åtta nio",
    "Turkish": "sıfır bir iki üç dört beş altı yedi sekiz dokuz",  # noqa: RUF001, the letter of Turkish
    "Ukrainian": "нуль один два три чотири п'ять шість сім вісім дев'ять",
    "Vietnamese": "không một hai ba bốn năm sáu bảy tám chín",
    "Welsh": "dim un dau tri pedwar pump chwech saith wyth naw",
}  # by language, zero first


def by_digit() -> list[list[str]]:
    """The different names of each digit, in the order of the languages."""
    columns = zip(*(words.split() for words in WORDS.values()), strict=True)
    return [list(dict.fromkeys(names)) for names in columns]
