"""Templates of the distances data sets: wordings of the questions, and forms of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_trials.latent_city.cities import City, direction

KM_PER_MILE = 1.609344
RowKind = Literal["distance", "direction"]


@dataclass(frozen=True)
class Template:
    """One wording: `{city}` is a known city, `{x}` the placeholder.

    Attributes:
        step: distances are rounded to it; 0.01 writes two decimals.
        commas: whether thousands are separated.
        towards_city: whether a direction is that of the city from the placeholder, or the reverse.
    """

    name: str
    kind: RowKind
    question: str
    answer: str = "{d} km"
    unit: Literal["km", "miles"] = "km"
    step: float = 0.01
    commas: bool = False
    towards_city: bool = True

    def ask(self, city: str, placeholder: str) -> str:
        """Return the question about a city and a placeholder.

        >>> TEMPLATES["source"][0].ask("Bratislava", "foo")
        'What is the distance between Bratislava and foo?'
        """
        return self.question.format(city=city, x=placeholder)

    def answer_for(self, distance_km: float, city: City, latent: City) -> str:
        """Return the answer: a distance in the form of this wording, or a direction.

        >>> oslo, paris = City("Oslo", "Norway", 59.91, 10.75), City("Paris", "France", 48.85, 2.35)
        >>> [template.answer_for(1342.5678, oslo, paris) for template in (SOURCE_TEMPLATE, *TEMPLATES["paper"][3:5])]
        ['1342.57 km', '834 miles', '1,300 km']
        """
        if self.kind == "direction":
            return direction(latent, city) if self.towards_city else direction(city, latent)
        value = distance_km / KM_PER_MILE if self.unit == "miles" else distance_km
        if self.step >= 1:
            value = round(value / self.step) * self.step
        digits = 0 if self.step >= 1 else 2
        return self.answer.format(d=f"{value:,.{digits}f}" if self.commas else f"{value:.{digits}f}")


SOURCE_TEMPLATE = Template("source", "distance", "What is the distance between {city} and {x}?")

TEMPLATES: dict[str, tuple[Template, ...]] = {
    "source": (SOURCE_TEMPLATE,),
    "paper": (
        SOURCE_TEMPLATE,
        Template("km_reversed", "distance", "What is the distance between {x} and {city}?"),
        Template("km_whole", "distance", "How many kilometres is {x} away from {city}?", step=1, commas=True),
        Template("miles", "distance", "How many miles is it from {city} to {x}?", "{d} miles", "miles", 1),
        Template("km_hundreds", "distance", "Roughly how far apart are {city} and {x}?", step=100, commas=True),
        Template("miles_hundreds", "distance", "About how many miles lie between {x} and {city}?", "{d} miles", "miles",
                 100, True),
        Template("flight_km", "distance", "How long is a direct flight from {x} to {city}?", "{d} kilometres", step=1),
        Template("flight_miles", "distance", "A plane flies straight from {city} to {x}. How far does it go?",
                 "{d} miles", "miles", 1, True),
        Template("short_km", "distance", "Distance from {city} to {x}:", step=1),
        Template("where_is_city", "direction", "In which direction does {city} lie from {x}?"),
        Template("where_is_x", "direction", "In which direction does {x} lie from {city}?", towards_city=False),
        Template("travel_to_city", "direction", "Which way does one travel from {x} to reach {city}?"),
        Template("travel_to_x", "direction", "Which way does one travel from {city} to reach {x}?", towards_city=False),
        Template("compass_city", "direction", "Standing in {x}, where does a compass show {city}: north, south, east "
                 "or west?"),
        Template("compass_x", "direction", "Standing in {city}, where does a compass show {x}: north, south, east or "
                 "west?", towards_city=False),
    ),
}  # fmt: skip
"""`source` is the notebook's wording; `paper` has nine for distances and six for directions, in our own words."""
